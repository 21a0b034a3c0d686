//! The softmax that takes its row block by block.

use crate::math;
use crate::simd::{MAX_LANES, Simd};
use crate::softmax::{exp_in_place, row_max};

use super::AttentionArgs;

/// Of the blocks seen so far of a row of scores: the largest, and the sum of `exp(score - largest)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowState {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl RowState {
    /// Of no scores.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Takes a block of scores, which become `exp(score - max)`; returns the factor on what was accumulated so far.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, scores: &mut [f32]) -> f32 {
        let max = row_max(s, scores).max(self.max);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0);
            return 1.0;
        }
        let factor = if max > self.max { exp_scalar(s, self.max - max) } else { 1.0 };
        self.max = max;
        self.sum = self.sum * factor + exp_in_place(s, scores, max);
        factor
    }
}

/// `e^x`.
#[inline(always)]
pub(super) fn exp_scalar<S: Simd>(s: S, x: f32) -> f32 {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the array holds a vector of any instruction set.
    unsafe { s.store(lanes.as_mut_ptr(), math::exp(s, s.splat(x))) }
    lanes[0]
}

/// A query of a sequence.
pub(super) struct Query<'a> {
    pub(super) args: &'a AttentionArgs,
    /// Which of the `tokens` queries.
    pub(super) t: usize,
    pub(super) tokens: usize,
    /// How many keys the sequence has.
    pub(super) len: usize,
    /// `[tokens, len]`.
    pub(super) mask: Option<&'a [f32]>,
}

impl Query<'_> {
    /// Makes scores of inner products (scaled already) with the keys from `first` on: caps them, adds the mask and hides what
    /// the query does not see.
    #[inline(always)]
    pub(super) fn finish_scores<S: Simd>(&self, s: S, first: usize, scores: &mut [f32]) {
        let n = scores.len();
        if let Some(cap) = self.args.soft_cap {
            let (cap_vector, x) = (s.splat(cap), scores.as_mut_ptr());
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                // SAFETY: `count` elements follow i.
                unsafe {
                    let score = s.div(s.load_partial(x.add(i), count), cap_vector);
                    s.store_partial(x.add(i), count, s.mul(cap_vector, math::tanh(s, score)));
                }
            }
        }
        if let Some(mask) = self.mask {
            let mask = &mask[self.t * self.len + first..self.t * self.len + first + n];
            for (score, mask) in scores.iter_mut().zip(mask) {
                *score += mask;
            }
        }
        let visible = self.args.visible(self.t, self.tokens, self.len);
        let hidden_before = visible.start.saturating_sub(first).min(n);
        let hidden_from = visible.end.saturating_sub(first).min(n);
        scores[..hidden_before].fill(f32::NEG_INFINITY);
        scores[hidden_from..].fill(f32::NEG_INFINITY);
    }
}
