//! Log-probabilities of the model's own distribution.

use crate::softmax;

/// The most probable tokens whose log-probabilities a request may ask for.
pub const MAX_TOP_LOGPROBS: usize = 20;

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
}
