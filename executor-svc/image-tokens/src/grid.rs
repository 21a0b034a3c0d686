//! How many patches an image has.

/// The patches of an image, as `image_grid_thw` of Transformers' processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGrid {
    /// Along time: 1 for an image.
    pub frames: u32,
    /// From top to bottom.
    pub height: u32,
    /// From left to right.
    pub width: u32,
}

/// A grid that no vision tower takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GridError {
    /// A side is no multiple of a token's.
    #[error("{grid:?}: expected a height and width of a multiple of {merge} patches, and one frame or more")]
    Size {
        /// The grid.
        grid: ImageGrid,
        /// Patches of a token's side.
        merge: u32,
    },
    /// More patches than are counted.
    #[error("the images have more than {most} patches")]
    TooMany {
        /// The most.
        most: usize,
    },
    /// A window that holds no token, or a token without patches.
    #[error(
        "windows of {window_size} pixels, tokens of {merge} patches, patches of {patch_size} pixels a side"
    )]
    Window {
        /// Pixels of a window's side.
        window_size: u32,
        /// Patches of a token's side.
        merge: u32,
        /// Pixels of a patch's side.
        patch_size: u32,
    },
}

impl ImageGrid {
    /// The most patches of all images of a call: far more than any sequence holds.
    pub const MAX_PATCHES: usize = 1 << 24;

    /// How many patches there are.
    #[must_use]
    pub fn patches(self) -> usize {
        let sides = [self.frames, self.height, self.width];
        let sides = sides.map(|side| usize::try_from(side).unwrap_or(usize::MAX));
        sides.into_iter().fold(1, usize::saturating_mul)
    }

    /// How many tokens there are, each of `merge` by `merge` patches.
    ///
    /// # Errors
    /// [`GridError::Size`] where that does not divide the sides.
    pub fn tokens(self, merge: u32) -> Result<usize, GridError> {
        let [frames, height, width] = self.token_sides(merge)?;
        Ok([frames, height, width].into_iter().map(|side| side as usize).fold(1, usize::saturating_mul))
    }

    /// Frames, and height and width in tokens.
    pub(crate) fn token_sides(self, merge: u32) -> Result<[u32; 3], GridError> {
        let sides = [self.height, self.width];
        let fits = |side: u32| side > 0 && merge > 0 && side.is_multiple_of(merge);
        if self.frames == 0 || !sides.into_iter().all(fits) {
            return Err(GridError::Size { grid: self, merge });
        }
        Ok([self.frames, self.height / merge, self.width / merge])
    }
}
