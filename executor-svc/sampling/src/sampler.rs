//! The sampler of one sequence.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::candidates::{Filters, Workspace, draw};
use crate::constraints::Constrained;
use crate::logprobs::{LogSoftmax, MAX_TOP_LOGPROBS};
use crate::penalties::Penalties;
use crate::{Constraints, Restriction, SamplingError, SamplingParams, softmax};

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability in the model's distribution, before suppression, penalties and filters.
    /// None unless asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens of that distribution with the same, most probable first. Empty unless asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
///
/// The order is that of Transformers' `generate`, with vLLM's penalties: biases; repetition, then frequency and presence
/// penalty; suppression of tokens that are not allowed; temperature; top-k; top-p; min-p; typical-p; a draw. (vLLM itself
/// has min-p before top-k.) At temperature 0 the largest logit that is left wins, the lower token among equals, and no random
/// number is used.
///
/// # Repeatability
/// A draw takes one 64-bit number of ChaCha12, keyed with the seed (little-endian, then 24 zero bytes). Its upper 53
/// bits are a point of the cumulative distribution of the tokens left, in ascending order. The arithmetic is the same to
/// the last bit on every machine, so that equal logits and seeds give equal tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// None: greedy.
    filters: Option<Filters>,
    constrained: Constrained,
    penalties: Penalties,
    rng: ChaCha12Rng,
    workspace: Workspace,
    /// The logits as the model made them; kept only for log-probabilities.
    model_logits: Vec<f32>,
}

