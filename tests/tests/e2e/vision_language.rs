//! Vision-language models give Transformers' features, logits and greedy tokens, in every cache, however their tokens are
//! cut into steps and whatever runs beside them.

use std::ops::ControlFlow;
use std::sync::Arc;

use roundhouse_backend::{
    BackendError, Cache, GreedySequence, ImageTokens, LogitsRequest, Model, Runtime as _, Sequence,
};
use roundhouse_backend_cpu::{CpuOptions, CpuRuntime};
use roundhouse_engine::{CacheKind, Patches, Precision, VisionInfo};
use roundhouse_image_tokens::{ImageGrid, Preprocessed, encode, plain_places, token_places};
use roundhouse_proto::compiler::CompileOptions;
use roundhouse_tests::golden::Logits;
use roundhouse_tests::golden_images::{GoldenImage, ImageCase, VisionLanguageModel, vision_language_models};
use roundhouse_tests::greedy::{Agreement, margin_rule};
use roundhouse_tests::harness::{Shared, compile_options, compile_request, engine_files, shared};

use crate::tiny_model_logits::{ROUNDINGS, rounding};

/// Both sides compute in fp32, in another order. Logits reach 15.
const LOGIT_ERROR: f32 = 1e-4;
/// As the logits'; features reach 10.
const FEATURE_ERROR: f32 = 1e-4;
const MAX_SEQ_LEN: u32 = 192;

/// An engine, and what its manifest says of images.
struct Loaded {
    model: Box<dyn Model>,
    vision: VisionInfo,
    /// The token that an image's features stand for.
    token: u32,
}

async fn load(
    shared: &Shared,
    golden: &VisionLanguageModel,
    precision: Precision,
    cache: CacheKind,
) -> Loaded {
    let options = CompileOptions {
        all_logits: Some(true),
        max_seq_len: Some(MAX_SEQ_LEN),
        ..compile_options(precision, cache)
    };
    let key = shared.compiler.key(compile_request(&golden.checkpoint, options)).await.unwrap();
    let pulled = engine_files(shared, &key).await.unwrap();
    let vision = pulled.files().manifest.info.vision.clone().unwrap();
    let text = std::fs::read(golden.checkpoint.join("tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut added = tokenizer["added_tokens"].as_array().unwrap().iter();
    let token = added.find(|token| token["content"] == *vision.image_token).unwrap();
    let token = u32::try_from(token["id"].as_u64().unwrap()).unwrap();
    assert!(vision.image_token_id.is_none_or(|id| id == token));
    let model = CpuRuntime::new(CpuOptions { threads: Some(2) }).load(pulled.files()).unwrap();
    Loaded { model, vision, token }
}

fn grid(image: &GoldenImage) -> Option<ImageGrid> {
    image.grid_thw.map(|[frames, height, width]| ImageGrid { frames, height, width })
}

/// Where the tokens of an image are, and how many positions they take.
fn places(vision: &VisionInfo, image: &GoldenImage) -> (Vec<[u32; 3]>, u32) {
    match vision.patches {
        Patches::Grid { spatial_merge_size, .. } => {
            token_places(grid(image).unwrap(), spatial_merge_size).unwrap()
        }
        Patches::Tiles { tokens, .. } => plain_places(image.parts * tokens as usize).unwrap(),
    }
}

/// The features of some images, given together.
fn features(loaded: &Loaded, images: &[&GoldenImage]) -> Vec<Arc<[f32]>> {
    let pixels = images.iter().flat_map(|image| &image.pixel_values).copied().collect::<Vec<f32>>();
    let pixel_values = &pixels[..];
    let grids: Option<Vec<ImageGrid>> = images.iter().map(|image| grid(image)).collect();
    let tiles: Vec<usize> = images.iter().map(|image| image.parts).collect();
    let images = match &grids {
        Some(grids) => Preprocessed::Patches { pixel_values, grids },
        None => Preprocessed::Tiles { pixel_values, tiles: &tiles },
    };
    encode(&*loaded.model, &loaded.vision, images).unwrap()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The images of a case at their places in the sequence.
fn images(loaded: &Loaded, golden: &VisionLanguageModel, case: &ImageCase) -> Vec<ImageTokens> {
    let mut next = 0;
    let place = |&index: &usize| {
        let image = &golden.images[index];
        let rest = &case.prompt_token_ids[next..];
        let first = next + rest.iter().position(|&id| id == loaded.token).unwrap();
        let (places, extent) = places(&loaded.vision, image);
        next = first + places.len();
        let features = features(loaded, &[image]).remove(0);
        ImageTokens { first, features, places: places.into(), extent }
    };
    case.images.iter().map(place).collect()
}

/// A case's sequence in a cache: the prompt, then the reference's tokens.
struct Feed<'a> {
    case: &'a ImageCase,
    tokens: Vec<u32>,
    cache: Box<dyn Cache>,
    logits: Vec<f32>,
}

impl<'a> Feed<'a> {
    fn new(loaded: &Loaded, golden: &VisionLanguageModel, case: &'a ImageCase) -> Self {
        let (_, fed) = case.output_token_ids.split_last().unwrap();
        let tokens = [&case.prompt_token_ids, fed].concat();
        let mut cache = loaded.model.new_cache(tokens.len()).unwrap();
        images(loaded, golden, case).into_iter().for_each(|image| cache.place_image(image).unwrap());
        Self { case, tokens, cache, logits: Vec::new() }
    }

    fn step(&mut self, model: &dyn Model, tokens: usize, error: f32) {
        let first = self.cache.len();
        let end = (first + tokens).min(self.tokens.len());
        model.forward(&mut [self.sequence(first..end)]).unwrap();
        self.compare(first, error);
    }

    fn sequence(&mut self, tokens: std::ops::Range<usize>) -> Sequence<'_> {
        Sequence {
            cache: self.cache.as_mut(),
            tokens: &self.tokens[tokens],
            request: LogitsRequest::All,
            logits: &mut self.logits,
        }
    }

    /// Compares the last step's logits, which begin at a position.
    fn compare(&self, first: usize, error: f32) {
        let prompt = self.case.prompt_token_ids.len();
        let row = |logits: &'a Logits, row: usize| logits.rows().nth(row).unwrap();
        let rows = self.logits.chunks_exact(self.case.step_logits.vocab_size());
        assert_eq!(rows.len(), self.cache.len() - first);
        for (position, found) in (first..).zip(rows) {
            let expected = match position.checked_sub(prompt - 1) {
                Some(step) => row(&self.case.step_logits, step),
                None => row(&self.case.prompt_logits, position),
            };
            let difference = largest_difference(found, expected);
            assert!(difference <= error, "position {position}: {difference}");
        }
    }
}

#[tokio::test]
async fn features_are_transformers_alone_and_together() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        let loaded = load(&shared, &golden, Precision::Fp32, CacheKind::InPlace).await;
        let all: Vec<&GoldenImage> = golden.images.iter().collect();
        let together = features(&loaded, &all);
        assert_eq!(together.len(), golden.images.len());
        for (index, (image, together)) in golden.images.iter().zip(&together).enumerate() {
            let alone = features(&loaded, &[image]).remove(0);
            let difference = largest_difference(&alone, &image.features);
            assert!(difference <= FEATURE_ERROR, "{} image {index}: {difference}", golden.name);
            assert_eq!(alone, *together, "{} image {index} beside others", golden.name);
        }
    }
}

