//! Runs the vision side of an engine.

use std::sync::Arc;

use roundhouse_backend::{BackendError, ComponentModel, Model, NamedTensor, OutputTensor, TensorElements};
use roundhouse_engine::{Component, Patches, VisionInfo};

use crate::{GridError, ImageGrid, PatchWindows};

/// Images as pre-processing left them, one after the other.
#[derive(Debug, Clone, Copy)]
pub enum Preprocessed<'a> {
    /// Grids of patches.
    Patches {
        /// `[patches, columns]`: the normalised pixels of each patch, row-major.
        pixel_values: &'a [f32],
        /// Each image's patches.
        grids: &'a [ImageGrid],
    },
    /// Tiles of one size.
    Tiles {
        /// `[tiles, channels, image_size, image_size]`: normalised pixels, row-major.
        pixel_values: &'a [f32],
        /// How many tiles each image has.
        tiles: &'a [usize],
    },
}

/// Images that cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Sizes that do not go with the model.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// The engine has no such component.
    #[error("the engine has no component {0}")]
    NoComponent(Component),
    /// Images taken apart in one way, and a model that takes them apart in another.
    #[error("the model takes images as {0:?}")]
    OtherForm(Patches),
    /// A number of pixels that is not what the sizes say.
    #[error("{found} numbers of pixels for {count} patches or tiles")]
    Pixels {
        /// Given.
        found: usize,
        /// What the sizes say.
        count: usize,
    },
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The features of each image, `[tokens, feature_size]`, row-major, of images given together.
///
/// # Errors
/// [`EncodeError`].
pub fn encode(
    model: &dyn Model,
    vision: &VisionInfo,
    images: Preprocessed<'_>,
) -> Result<Vec<Arc<[f32]>>, EncodeError> {
    let component = |name| model.component(name).ok_or(EncodeError::NoComponent(name));
    let (tower, projector) = (component(Component::Vision)?, component(Component::Projector)?);
    let (features, tokens) = match (vision.patches, images) {
        (
            Patches::Grid { patch_size, spatial_merge_size, window_size, .. },
            Preprocessed::Patches { pixel_values, grids },
        ) => {
            let windows = PatchWindows::new(grids, spatial_merge_size, window_size, patch_size)?;
            let hidden_states = run_tower(tower, pixel_values, &windows)?;
            let features = run_projector(projector, &hidden_states, &windows)?;
            let tokens = grids.iter().map(|grid| grid.tokens(spatial_merge_size));
            (features, tokens.collect::<Result<Vec<usize>, _>>()?)
        }
        (Patches::Tiles { image_size, tokens }, Preprocessed::Tiles { pixel_values, tiles }) => {
            let features = run_tiles([tower, projector], pixel_values, tiles.iter().sum(), image_size)?;
            let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
            (features, tiles.iter().map(|tiles| tiles.saturating_mul(tokens)).collect())
        }
        (form, _) => return Err(EncodeError::OtherForm(form)),
    };
    let width = usize::try_from(vision.feature_size).unwrap_or(usize::MAX);
    let mut rest = &features[..];
    let split = tokens.into_iter().map(|tokens| {
        let (own, others) = rest.split_at(tokens.saturating_mul(width).min(rest.len()));
        rest = others;
        own.into()
    });
    Ok(split.collect())
}

/// Both components over tiles.
fn run_tiles(
    [tower, projector]: [&dyn ComponentModel; 2],
    pixels: &[f32],
    tiles: usize,
    image_size: u32,
) -> Result<Vec<f32>, EncodeError> {
    let side = usize::try_from(image_size).unwrap_or(usize::MAX);
    let plane = side.saturating_mul(side).saturating_mul(tiles);
    let channels = pixels.len().checked_div(plane).filter(|channels| channels * plane == pixels.len());
    let channels = channels.ok_or(EncodeError::Pixels { found: pixels.len(), count: tiles })?;
    let shape = [tiles, channels, side, side];
    let OutputTensor { shape, values } = tower.run(&[floats("pixel_values", &shape, pixels)])?;
    Ok(projector.run(&[floats("hidden_states", &shape, &values)])?.values)
}

fn run_tower(
    tower: &dyn ComponentModel,
    pixels: &[f32],
    windows: &PatchWindows,
) -> Result<OutputTensor, EncodeError> {
    let (patches, tokens) = (windows.window_segment_ids.len(), windows.window_index.len());
    let columns = pixels.len().checked_div(patches).filter(|columns| columns * patches == pixels.len());
    let columns = columns.ok_or(EncodeError::Pixels { found: pixels.len(), count: patches })?;
    let (by_column, by_axis) = ([patches, columns], [1, 2, patches]);
    let (by_token, by_patch) = ([tokens], [1, patches]);
    let inputs = [
        floats("pixel_values", &by_column, pixels),
        integers("position_ids", &by_axis, &windows.position_ids),
        integers("window_index", &by_token, &windows.window_index),
        integers("window_segment_ids", &by_patch, &windows.window_segment_ids),
        integers("image_segment_ids", &by_patch, &windows.image_segment_ids),
    ];
    Ok(tower.run(&inputs)?)
}

fn run_projector(
    projector: &dyn ComponentModel,
    hidden_states: &OutputTensor,
    windows: &PatchWindows,
) -> Result<Vec<f32>, EncodeError> {
    let by_token = [windows.window_index.len()];
    let inputs = [
        floats("hidden_states", &hidden_states.shape, &hidden_states.values),
        integers("reverse_index", &by_token, &windows.reverse_index),
    ];
    Ok(projector.run(&inputs)?.values)
}

fn floats<'a>(name: &'a str, shape: &'a [usize], values: &'a [f32]) -> NamedTensor<'a> {
    NamedTensor { name, shape, elements: TensorElements::Floats(values) }
}

fn integers<'a>(name: &'a str, shape: &'a [usize], values: &'a [i64]) -> NamedTensor<'a> {
    NamedTensor { name, shape, elements: TensorElements::Integers(values) }
}
