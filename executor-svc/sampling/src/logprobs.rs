//! Log-probabilities of the model's own distribution.

use crate::{SamplingError, softmax};

/// The most probable tokens whose log-probabilities a request may ask for.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Log-probabilities of a token that was not chosen by a [`crate::Sampler`] but given: one of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability in the model's distribution.
    pub logprob: f32,
    /// The most probable tokens of that distribution with the same, most probable first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Scores given tokens. Keeps nothing from one to the next but its buffer.
#[derive(Debug, Clone, Default)]
pub struct Scorer {
    scratch: Vec<f32>,
}

impl Scorer {
    /// The score of `token` by the model's logits `[vocab_size]` at the position before it, with `count` of the most
    /// probable tokens, at most [`MAX_TOP_LOGPROBS`].
    ///
    /// # Errors
    /// [`SamplingError::LogitNotFinite`], [`SamplingError::TooManyLogprobs`], and [`SamplingError::NoCandidate`] for a
    /// token that has no logit.
    pub fn score(&mut self, logits: &[f32], token: u32, count: usize) -> Result<TokenScore, SamplingError> {
        if count > MAX_TOP_LOGPROBS {
            return Err(SamplingError::TooManyLogprobs { found: count, limit: MAX_TOP_LOGPROBS });
        }
        softmax::check_finite(logits)?;
        let &logit = logits.get(token as usize).ok_or(SamplingError::NoCandidate)?;
        let log_softmax = LogSoftmax::new(logits, &mut self.scratch);
        Ok(TokenScore { logprob: log_softmax.of(logit), top_logprobs: log_softmax.top(logits, count) })
    }
}

/// Logarithms of the softmax of a row of finite logits.
#[derive(Debug)]
pub(crate) struct LogSoftmax {
    max: f32,
    /// `ln Σ exp(logit - max)`.
    log_sum: f64,
}

impl LogSoftmax {
    /// `scratch` is overwritten.
    pub(crate) fn new(logits: &[f32], scratch: &mut Vec<f32>) -> Self {
        let max = softmax::max(logits);
        softmax::weights(logits, max, 1.0, scratch);
        Self { max, log_sum: softmax::sum(scratch).ln() }
    }

    /// The log-probability of a logit.
    pub(crate) fn of(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }

    /// The `count` most probable tokens with their log-probabilities, most probable first, lower tokens first among
    /// equals. One pass; nothing is sorted but what is returned.
    pub(crate) fn top(&self, logits: &[f32], count: usize) -> Vec<(u32, f32)> {
        let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
        let mut smallest = f32::NEG_INFINITY;
        if count == 0 {
            return top;
        }
        for (token, &logit) in (0_u32..).zip(logits) {
            if top.len() == count && logit <= smallest {
                continue;
            }
            let place = top.partition_point(|&(_, other)| other >= logit);
            top.insert(place, (token, logit));
            top.truncate(count);
            smallest = top.last().map_or(f32::NEG_INFINITY, |&(_, logit)| logit);
        }
        for (_, logit) in &mut top {
            *logit = self.of(*logit);
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_top_is_that_of_a_full_sort(
            logits in proptest::collection::vec(-8_i8..8, 1..60),
            count in 0..=MAX_TOP_LOGPROBS,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let log_softmax = LogSoftmax::new(&logits, &mut Vec::new());
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            sorted.truncate(count);
            for (_, logit) in &mut sorted {
                *logit = log_softmax.of(*logit);
            }
            prop_assert_eq!(log_softmax.top(&logits, count), sorted);
        }
    }

    #[test]
    fn probabilities_sum_to_one_at_any_scale() {
        for scale in [1e-3, 1.0, 1e3, 1e30] {
            let logits: Vec<f32> =
                (0..1000).map(|token| ((token * 37 % 101) as f32 - 50.0) * scale).collect();
            let log_softmax = LogSoftmax::new(&logits, &mut Vec::new());
            let total: f64 = logits.iter().map(|&logit| f64::from(log_softmax.of(logit)).exp()).sum();
            assert!((total - 1.0).abs() < 1e-5, "{scale}: {total}");
        }
    }

    #[test]
    fn a_given_token_scores_what_its_choice_would() {
        let logits: Vec<f32> = (0..100).map(|token| (token * 37 % 101) as f32 / 9.0).collect();
        let mut sampler = crate::Sampler::new(crate::SamplingParams::default()).unwrap();
        let chosen = sampler.sample(&mut logits.clone(), crate::Restriction::default(), Some(5)).unwrap();
        let scored = Scorer::default().score(&logits, chosen.token, 5).unwrap();
        assert_eq!((Some(scored.logprob), scored.top_logprobs), (chosen.logprob, chosen.top_logprobs));
    }

    #[test]
    fn what_cannot_be_scored_is_an_error() {
        let mut scorer = Scorer::default();
        let mut score = |logits: &[f32], token, count| scorer.score(logits, token, count).unwrap_err();
        assert_eq!(score(&[0.0, 1.0], 2, 0), SamplingError::NoCandidate);
        assert_eq!(score(&[], 0, 0), SamplingError::NoCandidate);
        assert_eq!(score(&[0.0], 0, 21), SamplingError::TooManyLogprobs { found: 21, limit: 20 });
        let error = score(&[0.0, f32::INFINITY], 0, 0);
        assert!(matches!(error, SamplingError::LogitNotFinite { token: 1, .. }), "{error}");
    }
}
