//! Penalties for tokens that were there before.

use std::collections::HashMap;

use crate::SamplingParams;

/// The penalties of a sequence, and the tokens they are for.
#[derive(Debug, Clone)]
pub(crate) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// How often each token of prompt and output is in the output. Empty while there is no penalty.
    occurrences: HashMap<u32, u32>,
}

impl Penalties {
    pub(crate) fn new(params: &SamplingParams) -> Self {
        Self {
            repetition: params.repetition_penalty.unwrap_or(1.0),
            presence: params.presence_penalty.unwrap_or(0.0),
            frequency: params.frequency_penalty.unwrap_or(0.0),
            occurrences: HashMap::new(),
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }

    pub(crate) fn push_prompt(&mut self, tokens: &[u32]) {
        if self.repetition != 1.0 {
            for &token in tokens {
                self.occurrences.entry(token).or_default();
            }
        }
    }

    pub(crate) fn push_output(&mut self, token: u32) {
        if self.is_active() {
            let count = self.occurrences.entry(token).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Changes the logits of tokens seen: first the repetition penalty, then frequency and presence. Tokens beyond the
    /// logits are left out. Finite logits stay finite.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for (&token, &count) in &self.occurrences {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let repeated = if *logit < 0.0 { *logit * self.repetition } else { *logit / self.repetition };
            let presence = if count > 0 { self.presence } else { 0.0 };
            let penalised = repeated - self.frequency * count as f32 - presence;
            *logit = penalised.clamp(f32::MIN, f32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_count_for_repetition_only() {
        let mut penalties = Penalties::new(&SamplingParams {
            repetition_penalty: Some(2.0),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.25),
            ..SamplingParams::default()
        });
        penalties.push_prompt(&[0, 0, 1, 99]);
        for token in [1, 2, 2] {
            penalties.push_output(token);
        }
        let mut logits = [4.0, -4.0, 1.0, 7.0];
        penalties.apply(&mut logits);
        assert_eq!(logits, [2.0, -8.0 - 0.25 - 0.5, 0.5 - 0.5 - 0.5, 7.0]);
    }

    #[test]
    fn extreme_penalties_leave_finite_logits() {
        for repetition in [f32::MIN_POSITIVE, f32::MAX] {
            let mut penalties = Penalties::new(&SamplingParams {
                repetition_penalty: Some(repetition),
                ..SamplingParams::default()
            });
            penalties.push_prompt(&[0, 1, 2]);
            let mut logits = [1e30, -1e30, 0.0];
            penalties.apply(&mut logits);
            assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
        }
    }
}
