//! The order of patches in a vision tower that attends within windows, and what attends to what (Qwen2.5-VL).
//!
//! Patches come from pre-processing token by token: the patches of a token, then those of the token to its right. The tower
//! takes tokens window by window, so that the patches of a window follow each other; windows at the right and lower edges
//! are cut.

use crate::{GridError, ImageGrid};

/// The inputs of a tower's graph that follow from the images' sizes. A *token* is a square of patches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatchWindows {
    /// `[tokens]`: the tokens in the order of windows.
    pub window_index: Vec<i64>,
    /// `[tokens]`: where each token is in that order.
    pub reverse_index: Vec<i64>,
    /// `[2, patches]`: the row of each patch in its image, then the column of each, in the order of windows.
    pub position_ids: Vec<i64>,
    /// `[patches]`: which window each patch is in.
    pub window_segment_ids: Vec<i64>,
    /// `[patches]`: which image, and which frame of it, each patch is in.
    pub image_segment_ids: Vec<i64>,
}

impl PatchWindows {
    /// Those of several images, one after the other. A token is `merge` by `merge` patches of `patch_size` pixels, and a
    /// window as many tokens as `window_size` pixels hold.
    ///
    /// # Errors
    /// [`GridError`] for a grid that tokens do not divide, too many patches, or a window without tokens.
    pub fn new(
        grids: &[ImageGrid],
        merge: u32,
        window_size: u32,
        patch_size: u32,
    ) -> Result<Self, GridError> {
        let window = window_size.checked_div(merge).and_then(|pixels| pixels.checked_div(patch_size));
        let window = window.filter(|&window| window > 0);
        let window = window.ok_or(GridError::Window { window_size, merge, patch_size })?;
        let patches = grids.iter().fold(0_usize, |sum, grid| sum.saturating_add(grid.patches()));
        if patches > ImageGrid::MAX_PATCHES {
            return Err(GridError::TooMany { most: ImageGrid::MAX_PATCHES });
        }
        let mut windows = Self::default();
        let mut columns = Vec::with_capacity(patches);
        let (mut first_token, mut segments, mut frames_before) = (0_i64, 0_i64, 0_i64);
        for grid in grids {
            let [frames, height, width] = grid.token_sides(merge)?;
            for frame in 0..frames {
                for (rows, token_columns) in tiles(height, width, window) {
                    for row in rows {
                        for column in token_columns.clone() {
                            let token = (frame * height + row) * width + column;
                            windows.window_index.push(first_token + i64::from(token));
                            for patch in 0..merge * merge {
                                windows.position_ids.push(i64::from(row * merge + patch / merge));
                                columns.push(i64::from(column * merge + patch % merge));
                                windows.window_segment_ids.push(segments);
                                windows.image_segment_ids.push(frames_before + i64::from(frame));
                            }
                        }
                    }
                    segments += 1;
                }
            }
            frames_before += i64::from(frames);
            first_token += i64::from(frames * height * width);
        }
        windows.position_ids.extend(columns);
        windows.reverse_index = vec![0; windows.window_index.len()];
        for (place, &token) in (0..).zip(&windows.window_index) {
            if let Some(found) = usize::try_from(token).ok().and_then(|at| windows.reverse_index.get_mut(at))
            {
                *found = place;
            }
        }
        Ok(windows)
    }
}

/// The windows of a plane of tokens, row by row: the rows and columns of each.
fn tiles(
    height: u32,
    width: u32,
    window: u32,
) -> impl Iterator<Item = (std::ops::Range<u32>, std::ops::Range<u32>)> {
    let cuts = move |length: u32| {
        let step = usize::try_from(window).unwrap_or(usize::MAX);
        (0..length).step_by(step).map(move |start| start..start.saturating_add(window).min(length))
    };
    cuts(height).flat_map(move |rows| cuts(width).map(move |columns| (rows.clone(), columns)))
}
