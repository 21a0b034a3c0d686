//! What an engine makes of images.

use std::path::Path;
use std::sync::Arc;

use roundhouse_backend::{Model, POSITION_AXES};
use roundhouse_engine::{Component, EngineFiles, Patches, VisionInfo, blob_names};
use roundhouse_image_tokens::{EncodeError, ImageGrid, Preprocessed, encode, plain_places, token_places};
use roundhouse_text::Tokenizer;
use roundhouse_vision::{Arrangement, ImageLayout, ImageProcessor, ProcessedImage, VisionError};

/// A size of images that shows what a processor makes of them, in pixels a side.
const PROBE_SIDE: u32 = 256;

/// How an engine takes images.
#[derive(Debug, Clone)]
pub struct ImageInput {
    processor: ImageProcessor,
    vision: VisionInfo,
    token: u32,
}

/// Why an engine takes no images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoImages {
    /// It is a text model.
    #[error("the engine's model takes text only")]
    TextModel,
    /// The compiler found no processor in the checkpoint.
    #[error("the engine has no {name}: its checkpoint does not say how images are processed")]
    NoProcessor {
        /// The blob.
        name: &'static str,
    },
    /// The backend does not run the vision side.
    #[error("the engine's backend has no component {component} of it")]
    NoComponent {
        /// What is missing.
        component: Component,
    },
}

/// A vision side that contradicts itself or is not reproduced.
#[derive(Debug, thiserror::Error)]
pub enum ImageInputError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no JSON.
    #[error("preprocessor_config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// The processor is not reproduced.
    #[error(transparent)]
    Processor(#[from] VisionError),
    /// The processor's images are not the vision tower's.
    #[error("preprocessor_config.json makes {processor} of an image, the vision tower takes {tower}")]
    Contradiction {
        /// What the processor makes.
        processor: String,
        /// What the tower takes.
        tower: String,
    },
    /// The tokenizer does not know the placeholder.
    #[error("the tokenizer has no token {0:?}, which stands for images")]
    NoToken(String),
}

impl ImageInput {
    /// That of an engine's files; the inner error where it has none.
    ///
    /// # Errors
    /// [`ImageInputError`].
    pub fn read(
        files: &EngineFiles,
        model: &dyn Model,
        tokenizer: &Tokenizer,
    ) -> Result<Result<Self, NoImages>, ImageInputError> {
        let Some(vision) = &files.manifest.info.vision else { return Ok(Err(NoImages::TextModel)) };
        let Some(path) = files.paths.get(blob_names::PREPROCESSOR_CONFIG) else {
            return Ok(Err(NoImages::NoProcessor { name: blob_names::PREPROCESSOR_CONFIG }));
        };
        let processor = read_processor(path, vision)?;
        check(&processor, vision)?;
        for component in [Component::Vision, Component::Projector] {
            if model.component(component).is_none() {
                return Ok(Err(NoImages::NoComponent { component }));
            }
        }
        let token = vision.image_token_id.or_else(|| tokenizer.token_id(&vision.image_token));
        let token = token.ok_or_else(|| ImageInputError::NoToken(vision.image_token.clone()))?;
        Ok(Ok(Self { processor, vision: vision.clone(), token }))
    }

    /// How images are processed.
    #[must_use]
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// The token that stands for an image in a rendered prompt, and for each of its rows in a sequence.
    #[must_use]
    pub fn token(&self) -> u32 {
        self.token
    }

    /// Where an image's tokens are, and how many positions it takes.
    pub(super) fn places(
        &self,
        layout: &ImageLayout,
    ) -> Result<(Vec<[u32; POSITION_AXES]>, u32), EncodeError> {
        let placed = match (layout.arrangement, self.vision.patches) {
            (Arrangement::Grid { grid_thw, .. }, Patches::Grid { spatial_merge_size, .. }) => {
                token_places(grid(grid_thw), spatial_merge_size)
            }
            _ => plain_places(layout.tokens),
        };
        Ok(placed?)
    }

    /// Runs the vision side over an image: its features, `[tokens, feature_size]`.
    pub(super) fn features(
        &self,
        model: &dyn Model,
        image: &ProcessedImage,
    ) -> Result<Arc<[f32]>, EncodeError> {
        let pixel_values = &image.pixel_values[..];
        let tiles = [image.layout.shape.first().copied().unwrap_or(0)];
        let mut encoded = match image.layout.arrangement {
            Arrangement::Grid { grid_thw, .. } => {
                let grids = [grid(grid_thw)];
                encode(model, &self.vision, Preprocessed::Patches { pixel_values, grids: &grids })?
            }
            Arrangement::Tiles { .. } => {
                encode(model, &self.vision, Preprocessed::Tiles { pixel_values, tiles: &tiles })?
            }
        };
        Ok(encoded.pop().unwrap_or_default())
    }
}

fn read_processor(path: &Path, vision: &VisionInfo) -> Result<ImageProcessor, ImageInputError> {
    let bytes = std::fs::read(path)
        .map_err(|source| ImageInputError::Read { path: path.display().to_string(), source })?;
    let tokens_per_tile = match vision.patches {
        Patches::Tiles { tokens, .. } => usize::try_from(tokens).ok(),
        Patches::Grid { .. } => None,
    };
    Ok(ImageProcessor::from_config(&serde_json::from_slice(&bytes)?, tokens_per_tile)?)
}

/// Whether the processor makes what the tower takes.
fn check(processor: &ImageProcessor, vision: &VisionInfo) -> Result<(), ImageInputError> {
    const CHANNELS: usize = 3;
    let layout = processor.layout(PROBE_SIDE, PROBE_SIDE)?;
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let (fits, tower) = match vision.patches {
        Patches::Grid { patch_size, temporal_patch_size, spatial_merge_size, .. } => {
            let columns = CHANNELS * size(temporal_patch_size) * size(patch_size) * size(patch_size);
            let merges = matches!(layout.arrangement, Arrangement::Grid { merge_size, .. } if merge_size == size(spatial_merge_size));
            let what =
                format!("patches of {columns} values, {spatial_merge_size} by {spatial_merge_size} a token");
            (merges && layout.shape.get(1..) == Some(&[columns][..]), what)
        }
        Patches::Tiles { image_size, .. } => {
            let tile = [CHANNELS, size(image_size), size(image_size)];
            (layout.shape.get(1..) == Some(&tile[..]), format!("tiles of {tile:?}"))
        }
    };
    if fits {
        return Ok(());
    }
    let processor = format!("{:?} of {:?}", layout.arrangement, layout.shape);
    Err(ImageInputError::Contradiction { processor, tower })
}

fn grid([frames, height, width]: [usize; 3]) -> ImageGrid {
    let side = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    ImageGrid { frames: side(frames), height: side(height), width: side(width) }
}
