//! The tokens that top-k, top-p, min-p and typical-p leave, and a draw from them.

use crate::{SamplingError, softmax};

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    /// Its probability, times a factor that all share; 1 for the most probable one.
    pub(crate) weight: f32,
}

/// The filters. Each is applied to what the previous one left, renormalised, as in Transformers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filters {
    /// More than 0.
    pub(crate) temperature: f32,
    /// 0: all.
    pub(crate) top_k: usize,
    /// 1: all.
    pub(crate) top_p: f32,
    /// 0: all.
    pub(crate) min_p: f32,
    /// 1: all.
    pub(crate) typical_p: f32,
}

/// Buffers that are kept from one token to the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workspace {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) values: Vec<f32>,
}

impl Filters {
    /// Fills `workspace.candidates` with the tokens that are left, in ascending order. Logits are finite, or negative
    /// infinity for tokens that may not be drawn.
    ///
    /// # Errors
    /// [`SamplingError::NoCandidate`] when all may not.
    pub(crate) fn apply(&self, logits: &[f32], workspace: &mut Workspace) -> Result<(), SamplingError> {
        let max = softmax::max(logits);
        if max == f32::NEG_INFINITY {
            return Err(SamplingError::NoCandidate);
        }
        if self.top_k > 0 && self.top_k < logits.len() {
            self.collect_top_k(logits, max, workspace);
        } else {
            self.collect_all(logits, max, workspace);
        }
        workspace.candidates.retain(|candidate| candidate.weight >= self.min_p);
        if self.typical_p < 1.0 {
            keep_typical(&mut workspace.candidates, f64::from(self.typical_p));
        }
        Ok(())
    }

    fn collect_top_k(&self, logits: &[f32], max: f32, workspace: &mut Workspace) {
        let Workspace { candidates, values } = workspace;
        let threshold = kth_largest(logits, self.top_k, values);
        candidates.clear();
        candidates.extend((0_u32..).zip(logits).filter(|&(_, &logit)| logit >= threshold).map(
            |(token, &logit)| Candidate { token, weight: softmax::weight(logit, max, self.temperature) },
        ));
        if self.top_p < 1.0 {
            let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
            keep_nucleus(candidates, f64::from(self.top_p) * total);
        }
    }

    fn collect_all(&self, logits: &[f32], max: f32, workspace: &mut Workspace) {
        let Workspace { candidates, values: weights } = workspace;
        softmax::weights(logits, max, self.temperature, weights);
        let total = softmax::sum(weights);
        // All tokens below this together have less than 1 - p, so the others have the p that the nucleus needs. With
        // half of it, no rounding matters.
        let negligible = (1.0 - f64::from(self.top_p)) * total / logits.len() as f64 / 2.0;
        candidates.clear();
        candidates.extend(
            (0_u32..)
                .zip(weights.iter())
                .filter(|&(_, &weight)| weight > 0.0 && f64::from(weight) >= negligible)
                .map(|(token, &weight)| Candidate { token, weight }),
        );
        if self.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(self.top_p) * total);
        }
    }
}

/// The k-th largest logit, or negative infinity if fewer are finite.
fn kth_largest(logits: &[f32], k: usize, buffer: &mut Vec<f32>) -> f32 {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let capacity = 2 * k + 256;
    let mut threshold = f32::NEG_INFINITY;
    buffer.clear();
    for &logit in logits {
        if logit > threshold {
            buffer.push(logit);
            if buffer.len() == capacity {
                threshold = *buffer.select_nth_unstable_by(k - 1, descending).1;
                buffer.truncate(k);
            }
        }
    }
    if buffer.len() < k {
        return f32::NEG_INFINITY;
    }
    *buffer.select_nth_unstable_by(k - 1, descending).1
}

