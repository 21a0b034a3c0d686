//! Every family, in each way that its checkpoints differ, gives Transformers' logits in fp32, in every cache, however the
//! tokens are cut into steps, and its greedy tokens in half precision.

use std::collections::BTreeSet;

use roundhouse_backend::{Cache, LogitsRequest, Model, Runtime as _, Sequence};
use roundhouse_backend_cpu::{CpuOptions, CpuRuntime};
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{Backend, CompileEngineRequest, CompileOptions};
use roundhouse_tests::golden::{self, TinyCase, TinyModel};
use roundhouse_tests::greedy::GreedyCheck;
use roundhouse_tests::harness::{
    LoadedEngine, Shared, compile_options, compile_request, engine_files, shared, tokens,
};
use roundhouse_tests::support::{Cell, cells, families};

/// Both sides compute in fp32, in another order. Logits reach 45, and the reference's are up to 5e-5 from those that
/// Transformers computes in float64: twice that.
const LOGIT_ERROR: f32 = 1e-4;

/// A compilation of a tiny model.
fn request(
    golden: &TinyModel,
    precision: Precision,
    cache: CacheKind,
    all_logits: bool,
) -> CompileEngineRequest {
    let options = CompileOptions {
        all_logits: Some(all_logits),
        max_seq_len: golden.max_seq_len,
        ..compile_options(precision, cache)
    };
    compile_request(&golden.checkpoint, options)
}

/// An engine that gives every position's logits, or the last one's, in a runtime of this process.
async fn load(shared: &Shared, golden: &TinyModel, cache: CacheKind, all_logits: bool) -> Box<dyn Model> {
    let request = request(golden, Precision::Fp32, cache, all_logits);
    let key = shared.compiler.key(request).await.unwrap();
    let pulled = engine_files(shared, &key).await.unwrap();
    CpuRuntime::new(CpuOptions { threads: Some(1) }).load(pulled.files()).unwrap()
}

/// A golden sequence on its way through a model: the prompt, then the reference's tokens one after the other.
pub(crate) struct Feed<'a> {
    case: &'a TinyCase,
    tokens: Vec<u32>,
    cache: Box<dyn Cache>,
    logits: Vec<f32>,
}

impl<'a> Feed<'a> {
    pub(crate) fn new(model: &dyn Model, case: &'a TinyCase) -> Self {
        // The last output token is chosen by the last logits, and feeds nothing.
        let (_, fed) = case.output_token_ids.split_last().unwrap();
        let tokens = [&case.prompt_token_ids, fed].concat();
        let cache = model.new_cache(tokens.len()).unwrap();
        Self { case, tokens, cache, logits: Vec::new() }
    }

    fn left(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// The next step's tokens, at most `tokens`.
    pub(crate) fn sequence(&mut self, tokens: usize, request: LogitsRequest) -> Sequence<'_> {
        let first = self.cache.len();
        let end = (first + tokens).min(self.tokens.len());
        Sequence {
            tokens: &self.tokens[first..end],
            cache: self.cache.as_mut(),
            request,
            logits: &mut self.logits,
        }
    }

    /// The last step's logits.
    #[cfg(feature = "tensorrt")]
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// What Transformers computes at a position; `None` where the golden file leaves it out.
    fn expected(&self, position: usize) -> Option<&'a [f32]> {
        let last_of_prompt = self.case.prompt_token_ids.len() - 1;
        match position.checked_sub(last_of_prompt) {
            Some(step) => self.case.step_logits.rows().nth(step),
            None => self.case.prompt_logits.as_ref()?.rows().nth(position),
        }
    }

    /// Compares the logits of the positions that the last step ended with. Returns how many rows were compared.
    pub(crate) fn compare(&self, context: &str) -> usize {
        let vocab_size = self.case.step_logits.vocab_size();
        let rows = self.logits.len() / vocab_size;
        let first = self.cache.len() - rows;
        let mut compared = 0;
        for (offset, found) in self.logits.chunks_exact(vocab_size).enumerate() {
            let Some(expected) = self.expected(first + offset) else { continue };
            let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let prompt = self.case.prompt_token_ids.len();
            // Not `error > LOGIT_ERROR`, which NaN is not.
            assert!(error <= LOGIT_ERROR, "{context} prompt {prompt} position {}: {error}", first + offset);
            compared += 1;
        }
        compared
    }
}

