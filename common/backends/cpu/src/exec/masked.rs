//! Attention with an explicit mask, which no kernel has: models say causal and windowed without one.

use roundhouse_cpu_kernels as kernels;

use super::{Executor, Workspace};
use crate::plan::{Attention, Layout, Mask, View};

impl Executor {
    /// Attention of the first `length` keys under a mask.
    pub(super) fn masked_attention(
        &self,
        [q, k, v]: [&View; 3],
        mask: &Mask,
        length: usize,
        attention: &Attention,
        to: &View,
        workspace: &mut Workspace,
    ) {
        let isa = self.pool.isa();
        workspace.write(&self.plan, to, |workspace, memory| {
            let [q_layout, k_layout, v_layout, mask_layout, to] =
                [q, k, v, &mask.view, to].map(|view| workspace.layout(view));
            let [q, k, v, bias] = [q, k, v, &mask.view].map(|view| self.floats(view.root, workspace));
            let [_, heads, queries, width] = *q_layout.dims() else { return };
            let groups = heads / k_layout.dims()[1].max(1);
            let mut scores = vec![0.0; length];
            for head in 0..heads {
                for query in 0..queries {
                    let q = row(q, &q_layout, head, query, width);
                    // The query's own place among the keys.
                    let place = (query + length).checked_sub(queries);
                    for (key, score) in scores.iter_mut().enumerate() {
                        let visible = match place {
                            Some(place) => {
                                (!attention.causal || key <= place)
                                    && attention.window.is_none_or(|window| place < key + window)
                            }
                            None => !attention.causal,
                        };
                        let k = row(k, &k_layout, head / groups, key, width);
                        let product = attention.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
                        let capped = attention.soft_cap.map_or(product, |cap| cap * (product / cap).tanh());
                        let strides = mask_layout.strides();
                        let at = mask_layout.offset + head * strides[1] + query * strides[2] + key * strides[3];
                        *score = match (visible, mask.additive) {
                            (true, true) => capped + bias[at],
                            (true, false) if bias[at] != 0.0 => capped,
                            _ => f32::NEG_INFINITY,
                        };
                    }
                    kernels::softmax(isa, &mut scores);
                    let start = to.offset + head * to.strides()[1] + query * to.strides()[2];
                    let out = &mut memory[start..start + to.dims()[3]];
                    out.fill(0.0);
                    for (key, weight) in scores.iter().enumerate() {
                        let v = row(v, &v_layout, head / groups, key, out.len());
                        out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
                    }
                }
            }
        });
    }
}

/// The vector of one head and position of `[1, heads, positions, width]` with contiguous rows.
fn row<'a>(values: &'a [f32], layout: &Layout, head: usize, position: usize, width: usize) -> &'a [f32] {
    let start = layout.offset + head * layout.strides()[1] + position * layout.strides()[2];
    &values[start..start + width]
}
