//! Attention written out in other ops, recognised.
//!
//! Two patterns: the attention itself, `softmax(cap(scale · q kᵀ) + mask) v`, and the repetition of key and value heads
//! for grouped queries, `reshape(repeat(reshape(x)))`.

use roundhouse_graph::{Dim, NodeId, Op, Rewriter, ValueId};

use crate::literal::is_all;

/// An attention written out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decomposed {
    /// `[batch, heads, seq, head_dim]`.
    pub(crate) query: ValueId,
    /// `[batch, heads, length, head_dim]`.
    pub(crate) key: ValueId,
    /// `[batch, heads, length, value_dim]`.
    pub(crate) value: ValueId,
    /// What is added to the scores.
    pub(crate) mask: Option<ValueId>,
    /// The product of all factors on queries, keys and scores.
    pub(crate) scale: f32,
    /// The bound of the scores.
    pub(crate) soft_cap: Option<f32>,
}

/// The attention whose last node, the product with the values, is `id`.
pub(crate) fn decomposed_attention(rewriter: &Rewriter, id: NodeId) -> Option<Decomposed> {
    let node = rewriter.node(id);
    let (Op::MatMul { transpose_b: false }, &[probabilities, value]) = (&node.op, &node.inputs[..]) else {
        return None;
    };
    let softmax = Reader { rewriter, at: probabilities }.skip_casts();
    let (Op::Softmax { axis: 3 }, &[scores]) = softmax.node()? else { return None };
    let scores = Reader { rewriter, at: scores }.skip_casts();
    match scores.node()? {
        // Either side may be the mask; the other has to be the scores.
        (Op::Add, &[a, b]) => [(a, b), (b, a)].into_iter().find_map(|(scores, mask)| {
            Some(Decomposed { mask: Some(mask), ..read_scores(Reader { rewriter, at: scores }, value)? })
        }),
        _ => read_scores(scores, value),
    }
}

/// The attention over `value` with the scores `cap(scale · q kᵀ)`, without a mask.
fn read_scores(mut scores: Reader<'_>, value: ValueId) -> Option<Decomposed> {
    scores = scores.skip_casts();
    let mut soft_cap = None;
    if let (Op::SoftCap { cap }, &[input]) = scores.node()? {
        soft_cap = Some(*cap);
        scores.at = input;
    }
    let (scores, on_scores) = scores.skip_scales();
    let (Op::MatMul { transpose_b }, &[query, key]) = scores.node()? else { return None };
    let (query, on_query) = Reader { at: query, ..scores }.skip_scales();
    let (mut key, mut on_key) = Reader { at: key, ..scores }.skip_scales();
    if !transpose_b {
        let (Op::Transpose { permutation }, &[untransposed]) = key.node()? else { return None };
        if permutation[..] != [0, 1, 3, 2] {
            return None;
        }
        let (below, factor) = Reader { at: untransposed, ..scores }.skip_scales();
        key = below;
        on_key *= factor;
    }
    let rank = |value: ValueId| scores.rewriter.value(value).shape.len();
    (rank(query.at) == 4 && rank(key.at) == 4).then_some(Decomposed {
        query: query.at,
        key: key.at,
        value,
        mask: None,
        scale: on_scores * on_query * on_key,
        soft_cap,
    })
}

/// A place in a chain of nodes, read from its end.
#[derive(Clone, Copy)]
struct Reader<'a> {
    rewriter: &'a Rewriter,
    at: ValueId,
}

impl<'a> Reader<'a> {
    fn node(self) -> Option<(&'a Op, &'a [ValueId])> {
        let node = self.rewriter.node(self.rewriter.producer(self.at)?);
        Some((&node.op, &node.inputs))
    }

    /// Past casts: the op computes all of this in fp32, whatever a chain stores between.
    fn skip_casts(mut self) -> Self {
        while let Some((Op::Cast { .. }, &[input])) = self.node() {
            self.at = input;
        }
        self
    }

    /// Past scales and casts, with the product of the factors.
    fn skip_scales(mut self) -> (Self, f32) {
        let mut product = 1.0;
        loop {
            self = self.skip_casts();
            match self.node() {
                Some((Op::Scale { factor }, &[input])) => {
                    product *= factor;
                    self.at = input;
                }
                _ => return (self, product),
            }
        }
    }
}

/// What `value [B, N · n, L, D]` repeats, `x [B, N, L, D]` with each head `n` times in a row, and `n`; `None` if it is no
/// repetition.
pub(crate) fn repeated_heads(rewriter: &Rewriter, value: ValueId) -> Option<(ValueId, i64)> {
    let reader = |at| Reader { rewriter, at };
    let shape = |id| rewriter.value(id).shape.as_slice();
    let (Op::Reshape { .. }, &[repeated]) = reader(value).node()? else { return None };
    let (op, parts) = reader(repeated).node()?;
    let single = match (op, parts) {
        (Op::Cat { axis: 2 }, [first, others @ ..]) if others.iter().all(|part| part == first) => *first,
        (Op::Mul, &[a, b]) if is_all(rewriter, b, 1.0) => a,
        (Op::Mul, &[a, b]) if is_all(rewriter, a, 1.0) => b,
        _ => return None,
    };
    let (Op::Reshape { .. }, &[x]) = reader(single).node()? else { return None };
    let [batch, heads, length, dim] = shape(x) else { return None };
    let [_, _, times, ..] = shape(repeated) else { return None };
    let times = times.as_constant().filter(|&times| times > 1)?;
    let split =
        |middle: i64| vec![batch.clone(), heads.clone(), Dim::constant(middle), length.clone(), dim.clone()];
    let joined = [batch.clone(), heads.times(times), length.clone(), dim.clone()];
    let fits = shape(single) == split(1) && shape(repeated) == split(times) && shape(value) == joined;
    fits.then_some((x, times))
}
