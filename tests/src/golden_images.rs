//! Tiny vision-language checkpoints, and what Transformers computes with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use safetensors::{Dtype, SafeTensors};

use crate::golden::{Logits, folder, logits, token_ids};

/// The checkpoints, each with the architecture of its config.
const MODELS: [(&str, &str); 2] =
    [("tiny-eagle2", "Eagle2ChatModel"), ("tiny-qwen-2.5-vl", "Qwen2_5_VLForConditionalGeneration")];

/// A checkpoint with random weights, images, and prompts that have some of them.
#[derive(Clone, Debug)]
pub struct VisionLanguageModel {
    /// Of the checkpoint's folder.
    pub name: String,
    /// The first of `architectures` of its config.
    pub architecture: &'static str,
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// In the order that cases count them in.
    pub images: Vec<GoldenImage>,
    /// By name.
    pub cases: BTreeMap<String, ImageCase>,
}

/// An image after pre-processing.
#[derive(Clone, Debug)]
pub struct GoldenImage {
    /// `[patches, columns]`, or `[tiles, channels, image_size, image_size]`.
    pub pixel_values: Vec<f32>,
    /// Frames, height and width in patches; `None` of an image in tiles.
    pub grid_thw: Option<[u32; 3]>,
    /// The first dimension of the pixels.
    pub parts: usize,
    /// `[tokens, feature_size]`: what stands for its tokens' embeddings.
    pub features: Vec<f32>,
}

/// A prompt with images, and its greedy continuation.
#[derive(Clone, Debug)]
pub struct ImageCase {
    /// With a placeholder for each token of an image.
    pub prompt_token_ids: Vec<u32>,
    /// Which images, in their order.
    pub images: Vec<usize>,
    /// Of every position of the prompt.
    pub prompt_logits: Logits,
    /// One token a step.
    pub output_token_ids: Vec<u32>,
    /// Row `s` chose `output_token_ids[s]`.
    pub step_logits: Logits,
    /// Of a second turn: the first one's prompt and answer, in tokens.
    pub first_turn: Option<[usize; 2]>,
}

/// All of them.
///
/// # Errors
/// When a golden file cannot be read.
pub fn vision_language_models() -> Result<Vec<VisionLanguageModel>> {
    MODELS.into_iter().map(model).collect()
}

/// Whether an architecture is one of a vision-language model with a checkpoint here.
#[must_use]
pub fn is_vision_language(architecture: &str) -> bool {
    MODELS.iter().any(|(_, known)| *known == architecture)
}

fn model((name, architecture): (&str, &'static str)) -> Result<VisionLanguageModel> {
    let path = folder().join(format!("{name}.images.safetensors"));
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    read(name, architecture, &bytes).with_context(|| path.display().to_string())
}

fn read(name: &str, architecture: &'static str, bytes: &[u8]) -> Result<VisionLanguageModel> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let names = |prefix: &str, suffix: &str| {
        let found = tensors.names().into_iter();
        let found = found.filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
        let mut found: Vec<String> = found.map(str::to_owned).collect();
        found.sort();
        found
    };
    let image = |name: String| {
        let (grid, pixels) = (format!("image.{name}.grid_thw"), format!("image.{name}.pixel_values"));
        let grid_thw = match tensors.names().contains(&grid.as_str()) {
            true => Some(token_ids(&tensors, &grid)?),
            false => None,
        };
        Ok(GoldenImage {
            pixel_values: floats(&tensors, &pixels)?,
            grid_thw: grid_thw.map(|grid| [grid[0], grid[1], grid[2]]),
            parts: tensors.tensor(&pixels)?.shape()[0],
            features: floats(&tensors, &format!("image.{name}.features"))?,
        })
    };
    let case = |name: String| {
        let key = |what: &str| format!("case.{name}.{what}");
        let images = token_ids(&tensors, &key("images"))?;
        let first_turn = match tensors.names().contains(&key("first_turn").as_str()) {
            true => Some(token_ids(&tensors, &key("first_turn"))?),
            false => None,
        };
        let first_turn = first_turn.map(|lengths| [lengths[0] as usize, lengths[1] as usize]);
        let case = ImageCase {
            prompt_token_ids: token_ids(&tensors, &key("input_ids"))?,
            images: images.into_iter().map(|image| image as usize).collect(),
            prompt_logits: logits(&tensors, &key("prompt_logits"))?,
            output_token_ids: token_ids(&tensors, &key("output_ids"))?,
            step_logits: logits(&tensors, &key("step_logits"))?,
            first_turn,
        };
        Ok((name, case))
    };
    Ok(VisionLanguageModel {
        name: name.to_owned(),
        architecture,
        checkpoint: Path::new(&folder()).join(name),
        images: names("image.", ".features").into_iter().map(image).collect::<Result<_>>()?,
        cases: names("case.", ".input_ids").into_iter().map(case).collect::<Result<_>>()?,
    })
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::F32, "{name} has dtype {:?}, expected F32", tensor.dtype());
    let (values, _) = tensor.data().as_chunks::<4>();
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}