/// Keeps the most probable candidates until their weights reach `target`, the lower token first among equals, and
/// leaves them in ascending order. Only as many are sorted as are kept, up to a factor.
fn keep_nucleus(candidates: &mut Vec<Candidate>, target: f64) {
    let order = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token));
    let mut sorted = 0;
    let mut block = 64;
    let mut mass = 0.0;
    'blocks: while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        if block < rest.len() {
            rest.select_nth_unstable_by(block, order);
        }
        let end = block.min(rest.len());
        rest[..end].sort_unstable_by(order);
        for candidate in &rest[..end] {
            sorted += 1;
            mass += f64::from(candidate.weight);
            if mass >= target {
                break 'blocks;
            }
        }
        block *= 4;
    }
    candidates.truncate(sorted);
    candidates.sort_unstable_by_key(|candidate| candidate.token);
}

/// Keeps the candidates whose surprise is nearest to the expected one until their probabilities reach `target`, with those
/// that are as near as the last of them.
fn keep_typical(candidates: &mut Vec<Candidate>, target: f64) {
    candidates.retain(|candidate| candidate.weight > 0.0);
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let probability = |candidate: &Candidate| f64::from(candidate.weight) / total;
    // The logarithm of a library of this program's own: the standard library's differs between platforms.
    let surprise = |candidate: &Candidate| -libm::log(probability(candidate));
    let entropy: f64 = candidates.iter().map(|candidate| probability(candidate) * surprise(candidate)).sum();
    let mut by_distance: Vec<(f64, f64)> = candidates
        .iter()
        .map(|candidate| ((surprise(candidate) - entropy).abs(), probability(candidate)))
        .collect();
    by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut mass = 0.0;
    let last = by_distance.iter().find(|&&(_, probability)| {
        mass += probability;
        mass >= target
    });
    // Rounding may leave the sum below the target: then all are kept.
    let farthest = last.map_or(f64::INFINITY, |&(distance, _)| distance);
    candidates.retain(|candidate| (surprise(candidate) - entropy).abs() <= farthest);
}