/// Feeds all cases alone, each in steps of these sizes in turn, and compares every position that there is a reference
/// for.
fn every_position_is_right(model: &dyn Model, golden: &TinyModel, steps: &[usize], context: &str) {
    for case in &golden.cases {
        let mut feed = Feed::new(model, case);
        let mut compared = 0;
        for &step in steps.iter().cycle() {
            if feed.left() == 0 {
                break;
            }
            model.forward(&mut [feed.sequence(step, LogitsRequest::All)]).unwrap();
            compared += feed.compare(context);
        }
        let expected = (0..feed.tokens.len()).filter(|&position| feed.expected(position).is_some()).count();
        assert_eq!(compared, expected, "{context}");
        assert!(expected >= case.output_token_ids.len());
    }
}

/// The CPU's engines of the table in fp32.
async fn fp32(shared: &Shared) -> Vec<Cell> {
    cells(shared, Backend::Cpu, &[Precision::Fp32]).await.unwrap()
}

#[tokio::test]
async fn prompts_at_once_and_then_token_by_token_give_transformers_logits_in_every_cache() {
    let shared = shared().await.unwrap();
    for Cell { golden, cache, .. } in fp32(&shared).await {
        let model = load(&shared, &golden, cache, true).await;
        let context = format!("{} {cache}", golden.name);
        for case in &golden.cases {
            let mut feed = Feed::new(&*model, case);
            let mut compared = 0;
            let mut step = case.prompt_token_ids.len();
            while feed.left() > 0 {
                model.forward(&mut [feed.sequence(step, LogitsRequest::All)]).unwrap();
                compared += feed.compare(&context);
                step = 1;
            }
            let of_prompt = case.prompt_logits.as_ref().map_or(1, |logits| logits.rows().len());
            assert_eq!(compared, of_prompt + case.output_token_ids.len() - 1, "{context}");
        }
    }
}

#[tokio::test]
async fn steps_of_odd_sizes_give_transformers_logits_in_every_cache() {
    let shared = shared().await.unwrap();
    for Cell { golden, cache, .. } in fp32(&shared).await {
        let model = load(&shared, &golden, cache, true).await;
        for steps in [&[3][..], &[1, 31, 2, 17, 5], &[64, 1], &[127]] {
            let context = format!("{} {cache} in steps of {steps:?}", golden.name);
            every_position_is_right(&*model, &golden, steps, &context);
        }
    }
}

#[tokio::test]
async fn ragged_batches_give_transformers_logits() {
    let shared = shared().await.unwrap();
    for Cell { golden, cache, .. } in fp32(&shared).await {
        let model = load(&shared, &golden, cache, true).await;
        let context = format!("{} {cache} in one batch", golden.name);
        // Some sequences still read their prompts while others decode, and they end one after the other.
        let sizes = [1, 2, 7, 13];
        let mut feeds: Vec<_> = golden.cases.iter().map(|case| Feed::new(&*model, case)).collect();
        let mut compared = 0;
        while feeds.iter().any(|feed| feed.left() > 0) {
            let mut batch: Vec<_> = feeds
                .iter_mut()
                .zip(sizes)
                .filter(|(feed, _)| feed.left() > 0)
                .map(|(feed, size)| feed.sequence(size, LogitsRequest::All))
                .collect();
            model.forward(&mut batch).unwrap();
            for feed in &mut feeds {
                compared += feed.compare(&context);
                feed.logits.clear();
            }
        }
        let positions = feeds
            .iter()
            .map(|feed| (0..feed.tokens.len()).filter(|&position| feed.expected(position).is_some()).count());
        assert_eq!(compared, positions.sum::<usize>(), "{context}");
    }
}

