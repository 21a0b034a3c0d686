//! Pictures for requests, and a vision-language engine run by hand: processor, components, language model.

use std::ops::ControlFlow;
use std::sync::Arc;

use roundhouse_backend::{GreedySequence, ImageTokens, LogitsRequest, Model, Runtime as _, Sequence};
use roundhouse_backend_cpu::{CpuOptions, CpuRuntime};
use roundhouse_engine::{CacheKind, ComputeCapabilities, Patches, Precision, VisionInfo, blob_names};
use roundhouse_executor::ExecutorConfig;
use roundhouse_executor::backends::Backends;
use roundhouse_image_tokens::{ImageGrid, Preprocessed, encode, plain_places, token_places};
use roundhouse_proto::compiler::CompileOptions;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, ContentPart, GenerateRequest, Image, StoppingOptions, TokenizeRequest,
    content_part, generate_request, image, tokenize_request,
};
use roundhouse_tests::golden_images::{VisionLanguageModel, vision_language_models};
use roundhouse_tests::harness::{
    Executor, Gate, GatedRuntime, LoadedEngine, compile_options, compile_request, engine_files, shared,
};
use roundhouse_vision::{Arrangement, ImageProcessor, RgbImage};

/// Positions of the tiny models.
pub(crate) const MAX_SEQ_LEN: u32 = 256;

/// A picture, as pixels and as a PNG.
#[derive(Clone)]
pub(crate) struct Picture {
    pub(crate) pixels: RgbImage,
    pub(crate) png: Vec<u8>,
}

/// A picture of its own for each seed.
pub(crate) fn picture(seed: u32, width: u32, height: u32) -> Picture {
    let value = |index: u32| ((index * index * (seed + 3) + index * 31 * (seed + 1)) / 7 % 256) as u8;
    let pixels: Vec<u8> = (0..width * height * 3).map(value).collect();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    Picture { pixels: RgbImage::new(width, height, pixels).unwrap(), png }
}

/// A part of a user's turn.
#[derive(Clone)]
pub(crate) enum Part {
    Text(&'static str),
    Image(Picture),
}

/// A user's message.
pub(crate) fn user(parts: &[Part]) -> ChatMessage {
    let part = |part: &Part| match part {
        Part::Text(text) => content_part::Part::Text((*text).to_owned()),
        Part::Image(picture) => content_part::Part::Image(data(&picture.png)),
    };
    let parts = parts.iter().map(|each| ContentPart { part: Some(part(each)) }).collect();
    ChatMessage { role: "user".to_owned(), parts, ..ChatMessage::default() }
}

/// An image in the request itself.
pub(crate) fn data(bytes: &[u8]) -> Image {
    Image { source: Some(image::Source::Data(bytes.to_vec())) }
}

/// Greedy generation of exactly `max_tokens` tokens from messages, with the prompt in the answer.
pub(crate) fn ask(messages: Vec<ChatMessage>, max_tokens: u32) -> GenerateRequest {
    let mut request = roundhouse_tests::harness::chat(&[], max_tokens);
    request.input =
        Some(generate_request::Input::Messages(ChatMessages { messages, add_generation_prompt: None }));
    request.response.get_or_insert_default().echo = Some(true);
    request.stopping = Some(StoppingOptions { max_tokens: Some(max_tokens), ..request.stopping.unwrap() });
    request
}

/// A vision-language engine in an executor of its own, and the same engine to run by hand.
pub(crate) struct Served {
    pub(crate) golden: VisionLanguageModel,
    pub(crate) executor: Executor,
    pub(crate) engine: LoadedEngine,
    model: Box<dyn Model>,
    vision: VisionInfo,
    processor: ImageProcessor,
    /// The placeholder.
    pub(crate) token: u32,
    /// What the template writes for an image.
    mark: &'static str,
}

/// Each of the tiny models.
pub(crate) async fn served(change: impl Fn(&mut ExecutorConfig)) -> Vec<Served> {
    let mut all = Vec::new();
    for golden in vision_language_models().unwrap() {
        let executor = shared().await.unwrap().executor_alone(&change).await.unwrap();
        all.push(serve(golden, executor).await);
    }
    all
}

/// As [`served`], each with the gate of its steps.
pub(crate) async fn served_behind_gates() -> Vec<(Served, Gate)> {
    let mut all = Vec::new();
    for golden in vision_language_models().unwrap() {
        let shared = shared().await.unwrap();
        let (runtime, gate) = GatedRuntime::new(Arc::new(CpuRuntime::new(CpuOptions { threads: Some(2) })));
        let backends = Backends::only(Arc::new(runtime), ComputeCapabilities::NONE);
        let executor = Executor::start_with(&shared.store(), &shared.folder, |_| backends, |_| {}).await;
        all.push((serve(golden, executor.unwrap()).await, gate));
    }
    all
}

async fn serve(golden: VisionLanguageModel, executor: Executor) -> Served {
    let shared = shared().await.unwrap();
    let options = CompileOptions {
        max_seq_len: Some(MAX_SEQ_LEN),
        ..compile_options(Precision::Fp32, CacheKind::InPlace)
    };
    let key = shared.compiler.key(compile_request(&golden.checkpoint, options)).await.unwrap();
    let pulled = engine_files(&shared, &key).await.unwrap();
    let files = pulled.files();
    let vision = files.manifest.info.vision.clone().unwrap();
    let model = CpuRuntime::new(CpuOptions { threads: Some(2) }).load(files).unwrap();
    let config = std::fs::read(files.path(blob_names::PREPROCESSOR_CONFIG).unwrap()).unwrap();
    let tokens_per_tile = match vision.patches {
        Patches::Tiles { tokens, .. } => Some(tokens as usize),
        Patches::Grid { .. } => None,
    };
    let processor =
        ImageProcessor::from_config(&serde_json::from_slice(&config).unwrap(), tokens_per_tile).unwrap();
    let engine = executor.engine(&key).await.unwrap();
    let mark = match vision.patches {
        Patches::Grid { .. } => "<|vision_start|><|image_pad|><|vision_end|>",
        Patches::Tiles { .. } => "<img><IMG_CONTEXT></img>",
    };
    let placeholder = tokenize(&engine, &vision.image_token).await;
    assert_eq!(placeholder.len(), 1, "{}", vision.image_token);
    Served { golden, executor, engine, model, vision, processor, token: placeholder[0], mark }
}

/// The tokens of a text as it is.
async fn tokenize(engine: &LoadedEngine, text: &str) -> Vec<u32> {
    let request = TokenizeRequest {
        engine: Some(engine.key.clone()),
        input: Some(tokenize_request::Input::Prompt(text.to_owned())),
        add_special_tokens: Some(false),
    };
    engine.executor.client.clone().tokenize(request).await.unwrap().into_inner().token_ids
}

/// A prompt as the model should get it.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// Where each picture is in it.
    pub(crate) images: Vec<(usize, Picture)>,
}

