//! Where an image's tokens are among a sequence's positions (M-RoPE; Wang et al. 2024).

use roundhouse_backend::POSITION_AXES;

use crate::{GridError, ImageGrid};

/// The places of an image's tokens along time, height and width, in their order: frame by frame, row by row; and how many
/// positions the image takes, which is the longer side of it in tokens.
///
/// # Errors
/// [`GridError`] for a grid that `merge`, the patches of a token's side, does not divide.
pub fn token_places(grid: ImageGrid, merge: u32) -> Result<(Vec<[u32; POSITION_AXES]>, u32), GridError> {
    let [frames, height, width] = grid.token_sides(merge)?;
    if grid.patches() > ImageGrid::MAX_PATCHES {
        return Err(GridError::TooMany { most: ImageGrid::MAX_PATCHES });
    }
    let rows = (0..frames).flat_map(|frame| (0..height).map(move |row| (frame, row)));
    let places = rows.flat_map(|(frame, row)| (0..width).map(move |column| [frame, row, column]));
    Ok((places.collect(), height.max(width)))
}

/// The places of an image's tokens in a model whose positions count up through images as through text; and how many
/// positions it takes, which is one a token.
///
/// # Errors
/// [`GridError::TooMany`] for more tokens than patches are counted.
pub fn plain_places(tokens: usize) -> Result<(Vec<[u32; POSITION_AXES]>, u32), GridError> {
    let count = u32::try_from(tokens).ok().filter(|_| tokens <= ImageGrid::MAX_PATCHES);
    let count = count.ok_or(GridError::TooMany { most: ImageGrid::MAX_PATCHES })?;
    Ok(((0..count).map(|token| [token; POSITION_AXES]).collect(), count))
}