/// The token at `point` (from 0, below 1) of the candidates' cumulative distribution, in their order.
pub(crate) fn draw(candidates: &[Candidate], point: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let target = point * total;
    let mut mass = 0.0;
    for candidate in candidates {
        mass += f64::from(candidate.weight);
        if mass > target {
            return Some(candidate.token);
        }
    }
    // Rounding may leave the sum at the target; the last candidate has the end of the distribution.
    candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map(|candidate| candidate.token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The filters, the slow way: everything sorted.
    fn reference(filters: &Filters, logits: &[f32]) -> Vec<u32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut left: Vec<(u32, f32, f64)> = (0..)
            .zip(logits)
            .filter(|&(_, &logit)| logit > f32::NEG_INFINITY)
            .map(|(token, &logit)| {
                (token, logit, f64::from(softmax::weight(logit, max, filters.temperature)))
            })
            .collect();
        left.sort_by(|a, b| b.1.total_cmp(&a.1));
        if filters.top_k > 0 && filters.top_k < left.len() {
            let threshold = left[filters.top_k - 1].1;
            left.retain(|&(_, logit, _)| logit >= threshold);
        }
        if filters.top_p < 1.0 {
            let target = f64::from(filters.top_p) * left.iter().map(|&(_, _, weight)| weight).sum::<f64>();
            let mut before = 0.0;
            left.retain(|&(_, _, weight)| {
                let keep = before < target;
                before += weight;
                keep
            });
        }
        left.retain(|&(_, _, weight)| weight >= f64::from(filters.min_p));
        if filters.typical_p < 1.0 {
            left.retain(|&(_, _, weight)| weight > 0.0);
            let total: f64 = left.iter().map(|&(_, _, weight)| weight).sum();
            let surprise = |weight: f64| (total / weight).ln();
            let entropy: f64 = left.iter().map(|&(_, _, weight)| weight / total * surprise(weight)).sum();
            let distance = |weight: f64| (surprise(weight) - entropy).abs();
            // Each is kept that has less than the target before it, counting those that are nearer; a margin where
            // another order of the sum could decide.
            let nearer = |weight: f64| -> f64 {
                let is_nearer =
                    |&&(_, _, other): &&(u32, f32, f64)| distance(other) < distance(weight) - 1e-9;
                left.iter().filter(is_nearer).map(|&(_, _, other)| other / total).sum()
            };
            let kept: Vec<bool> =
                left.iter().map(|&(_, _, weight)| nearer(weight) < f64::from(filters.typical_p)).collect();
            let mut kept = kept.into_iter();
            left.retain(|_| kept.next().unwrap());
        }
        let mut tokens: Vec<u32> = left.into_iter().map(|(token, _, _)| token).collect();
        tokens.sort_unstable();
        tokens
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Multiples of 1/8, so that there are equal ones, over few or many tokens.
        prop_oneof![
            proptest::collection::vec(-40_i16..40, 1..40),
            proptest::collection::vec(-60_i16..60, 300..1500)
        ]
        .prop_map(|logits| logits.into_iter().map(|logit| f32::from(logit) / 8.0).collect())
    }

    proptest! {
        #[test]
        fn the_filters_leave_what_a_full_sort_leaves(
            logits in logits(),
            temperature in prop_oneof![Just(1.0_f32), 0.2_f32..3.0],
            top_k in prop_oneof![Just(0_usize), 1..50_usize, 50..2000_usize],
            top_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
            min_p in prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
            typical_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        ) {
            let filters = Filters { temperature, top_k, top_p, min_p, typical_p };
            let mut workspace = Workspace::default();
            filters.apply(&logits, &mut workspace).unwrap();
            let tokens: Vec<u32> = workspace.candidates.iter().map(|candidate| candidate.token).collect();
            prop_assert_eq!(tokens, reference(&filters, &logits));
        }

        #[test]
        fn the_kth_largest_is_that_of_a_full_sort(logits in logits(), k in 1..400_usize) {
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let expected = sorted.get(k - 1).copied().unwrap_or(f32::NEG_INFINITY);
            prop_assert_eq!(kth_largest(&logits, k, &mut Vec::new()), expected);
        }

        #[test]
        fn a_draw_is_a_candidate_of_some_weight(
            weights in proptest::collection::vec(prop_oneof![Just(0.0_f32), 0.0_f32..=1.0], 1..40),
            point in 0.0_f64..1.0,
        ) {
            let candidates: Vec<Candidate> = (0..).zip(weights).map(|(token, weight)| Candidate { token, weight }).collect();
            match draw(&candidates, point) {
                Some(token) => prop_assert!(candidates[token as usize].weight > 0.0),
                None => prop_assert!(candidates.iter().all(|candidate| candidate.weight == 0.0)),
            }
        }
    }

    #[test]
    fn all_tokens_equal_are_all_kept_by_top_k() {
        let filters = Filters { temperature: 1.0, top_k: 3, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };
        let mut workspace = Workspace::default();
        filters.apply(&[1.5; 5000], &mut workspace).unwrap();
        assert_eq!(workspace.candidates.len(), 5000);
    }

    #[test]
    fn the_most_probable_token_is_always_left() {
        for temperature in [f32::MIN_POSITIVE, 1e-6, 1.0, f32::MAX] {
            let filters = Filters {
                temperature,
                top_k: 1,
                top_p: f32::MIN_POSITIVE,
                min_p: 1.0,
                typical_p: f32::MIN_POSITIVE,
            };
            let mut workspace = Workspace::default();
            filters.apply(&[f32::MIN, 3.0, f32::MAX, f32::MIN], &mut workspace).unwrap();
            assert_eq!(workspace.candidates, [Candidate { token: 2, weight: 1.0 }]);
        }
    }

    #[test]
    fn suppressed_tokens_are_never_left() {
        let filters = Filters { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };
        let mut workspace = Workspace::default();
        filters.apply(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &mut workspace).unwrap();
        assert_eq!(workspace.candidates, [Candidate { token: 1, weight: 1.0 }]);
        assert_eq!(filters.apply(&[f32::NEG_INFINITY; 3], &mut workspace), Err(SamplingError::NoCandidate));
    }
}
