//! Attention.

use std::ops::Range;

use roundhouse_backend::BackendError;
use roundhouse_cpu_kernels::{
    self as kernels, AttentionArgs, AttentionSequence, Elements, KvView, StridedRows, StridedRowsMut,
};

use super::strided::{Run, for_each_run};
use super::{Active, Executor, Workspace};
use crate::cache::CacheTensor;
use crate::plan::{Attention, DenseAttention, Layout, Mask, Root, View};

impl Executor {
    /// A [`Step::CachedAttention`](crate::plan::Step::CachedAttention): each sequence's queries over its own cache.
    pub(super) fn cached_attention(
        &self,
        q: &View,
        [key, value]: [usize; 2],
        attention: &Attention,
        to: &View,
        batch: &[Active<'_>],
        workspace: &mut Workspace,
    ) {
        let mut scratch = std::mem::take(&mut workspace.scratch);
        workspace.write(&self.plan, to, |workspace, memory| {
            let (q_layout, to) = (workspace.layout(q), workspace.layout(to));
            let mut queries = rows(self.floats(q.root, workspace), &q_layout);
            let kv_heads = self.plan.signature.cache[key].heads;
            let args = arguments(attention, &q_layout, kv_heads, &to);
            // Tokens are the outermost axis of the result, so the sequences' parts follow each other.
            let (token_stride, head_stride) = (to.strides()[2], to.strides()[1]);
            let mut rest = &mut memory[to.offset..to.offset + to.elements()];
            let mut sequences = Vec::with_capacity(batch.len());
            for active in batch {
                let (tokens, len) = (active.tokens.len(), active.past + active.tokens.len());
                let tensors = active.cache.tensors();
                let (out, left) = rest.split_at_mut(tokens * token_stride);
                sequences.push(AttentionSequence {
                    queries,
                    tokens,
                    keys: kv_view(&tensors[key], len),
                    values: kv_view(&tensors[value], len),
                    mask: None,
                    out: StridedRowsMut { data: out, token_stride, head_stride },
                });
                queries.data = &queries.data[(tokens * queries.token_stride).min(queries.data.len())..];
                rest = left;
            }
            kernels::attention(&self.pool, &mut scratch, &args, &mut sequences);
        });
        workspace.scratch = scratch;
    }

    /// A [`Step::Attention`](crate::plan::Step::Attention).
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for more keys than there are, or segments that come before the ones before them.
    pub(super) fn attention(
        &self,
        dense: &DenseAttention,
        workspace: &mut Workspace,
    ) -> Result<(), BackendError> {
        let DenseAttention { q, k, v, mask, kv_lengths, segment_ids: _, attention, to } = dense;
        let available = workspace.layout(k).dims()[2];
        let len = match kv_lengths.as_ref().map(|view| (view.root, workspace.layout(view).offset)) {
            Some((Root::Integers(source), offset)) => {
                let length = workspace.integers[source].get(offset).copied().unwrap_or(0);
                let fits = usize::try_from(length).ok().filter(|&length| length <= available);
                fits.ok_or_else(|| {
                    BackendError::InvalidArgument(format!("a length of {length} over {available} keys"))
                })?
            }
            _ => available,
        };
        let parts = self.parts(dense, len, workspace)?;
        let mut scratch = std::mem::take(&mut workspace.scratch);
        let mut bias = std::mem::take(&mut workspace.mask);
        workspace.write(&self.plan, to, |workspace, memory| {
            let [q_layout, k_layout, v_layout, to] = [q, k, v, to].map(|view| workspace.layout(view));
            let [q, k, v] = [q, k, v].map(|view| self.floats(view.root, workspace));
            let args = arguments(attention, &q_layout, k_layout.dims()[1], &to);
            let (token_stride, head_stride) = (to.strides()[2], to.strides()[1]);
            let memory = &mut memory[to.offset..to.offset + to.elements()];
            let Some(mask) = mask else {
                // Tokens are the outermost axis of the result but for the batch, so the parts follow each other.
                let mut rest = memory;
                let mut sequences = Vec::with_capacity(parts.len());
                for Part { batch, queries, keys } in parts {
                    let (out, left) = rest.split_at_mut(queries.len() * token_stride);
                    // From a part's first token on: what follows it is not read.
                    let from = |layout: &Layout, first| {
                        layout.narrow(0, batch..batch + 1).narrow(2, first..layout.dims()[2])
                    };
                    let [k_layout, v_layout] = [&k_layout, &v_layout].map(|layout| from(layout, keys.start));
                    sequences.push(AttentionSequence {
                        queries: rows(q, &from(&q_layout, queries.start)),
                        tokens: queries.len(),
                        keys: strided(k, &k_layout, keys.len()),
                        values: strided(v, &v_layout, keys.len()),
                        mask: None,
                        out: StridedRowsMut { data: out, token_stride, head_stride },
                    });
                    rest = left;
                }
                kernels::attention(&self.pool, &mut scratch, &args, &mut sequences);
                return;
            };
            let (queries, tokens) = (rows(q, &q_layout), q_layout.dims()[2]);
            let (keys, values) = (strided(k, &k_layout, len), strided(v, &v_layout, len));
            // A mask may differ from head to head.
            let group = args.query_heads / args.kv_heads.max(1);
            let one = AttentionArgs { query_heads: 1, kv_heads: 1, ..args };
            for head in 0..args.query_heads {
                self.head_mask(mask, head, len, &mut bias, workspace);
                let sequence = AttentionSequence {
                    queries: StridedRows { data: &queries.data[head * queries.head_stride..], ..queries },
                    tokens,
                    keys: head_of(keys, head / group),
                    values: head_of(values, head / group),
                    mask: Some(&bias),
                    out: StridedRowsMut {
                        data: &mut memory[head * head_stride..],
                        token_stride,
                        head_stride,
                    },
                };
                kernels::attention(&self.pool, &mut scratch, &one, &mut [sequence]);
            }
        });
        workspace.scratch = scratch;
        workspace.mask = bias;
        Ok(())
    }

    /// What attends by itself: each sequence of a batch, or each segment of it, with the first `len` keys.
    fn parts(
        &self,
        dense: &DenseAttention,
        len: usize,
        workspace: &Workspace,
    ) -> Result<Vec<Part>, BackendError> {
        let q = workspace.layout(&dense.q);
        let (batches, tokens) = (q.dims()[0], q.dims()[2]);
        let Some(view) = &dense.segment_ids else {
            return Ok((0..batches).map(|batch| Part { batch, queries: 0..tokens, keys: 0..len }).collect());
        };
        let (Root::Integers(source), layout) = (view.root, workspace.layout(view)) else {
            return Ok(Vec::new());
        };
        let ids = &workspace.integers[source][layout.offset..layout.offset + layout.elements()];
        let mut parts = Vec::new();
        for (batch, ids) in ids.chunks_exact(tokens.max(1)).enumerate() {
            if let Some(pair) = ids.windows(2).find(|pair| pair[1] < pair[0]) {
                let what = format!("segment_ids go from {} to {}: they must not decrease", pair[0], pair[1]);
                return Err(BackendError::InvalidArgument(what));
            }
            let mut start = 0;
            for segment in ids.chunk_by(|a, b| a == b) {
                let range = start..start + segment.len();
                start = range.end;
                parts.push(Part { batch, queries: range.clone(), keys: range });
            }
        }
        Ok(parts)
    }

    /// What one head's mask adds to the scores of the first `len` keys, `[queries, len]`.
    fn head_mask(&self, mask: &Mask, head: usize, len: usize, bias: &mut Vec<f32>, workspace: &Workspace) {
        let layout = workspace.layout(&mask.view).narrow(1, head..head + 1).narrow(3, 0..len);
        let values = self.floats(mask.view.root, workspace);
        bias.clear();
        bias.resize(layout.elements(), 0.0);
        let rows = layout.row_major();
        for_each_run([&rows, &layout], |Run { offsets: [to, from], length, strides }| {
            for index in 0..length {
                let value = values[from + index * strides[1]];
                bias[to + index * strides[0]] = match (mask.additive, value != 0.0) {
                    (true, _) => value,
                    (false, true) => 0.0,
                    (false, false) => f32::NEG_INFINITY,
                };
            }
        });
    }
}

/// Tokens of a sequence that attend to keys of it.
struct Part {
    batch: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

fn arguments(attention: &Attention, q: &Layout, kv_heads: usize, to: &Layout) -> AttentionArgs {
    AttentionArgs {
        query_heads: q.dims()[1],
        kv_heads,
        head_dim: q.dims()[3],
        value_dim: to.dims()[3],
        scale: attention.scale,
        soft_cap: attention.soft_cap,
        window: attention.window,
        causal: attention.causal,
    }
}

/// `[1, heads, tokens, width]`, of a batch the first, as rows.
fn rows<'a>(values: &'a [f32], layout: &Layout) -> StridedRows<'a> {
    StridedRows {
        data: values.get(layout.offset..).unwrap_or(&[]),
        token_stride: layout.strides()[2],
        head_stride: layout.strides()[1],
    }
}

/// The first `len` positions of `[1, heads, positions, width]`.
fn strided<'a>(values: &'a [f32], layout: &Layout, len: usize) -> KvView<'a> {
    KvView {
        elements: Elements::F32(values.get(layout.offset..).unwrap_or(&[])),
        head_stride: layout.strides()[1],
        row_stride: layout.strides()[2],
        rows: layout.dims()[2],
        len,
    }
}

/// One head of keys or values.
fn head_of(view: KvView<'_>, head: usize) -> KvView<'_> {
    let start = (head * view.head_stride).min(view.elements.len());
    KvView { elements: view.elements.slice(start..view.elements.len()), ..view }
}

/// The positions of a sequence of `len` that a cache tensor holds.
fn kv_view(tensor: &CacheTensor, len: usize) -> KvView<'_> {
    KvView {
        elements: tensor.elements(),
        head_stride: tensor.rows * tensor.head_dim,
        row_stride: tensor.head_dim,
        rows: tensor.rows,
        len,
    }
}
