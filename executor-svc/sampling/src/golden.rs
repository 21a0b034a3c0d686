//! The sampler against golden data that Transformers made: `tests/golden/make_golden.py`.

use serde::Deserialize;

use crate::{MAX_TOP_LOGPROBS, Restriction, Sampler, SamplingParams};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    temperature: f32,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: u64,
    prompt: Vec<u32>,
    output: Vec<u32>,
    logits: Vec<f32>,
    logprobs: Vec<f32>,
    left: Vec<(u32, f64)>,
    draws: Vec<u32>,
}

impl Case {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: Some(self.temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: None,
            no_repeat_ngram_size: None,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: Some(self.seed),
        }
    }

    fn sampler(&self) -> Sampler {
        let mut sampler = Sampler::new(self.params()).unwrap();
        sampler.push_prompt(&self.prompt);
        for &token in &self.output {
            sampler.accept(token);
        }
        sampler
    }
}

fn cases() -> Vec<Case> {
    let golden: Golden = serde_json::from_str(include_str!("../tests/golden/sampling.json")).unwrap();
    assert!(golden.cases.len() > 50);
    golden.cases
}

#[test]
fn the_tokens_left_and_their_probabilities_are_those_of_transformers() {
    for case in cases() {
        let mut sampler = case.sampler();
        sampler.sample(&mut case.logits.clone(), Restriction::default(), None).unwrap();
        let candidates = &sampler.workspace().candidates;
        let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let context = case.params();
        assert_eq!(
            candidates.iter().map(|candidate| candidate.token).collect::<Vec<_>>(),
            case.left.iter().map(|&(token, _)| token).collect::<Vec<_>>(),
            "{context:?}"
        );
        for (candidate, &(_, probability)) in candidates.iter().zip(&case.left) {
            // Transformers computes the filtered scores in fp32.
            assert!(
                (f64::from(candidate.weight) / total - probability).abs() < 1e-5,
                "{context:?}: {candidate:?}"
            );
        }
    }
}

#[test]
fn a_seed_draws_the_tokens_that_chacha_and_the_cumulative_distribution_give() {
    for case in cases() {
        let mut sampler = case.sampler();
        let draws: Vec<u32> = case
            .draws
            .iter()
            .map(|_| sampler.sample(&mut case.logits.clone(), Restriction::default(), None).unwrap().token)
            .collect();
        assert_eq!(draws, case.draws, "{:?}", case.params());
    }
}

#[test]
fn log_probabilities_are_the_log_softmax_of_the_models_logits() {
    for case in cases() {
        let sampled = case
            .sampler()
            .sample(&mut case.logits.clone(), Restriction::default(), Some(MAX_TOP_LOGPROBS))
            .unwrap();
        let close = |token: u32, logprob: f32| (logprob - case.logprobs[token as usize]).abs() < 1e-5;
        assert!(close(sampled.token, sampled.logprob.unwrap()));
        assert_eq!(sampled.top_logprobs.len(), MAX_TOP_LOGPROBS);
        assert!(sampled.top_logprobs.iter().all(|&(token, logprob)| close(token, logprob)));
        let mut sorted = case.logprobs.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let lowest = sampled.top_logprobs.last().unwrap().1;
        assert!((lowest - sorted[MAX_TOP_LOGPROBS - 1]).abs() < 1e-5);
    }
}
