//! Rotary embedding and the update of the cache.

use std::ops::Range;

use roundhouse_cpu_kernels as kernels;
use roundhouse_graph::RotaryAttributes;

use super::{Active, Executor, Workspace};
use crate::plan::{Root, View};

impl Executor {
    /// A [`Step::RotaryTable`](crate::plan::Step::RotaryTable): positions are contiguous.
    pub(super) fn rotary_table(&self, table: usize, positions: &View, workspace: &mut Workspace) {
        let Root::Integers(source) = positions.root else { return };
        let positions = workspace.layout(positions);
        let (attributes, half) = {
            let attributes = &self.plan.tables[table].attributes;
            (attributes, attributes.inv_freq.len())
        };
        let axes = attributes.axes();
        let (tokens, first) = (positions.elements() / axes, positions.offset);
        let (mut cos, mut sin) = std::mem::take(&mut workspace.tables[table]);
        cos.resize(tokens * half, 0.0);
        sin.resize(tokens * half, 0.0);
        let rows = cos.chunks_exact_mut(half.max(1)).zip(sin.chunks_exact_mut(half.max(1)));
        let sections = sections(attributes);
        let positions = &workspace.integers[source][first..first + tokens * axes];
        for (token, (cos, sin)) in rows.enumerate() {
            for (axis, pairs) in sections.iter().enumerate() {
                let position = positions[axis * tokens + token];
                let (cos, sin) = (&mut cos[pairs.clone()], &mut sin[pairs.clone()]);
                let inv_freq = &attributes.inv_freq[pairs.clone()];
                kernels::rope_table(inv_freq, attributes.attention_factor, position, cos, sin);
            }
        }
        workspace.tables[table] = (cos, sin);
    }

    /// A [`Step::Rotary`](crate::plan::Step::Rotary) of `[1, heads, tokens, head_dim]`.
    pub(super) fn rotary(&self, table: usize, to: &View, workspace: &mut Workspace) {
        let isa = self.pool.isa();
        let attributes = &self.plan.tables[table].attributes;
        let half = attributes.inv_freq.len();
        workspace.write(&self.plan, to, |workspace, memory| {
            let to = workspace.layout(to);
            let (cos, sin) = &workspace.tables[table];
            for token in 0..to.dims()[2] {
                let angles = token * half..(token + 1) * half;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                for head in 0..to.dims()[1] {
                    let start = to.offset + head * to.strides()[1] + token * to.strides()[2];
                    let row = &mut memory[start..start + to.dims()[3]];
                    kernels::rope_apply(isa, row, cos, sin, attributes.interleaved);
                }
            }
        });
    }

    /// A [`Step::StoreKv`](crate::plan::Step::StoreKv) of `[1, heads, tokens, head_dim]` with contiguous rows.
    pub(super) fn store_kv(
        &self,
        tensor: usize,
        from: &View,
        batch: &mut [Active<'_>],
        workspace: &Workspace,
    ) {
        let isa = self.pool.isa();
        let layout = workspace.layout(from);
        let from = self.floats(from.root, workspace);
        let mut token = 0;
        for active in batch {
            let (past, new) = (active.past, active.tokens.len());
            let Some(tensor) = active.cache.tensors_mut().get_mut(tensor) else { continue };
            let (heads, rows, width) = (tensor.heads, tensor.rows, tensor.head_dim);
            let mut elements = tensor.elements_mut();
            for head in 0..heads {
                for index in 0..new {
                    let start =
                        layout.offset + head * layout.strides()[1] + (token + index) * layout.strides()[2];
                    let place = (head * rows + (past + index) % rows) * width;
                    kernels::store(isa, &from[start..start + width], elements.slice(place..place + width));
                }
            }
            token += new;
        }
    }
}

/// The pairs that turn by the position along each axis.
fn sections(attributes: &RotaryAttributes) -> Vec<Range<usize>> {
    let axes: Vec<usize> = attributes.pair_axes().collect();
    let pairs =
        |axis| axes.partition_point(|&found| found < axis)..axes.partition_point(|&found| found <= axis);
    (0..attributes.axes()).map(pairs).collect()
}