#[tokio::test]
async fn engines_of_last_token_logits_give_transformers_logits() {
    let shared = shared().await.unwrap();
    for Cell { golden, cache, .. } in fp32(&shared).await {
        let model = load(&shared, &golden, cache, false).await;
        let context = format!("{} {cache}", golden.name);
        for case in &golden.cases {
            let mut feed = Feed::new(&*model, case);
            let mut step = case.prompt_token_ids.len();
            while feed.left() > 0 {
                model.forward(&mut [feed.sequence(step, LogitsRequest::Last)]).unwrap();
                assert_eq!(feed.compare(&context), 1, "{context}");
                step = 1;
            }
        }
    }
}

#[tokio::test]
async fn gguf_files_of_the_same_weights_give_transformers_logits() {
    let shared = shared().await.unwrap();
    let mut compared = 0;
    for golden in golden::tiny_models().unwrap() {
        let Some(gguf) = golden.gguf.clone() else { continue };
        let of_gguf = TinyModel { checkpoint: gguf, ..golden };
        let model = load(&shared, &of_gguf, CacheKind::InPlace, true).await;
        every_position_is_right(&*model, &of_gguf, &[64, 1], &format!("{} as GGUF", of_gguf.name));
        compared += 1;
    }
    assert!(compared > 0);
}

/// The engines of the table in half precisions.
pub(crate) async fn half_precision(shared: &Shared, backend: Backend) -> Vec<Cell> {
    cells(shared, backend, &[Precision::Fp16, Precision::Bf16]).await.unwrap()
}

/// The largest relative error of rounding to a precision.
pub(crate) fn rounding(precision: Precision) -> f32 {
    match precision {
        Precision::Fp32 => 2.0_f32.powi(-24),
        Precision::Fp16 => 2.0_f32.powi(-11),
        Precision::Bf16 => 2.0_f32.powi(-8),
    }
}

/// Weights, keys and values are rounded to half precision once each; the errors of two layers and the head add up to
/// less than this many roundings of the largest logit.
pub(crate) const ROUNDINGS: f32 = 16.0;

#[tokio::test]
async fn half_precisions_give_transformers_tokens_where_margins_allow() {
    let shared = shared().await.unwrap();
    for Cell { golden, precision, cache } in half_precision(&shared, Backend::Cpu).await {
        let key = shared.compiler.key(request(&golden, precision, cache, false)).await.unwrap();
        let engine = shared.executor.engine(&key).await.unwrap();
        let mut required = 0;
        for case in &golden.cases {
            let context = format!("{} {key}", golden.name);
            required += check_tokens(&engine, case, rounding(precision), &context).await;
        }
        assert!(required > 0, "{} {precision} {cache}: nothing had to be equal", golden.name);
    }
}

/// Compares greedy tokens in a precision of this rounding. Returns the number of steps at which the reference's token
/// was required.
async fn check_tokens(engine: &LoadedEngine, case: &TinyCase, rounding: f32, context: &str) -> usize {
    let largest = case.step_logits.rows().flatten().fold(0.0_f32, |max, logit| max.max(logit.abs()));
    let margins = case.step_logits.margins();
    let bound = ROUNDINGS * rounding * largest;
    let mut check =
        GreedyCheck::new(&case.prompt_token_ids, &case.output_token_ids, &margins, bound).unwrap();
    while let Some((so_far, steps)) = check.next_run() {
        let generated = engine.generate(tokens(&so_far, u32::try_from(steps).unwrap())).await.unwrap();
        let observed = check.observe(&generated.token_ids);
        assert!(observed.is_ok(), "{context}: {observed:?}");
    }
    check.report().required
}

#[tokio::test]
async fn every_tiny_checkpoint_is_of_a_family_that_is_listed() {
    let shared = shared().await.unwrap();
    let listed = families(&shared).await.unwrap().into_iter().map(|family| family.architecture);
    let listed: BTreeSet<String> = listed.collect();
    let goldens = golden::tiny_models().unwrap();
    let found: BTreeSet<String> = goldens.iter().map(|golden| golden.architecture().unwrap()).collect();
    // The other way round, a family without a checkpoint has no cells, which is an error.
    assert!(found.is_subset(&listed), "{found:?} of {listed:?}");
    for precisions in [&[Precision::Fp32][..], &[Precision::Fp16, Precision::Bf16]] {
        cells(&shared, Backend::Cpu, precisions).await.unwrap();
    }
}