impl Served {
    /// A user's turn as the templates write it: without the line break that follows a block.
    pub(crate) fn turn(&self, parts: &[Part]) -> String {
        let parts = parts.iter().map(|part| match part {
            Part::Text(text) => text,
            Part::Image(_) => self.mark,
        });
        format!("[user] {}", parts.collect::<String>())
    }

    /// A rendered conversation, with as many placeholders as the pictures have tokens.
    pub(crate) async fn prompt(&self, rendered: &str, pictures: &[Picture]) -> Prompt {
        let (mut tokens, mut images) = (Vec::new(), Vec::new());
        let mut rest = pictures.iter();
        for token in tokenize(&self.engine, rendered).await {
            if token == self.token {
                let picture = rest.next().unwrap();
                let (width, height) = (picture.pixels.width(), picture.pixels.height());
                images.push((tokens.len(), picture.clone()));
                let length = tokens.len() + self.processor.layout(width, height).unwrap().tokens;
                tokens.resize(length, token);
            } else {
                tokens.push(token);
            }
        }
        assert!(rest.next().is_none());
        Prompt { tokens, images }
    }

    /// The prompt of one turn.
    pub(crate) async fn first_turn(&self, parts: &[Part]) -> Prompt {
        let pictures = parts.iter().filter_map(|part| match part {
            Part::Image(picture) => Some(picture.clone()),
            Part::Text(_) => None,
        });
        let rendered = format!("<s>{}[assistant] ", self.turn(parts));
        self.prompt(&rendered, &pictures.collect::<Vec<_>>()).await
    }

    /// What the engine answers, without the service.
    pub(crate) fn by_hand(&self, prompt: &Prompt, steps: usize) -> Vec<u32> {
        let mut cache = self.model.new_cache(MAX_SEQ_LEN as usize).unwrap();
        for (first, picture) in &prompt.images {
            cache.place_image(self.image(*first, picture)).unwrap();
        }
        let (last, before) = prompt.tokens.split_last().unwrap();
        let mut logits = Vec::new();
        let sequence = Sequence {
            cache: cache.as_mut(),
            tokens: before,
            request: LogitsRequest::None,
            logits: &mut logits,
        };
        self.model.forward(&mut [sequence]).unwrap();
        let mut found = Vec::new();
        let mut sequence = [GreedySequence { cache: cache.as_mut(), token: *last }];
        let runs = self.model.decode_greedily(&mut sequence, steps, &mut |tokens| {
            found.extend_from_slice(tokens);
            ControlFlow::Continue(())
        });
        assert!(runs.unwrap());
        found
    }

    fn image(&self, first: usize, picture: &Picture) -> ImageTokens {
        let processed = self.processor.process(&picture.pixels).unwrap();
        let pixel_values = &processed.pixel_values[..];
        let (mut features, (places, extent)) = match (processed.layout.arrangement, self.vision.patches) {
            (
                Arrangement::Grid { grid_thw: [frames, height, width], .. },
                Patches::Grid { spatial_merge_size, .. },
            ) => {
                let grid = ImageGrid { frames: frames as u32, height: height as u32, width: width as u32 };
                let images = Preprocessed::Patches { pixel_values, grids: &[grid] };
                (
                    encode(&*self.model, &self.vision, images).unwrap(),
                    token_places(grid, spatial_merge_size).unwrap(),
                )
            }
            _ => {
                let images = Preprocessed::Tiles { pixel_values, tiles: &[processed.layout.shape[0]] };
                (
                    encode(&*self.model, &self.vision, images).unwrap(),
                    plain_places(processed.layout.tokens).unwrap(),
                )
            }
        };
        ImageTokens { first, features: features.remove(0), places: places.into(), extent }
    }

    /// Images that were looked for, and those that were found.
    pub(crate) async fn image_cache(&self) -> (u64, u64) {
        let load = self.executor.get_load().await.unwrap();
        (load.image_cache_queries, load.image_cache_hits)
    }
}