impl Sampler {
    /// A sampler of a sequence without tokens.
    ///
    /// # Errors
    /// [`SamplingError::InvalidParameter`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        params.validate()?;
        let temperature = params.temperature.unwrap_or(0.0);
        let filters = Filters {
            temperature,
            top_k: params.top_k.unwrap_or(0) as usize,
            top_p: params.top_p.unwrap_or(1.0),
            min_p: params.min_p.unwrap_or(0.0),
            typical_p: params.typical_p.unwrap_or(1.0),
        };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&params.seed.unwrap_or_else(rand::random).to_le_bytes());
        Ok(Self {
            filters: (temperature > 0.0).then_some(filters),
            constrained: Constrained::new(params.no_repeat_ngram_size.unwrap_or(0) as usize),
            penalties: Penalties::new(&params),
            rng: ChaCha12Rng::from_seed(key),
            workspace: Workspace::default(),
            model_logits: Vec::new(),
        })
    }

    /// The same, with what the request says of particular tokens. Before any token.
    #[must_use]
    pub fn with_constraints(mut self, constraints: Constraints) -> Self {
        self.constrained.set(constraints);
        self
    }

    /// Whether it chooses the largest of the model's logits, the lower token among equals, whatever came before: then
    /// others can find it, and say so with [`Sampler::accept`].
    #[must_use]
    pub fn takes_the_largest(&self) -> bool {
        self.filters.is_none() && self.constrained.is_empty() && !self.penalties.is_active()
    }

    /// Tokens of the prompt, for the repetition penalty and for n-grams.
    pub fn push_prompt(&mut self, tokens: &[u32]) {
        self.constrained.push_prompt(tokens);
        self.penalties.push_prompt(tokens);
    }

    /// A token of the output, for the penalties and constraints. [`Sampler::sample`] does not count the token that it
    /// returns.
    pub fn accept(&mut self, token: u32) {
        self.constrained.push_output(token);
        self.penalties.push_output(token);
    }

    /// Chooses the next token from the model's logits `[vocab_size]`, which are overwritten.
    ///
    /// Tokens that `restriction` leaves out are not chosen. `logprobs` asks for log-probabilities, of so many of the most probable tokens beside the
    /// chosen one's, at most [`MAX_TOP_LOGPROBS`].
    ///
    /// # Errors
    /// [`SamplingError::LogitNotFinite`], [`SamplingError::NoCandidate`] and [`SamplingError::TooManyLogprobs`]; no
    /// random number is used then.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        restriction: Restriction<'_>,
        logprobs: Option<usize>,
    ) -> Result<Sampled, SamplingError> {
        softmax::check_finite(logits)?;
        let model = match logprobs {
            Some(count) if count > MAX_TOP_LOGPROBS => {
                return Err(SamplingError::TooManyLogprobs { found: count, limit: MAX_TOP_LOGPROBS });
            }
            Some(count) => {
                self.model_logits.clear();
                self.model_logits.extend_from_slice(logits);
                let log_softmax = LogSoftmax::new(logits, &mut self.workspace.values);
                let top = log_softmax.top(logits, count);
                Some((log_softmax, top))
            }
            None => None,
        };
        self.adjust(logits, restriction);
        let token = match self.filters {
            Some(filters) => {
                filters.apply(logits, &mut self.workspace)?;
                draw(&self.workspace.candidates, unit_interval(self.rng.next_u64()))
            }
            None => argmax(logits),
        };
        let token = token.ok_or(SamplingError::NoCandidate)?;
        let (logprob, top_logprobs) = match model {
            Some((log_softmax, top)) => {
                (self.model_logits.get(token as usize).map(|&logit| log_softmax.of(logit)), top)
            }
            None => (None, Vec::new()),
        };
        Ok(Sampled { token, logprob, top_logprobs })
    }

    /// Applies biases, penalties and suppression.
    fn adjust(&self, logits: &mut [f32], restriction: Restriction<'_>) {
        self.constrained.bias(logits);
        self.penalties.apply(logits);
        self.constrained.forbid(logits);
        restriction.apply(logits);
    }

    /// What the last [`Sampler::sample`] drew from.
    #[cfg(test)]
    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> Option<u32> {
    let max = softmax::max(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    (0_u32..).zip(logits).find(|&(_, &logit)| logit == max).map(|(token, _)| token)
}

/// A number from 0, below 1, with all 53 bits of a double's precision.
fn unit_interval(random: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    (random >> 11) as f64 * SCALE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(params).unwrap()
    }

    fn draws(params: SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = sampler(params);
        (0..count)
            .map(|_| sampler.sample(&mut logits.to_vec(), Restriction::default(), None).unwrap().token)
            .collect()
    }

    const SEEDED: SamplingParams = SamplingParams {
        temperature: Some(1.0),
        top_k: None,
        top_p: None,
        min_p: None,
        typical_p: None,
        no_repeat_ngram_size: None,
        repetition_penalty: None,
        presence_penalty: None,
        frequency_penalty: None,
        seed: Some(7),
    };

    proptest! {
        #[test]
        fn greedy_takes_the_first_of_the_largest(logits in proptest::collection::vec(-9_i8..9, 1..100)) {
            let mut logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let first = logits.iter().position(|&logit| logit == max).unwrap();
            let sampled = sampler(SamplingParams::default()).sample(&mut logits, Restriction::default(), None).unwrap();
            prop_assert_eq!(sampled, Sampled { token: first as u32, logprob: None, top_logprobs: Vec::new() });
        }

        #[test]
        fn any_finite_logits_and_valid_parameters_give_a_token_that_is_allowed(
            logits in proptest::collection::vec(prop_oneof![
                -20.0_f32..20.0,
                proptest::num::f32::NORMAL,
                Just(f32::MAX),
                Just(f32::MIN),
            ], 2..60),
            temperature in prop_oneof![Just(0.0_f32), 1e-30_f32..1e30, 0.1_f32..3.0],
            top_k in 0..60_u32,
            top_p in f32::MIN_POSITIVE..=1.0,
            min_p in 0.0_f32..=1.0,
            typical_p in f32::MIN_POSITIVE..=1.0,
            repetition in prop_oneof![1e-38_f32..1e38, 0.5_f32..2.0],
            penalties in (-2.0_f32..=2.0, -2.0_f32..=2.0),
            seen in proptest::collection::vec(0..80_u32, 0..20),
        ) {
            let mut sampler = sampler(SamplingParams {
                temperature: Some(temperature),
                top_k: Some(top_k),
                top_p: Some(top_p),
                min_p: Some(min_p),
                typical_p: Some(typical_p),
                no_repeat_ngram_size: None,
                repetition_penalty: Some(repetition),
                presence_penalty: Some(penalties.0),
                frequency_penalty: Some(penalties.1),
                seed: Some(1),
            });
            sampler.push_prompt(&seen);
            for &token in &seen {
                sampler.accept(token);
            }
            let sampled = sampler.sample(&mut logits.clone(), Restriction::without(&[0, 1_000_000]), Some(3)).unwrap();
            prop_assert!((1..logits.len()).contains(&(sampled.token as usize)));
            prop_assert!(sampled.logprob.unwrap() <= 0.0);
            prop_assert_eq!(sampled.top_logprobs.len(), logits.len().min(3));
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Pearson's chi-squared over 8 tokens of known probability: 7 degrees of freedom, critical value at 0.1 %.
        const CRITICAL: f64 = 24.32;
        const DRAWS: usize = 100_000;
        let probabilities: [f64; 8] = [0.4, 0.2, 0.15, 0.1, 0.07, 0.05, 0.02, 0.01];
        for temperature in [1.0, 0.5, 2.0] {
            let logits: Vec<f32> =
                probabilities.iter().map(|p| (p.ln() as f32) * temperature + 3.0).collect();
            let params = SamplingParams { temperature: Some(temperature), ..SEEDED };
            let mut counts = [0_usize; 8];
            for token in draws(params, &logits, DRAWS) {
                counts[token as usize] += 1;
            }
            let chi_squared: f64 = probabilities
                .iter()
                .zip(counts)
                .map(|(p, count)| (count as f64 - p * DRAWS as f64).powi(2) / (p * DRAWS as f64))
                .sum();
            assert!(chi_squared < CRITICAL, "{chi_squared} at temperature {temperature}: {counts:?}");
        }
    }

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let logits: Vec<f32> = (0..1000).map(|token| (token % 17) as f32 / 10.0).collect();
        let first = draws(SEEDED, &logits, 50);
        assert_eq!(draws(SEEDED, &logits, 50), first);
        assert_ne!(draws(SamplingParams { seed: Some(8), ..SEEDED }, &logits, 50), first);
        let unseeded = SamplingParams { seed: None, ..SEEDED };
        assert_ne!(draws(unseeded, &logits, 50), draws(unseeded, &logits, 50));
    }

    #[test]
    fn a_clone_goes_on_as_the_original_does() {
        let logits = vec![0.0; 100];
        let mut original = sampler(SEEDED);
        original.sample(&mut logits.clone(), Restriction::default(), None).unwrap();
        let mut fork = original.clone();
        for _ in 0..20 {
            let expected = original.sample(&mut logits.clone(), Restriction::default(), None).unwrap();
            assert_eq!(fork.sample(&mut logits.clone(), Restriction::default(), None).unwrap(), expected);
        }
    }

    #[test]
    fn only_a_plain_greedy_sampler_takes_the_largest() {
        let greedy = SamplingParams::default();
        assert!(sampler(greedy).takes_the_largest());
        assert!(sampler(SamplingParams { top_k: Some(3), seed: Some(1), ..greedy }).takes_the_largest());
        for params in [
            SEEDED,
            SamplingParams { repetition_penalty: Some(1.1), ..greedy },
            SamplingParams { presence_penalty: Some(0.5), ..greedy },
            SamplingParams { frequency_penalty: Some(-0.5), ..greedy },
            SamplingParams { no_repeat_ngram_size: Some(2), ..greedy },
        ] {
            assert!(!sampler(params).takes_the_largest(), "{params:?}");
        }
        for constraints in [
            Constraints { logit_bias: vec![(0, 1.0)], ..Constraints::default() },
            Constraints { bad_words: vec![vec![1]], ..Constraints::default() },
        ] {
            assert!(!sampler(greedy).with_constraints(constraints).takes_the_largest());
        }
    }

    #[test]
    fn suppressed_tokens_are_not_chosen() {
        for params in [SamplingParams::default(), SEEDED] {
            let mut sampler = sampler(params);
            for _ in 0..100 {
                assert_eq!(
                    sampler
                        .sample(&mut [5.0, 1.0, 5.0], Restriction::without(&[0, 2, 9]), None)
                        .unwrap()
                        .token,
                    1
                );
            }
            assert_eq!(
                sampler.sample(&mut [5.0, 1.0], Restriction::without(&[0, 1]), None),
                Err(SamplingError::NoCandidate)
            );
        }
    }

    #[test]
    fn a_bias_comes_before_the_penalties_and_forbidden_tokens_are_never_chosen() {
        for params in [SamplingParams::default(), SEEDED] {
            let params = SamplingParams { repetition_penalty: Some(4.0), ..params };
            let constraints =
                Constraints { logit_bias: vec![(0, 90.0)], bad_words: vec![vec![1], vec![2, 0]] };
            let mut sampler = sampler(params).with_constraints(constraints);
            let next = |sampler: &mut Sampler| {
                let token =
                    sampler.sample(&mut [1.0, 99.0, 0.0], Restriction::default(), None).unwrap().token;
                sampler.accept(token);
                token
            };
            assert_eq!(next(&mut sampler), 0);
            // Biased and then divided: 91 / 4 is still far above the rest.
            assert_eq!(next(&mut sampler), 0);
            sampler.accept(2);
            assert_eq!(next(&mut sampler), 2);
        }
    }

    #[test]
    fn an_ngram_that_was_there_does_not_come_again() {
        let params = SamplingParams { no_repeat_ngram_size: Some(2), ..SamplingParams::default() };
        let mut sampler = sampler(params);
        sampler.push_prompt(&[0, 0]);
        let mut next = || {
            let sampled = sampler.sample(&mut [3.0, 2.0, 1.0], Restriction::default(), None)?;
            sampler.accept(sampled.token);
            Ok(sampled.token)
        };
        assert_eq!([next(), next(), next(), next()], [Ok(1), Ok(0), Ok(2), Ok(0)]);
        // Each token has followed a 0 by now.
        assert_eq!(next(), Err(SamplingError::NoCandidate));
    }

    #[test]
    fn broken_logits_are_an_error_and_use_no_random_number() {
        let mut disturbed = sampler(SEEDED);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = disturbed.sample(&mut [0.0, value], Restriction::default(), None).unwrap_err();
            assert!(matches!(error, SamplingError::LogitNotFinite { token: 1, .. }), "{error}");
        }
        assert_eq!(disturbed.sample(&mut [], Restriction::default(), None), Err(SamplingError::NoCandidate));
        let error = disturbed.sample(&mut [0.0], Restriction::default(), Some(21)).unwrap_err();
        assert_eq!(error, SamplingError::TooManyLogprobs { found: 21, limit: 20 });
        let mut undisturbed = sampler(SEEDED);
        let next = |sampler: &mut Sampler| {
            sampler.sample(&mut [0.0; 1000], Restriction::default(), None).unwrap().token
        };
        assert_eq!(next(&mut disturbed), next(&mut undisturbed));
    }

    #[test]
    fn log_probabilities_are_of_the_model_not_of_the_filters() {
        let mut sampler =
            sampler(SamplingParams { repetition_penalty: Some(10.0), ..SamplingParams::default() });
        sampler.push_prompt(&[0]);
        let sampled = sampler.sample(&mut [2.0, 1.0, 0.0], Restriction::without(&[1]), Some(2)).unwrap();
        let log_sum = (2_f64.exp() + 1_f64.exp() + 1.0).ln();
        assert_eq!(sampled.token, 0);
        assert!((f64::from(sampled.logprob.unwrap()) - (2.0 - log_sum)).abs() < 1e-6);
        assert_eq!(sampled.top_logprobs.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [0, 1]);
    }
}