#[tokio::test]
async fn one_and_three_images_give_transformers_logits_in_every_cache() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        for &cache in CacheKind::ALL {
            let loaded = load(&shared, &golden, Precision::Fp32, cache).await;
            for case in golden.cases.values() {
                let mut feed = Feed::new(&loaded, &golden, case);
                feed.step(&*loaded.model, case.prompt_token_ids.len(), LOGIT_ERROR);
                for _ in 1..case.output_token_ids.len() {
                    feed.step(&*loaded.model, 1, LOGIT_ERROR);
                }
                assert_eq!(feed.cache.len(), feed.tokens.len());
            }
        }
    }
}

#[tokio::test]
async fn steps_that_cut_images_change_nothing() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        for cache in [CacheKind::InPlace, CacheKind::None] {
            let loaded = load(&shared, &golden, Precision::Fp32, cache).await;
            for (case, steps) in
                golden.cases.values().flat_map(|case| [[1, 2], [7, 3]].map(|steps| (case, steps)))
            {
                let mut feed = Feed::new(&loaded, &golden, case);
                for &step in steps.iter().cycle() {
                    if feed.cache.len() == feed.tokens.len() {
                        break;
                    }
                    feed.step(&*loaded.model, step, LOGIT_ERROR);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_second_turn_goes_on_with_another_image_and_can_be_taken_back() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        let loaded = load(&shared, &golden, Precision::Fp32, CacheKind::InPlace).await;
        let case = &golden.cases["two_turns"];
        let [prompt, answer] = case.first_turn.unwrap();
        let placed = images(&loaded, &golden, case);
        let [first, second] = &placed[..] else { unreachable!() };
        assert!(first.tokens().end <= prompt && second.first >= prompt + answer);

        let mut feed = Feed::new(&loaded, &golden, case);
        feed.cache = loaded.model.new_cache(feed.tokens.len()).unwrap();
        feed.cache.place_image(first.clone()).unwrap();
        feed.step(&*loaded.model, prompt, LOGIT_ERROR);
        for _ in 0..answer {
            feed.step(&*loaded.model, 1, LOGIT_ERROR);
        }
        for _ in 0..2 {
            feed.cache.place_image(second.clone()).unwrap();
            feed.step(&*loaded.model, usize::MAX / 2, LOGIT_ERROR);
            // Into the second image: it is placed still, and the rest of it goes on.
            assert_eq!(feed.cache.truncate(second.first + 2), second.first + 2);
            feed.step(&*loaded.model, usize::MAX / 2, LOGIT_ERROR);
            assert_eq!(feed.cache.truncate(prompt + answer), prompt + answer);
        }
        assert_eq!(feed.cache.truncate(0), 0);
        placed.iter().for_each(|image| feed.cache.place_image(image.clone()).unwrap());
        feed.step(&*loaded.model, usize::MAX / 2, LOGIT_ERROR);
    }
}

#[tokio::test]
async fn greedy_tokens_are_transformers() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        let loaded = load(&shared, &golden, Precision::Fp32, CacheKind::InPlace).await;
        for (name, case) in &golden.cases {
            let mut feed = Feed::new(&loaded, &golden, case);
            let (last, prompt) = case.prompt_token_ids.split_last().unwrap();
            loaded.model.forward(&mut [feed.sequence(0..prompt.len())]).unwrap();
            let mut found = Vec::new();
            let mut sequence = [GreedySequence { cache: feed.cache.as_mut(), token: *last }];
            let steps = case.output_token_ids.len();
            let runs = loaded.model.decode_greedily(&mut sequence, steps, &mut |tokens| {
                found.extend_from_slice(tokens);
                ControlFlow::Continue(())
            });
            assert!(runs.unwrap());
            assert_eq!(found, case.output_token_ids, "{} {name}", golden.name);
        }
    }
}

#[tokio::test]
async fn sequences_with_images_and_without_run_in_one_step() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        let loaded = load(&shared, &golden, Precision::Fp32, CacheKind::InPlace).await;
        let text: Vec<u32> = (10..40).collect();
        let alone = |tokens: &[u32]| {
            let (mut cache, mut logits) = (loaded.model.new_cache(64).unwrap(), Vec::new());
            let cache = cache.as_mut();
            let request = LogitsRequest::All;
            loaded.model.forward(&mut [Sequence { cache, tokens, request, logits: &mut logits }]).unwrap();
            logits
        };
        let expected = alone(&text);
        let mut one = Feed::new(&loaded, &golden, &golden.cases["one"]);
        let mut three = Feed::new(&loaded, &golden, &golden.cases["three"]);
        let (mut cache, mut logits) = (loaded.model.new_cache(64).unwrap(), Vec::new());
        let middle = Sequence {
            cache: cache.as_mut(),
            tokens: &text,
            request: LogitsRequest::All,
            logits: &mut logits,
        };
        let (first, last) = (one.tokens.len(), three.tokens.len());
        loaded.model.forward(&mut [one.sequence(0..first), middle, three.sequence(0..last)]).unwrap();
        one.compare(0, LOGIT_ERROR);
        three.compare(0, LOGIT_ERROR);
        assert!(logits == expected, "{}: text beside images", golden.name);
    }
}

#[tokio::test]
async fn half_precisions_give_transformers_tokens_where_margins_allow() {
    let shared = shared().await.unwrap();
    for golden in vision_language_models().unwrap() {
        for precision in [Precision::Fp16, Precision::Bf16] {
            let loaded = load(&shared, &golden, precision, CacheKind::InPlace).await;
            let mut required = 0;
            for (name, case) in &golden.cases {
                let mut feed = Feed::new(&loaded, &golden, case);
                let tokens = feed.tokens.len();
                loaded.model.forward(&mut [feed.sequence(0..tokens)]).unwrap();
                let largest =
                    case.step_logits.rows().flatten().fold(0.0_f32, |max, logit| max.max(logit.abs()));
                let bound = ROUNDINGS * rounding(precision) * largest;
                let rows = feed.logits.chunks_exact(case.step_logits.vocab_size());
                let rows = rows.skip(case.prompt_token_ids.len() - 1);
                let expected = case.output_token_ids.iter().zip(case.step_logits.margins());
                for (step, (row, (&token, margin))) in rows.zip(expected).enumerate() {
                    if margin_rule(margin, bound) == Agreement::Required {
                        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        let context = format!("{} {name} {precision} step {step}", golden.name);
                        assert_eq!(row[token as usize], largest, "{context}");
                        required += 1;
                    }
                }
            }
            assert!(required > 0, "{} {precision}: nothing had to be equal", golden.name);
        }
    }
}

#[tokio::test]
async fn images_that_do_not_fit_are_refused_and_change_nothing() {
    let shared = shared().await.unwrap();
    let golden = vision_language_models().unwrap().remove(0);
    let loaded = load(&shared, &golden, Precision::Fp32, CacheKind::InPlace).await;
    let case = &golden.cases["one"];
    let mut feed = Feed::new(&loaded, &golden, case);
    let image = images(&loaded, &golden, case).remove(0);
    let narrow = ImageTokens { first: 100, features: image.features[1..].into(), ..image.clone() };
    for bad in [image.clone(), narrow] {
        let error = feed.cache.place_image(bad).unwrap_err();
        assert!(matches!(error, BackendError::InvalidArgument(_)), "{error}");
    }
    let beyond = ImageTokens { first: feed.tokens.len() - 1, ..image };
    let error = feed.cache.place_image(beyond).unwrap_err();
    assert!(matches!(error, BackendError::CacheFull { .. }), "{error}");
    feed.step(&*loaded.model, usize::MAX / 2, LOGIT_ERROR);
}
