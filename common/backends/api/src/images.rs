//! Images among the tokens of a sequence: which tokens they are, what stands for the tokens' embeddings, and where they
//! place what comes after them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::BackendError;

/// How many axes the positions of a vision-language model have: time, height and width.
pub const POSITION_AXES: usize = 3;

/// An image among a sequence's tokens.
#[derive(Clone, PartialEq)]
pub struct ImageTokens {
    /// The index of its first token in the sequence.
    pub first: usize,
    /// What its tokens' embeddings are, `[tokens, hidden_size]`, row-major: what the engine's projector gave.
    pub features: Arc<[f32]>,
    /// Its tokens' places along time, height and width, `[tokens]`, counted from the position at which it begins.
    pub places: Arc<[[u32; POSITION_AXES]]>,
    /// How many positions it takes: what comes after it goes on so many after the one at which it begins.
    pub extent: u32,
}

impl ImageTokens {
    /// Its tokens' indices in the sequence.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        self.first..self.first.saturating_add(self.places.len())
    }

    /// The features of the token `index` of the sequence.
    fn row(&self, index: usize) -> Option<&[f32]> {
        let width = self.features.len().checked_div(self.places.len())?;
        let place = index.checked_sub(self.first)?;
        self.features.chunks_exact(width.max(1)).nth(place)
    }
}

/// Sizes instead of numbers.
impl fmt::Debug for ImageTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageTokens")
            .field("tokens", &self.tokens())
            .field("features", &self.features.len())
            .field("extent", &self.extent)
            .finish()
    }
}

/// The images of a sequence, in order: what a cache remembers of them.
#[derive(Debug, Clone, Default)]
pub struct SequenceImages {
    images: Vec<ImageTokens>,
}

impl SequenceImages {
    /// No images.
    #[must_use]
    pub const fn new() -> Self {
        Self { images: Vec::new() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Adds an image to a sequence of `len` tokens and of at most `capacity`, in a model whose features are
    /// `hidden_size` wide.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for an image without tokens, with features of another width, or that begins
    /// before the sequence's end or within an earlier image; [`BackendError::CacheFull`] for one beyond the capacity.
    pub fn place(
        &mut self,
        image: ImageTokens,
        len: usize,
        capacity: usize,
        hidden_size: usize,
    ) -> Result<(), BackendError> {
        let tokens = image.tokens();
        let free = self.images.last().map_or(len, |last| last.tokens().end.max(len));
        let invalid = |what: String| Err(BackendError::InvalidArgument(what));
        if tokens.is_empty() || image.features.len() != tokens.len().saturating_mul(hidden_size) {
            let (found, count) = (image.features.len(), tokens.len());
            return invalid(format!("an image of {count} tokens of {hidden_size} with {found} features"));
        }
        if tokens.start < free {
            return invalid(format!("an image at {tokens:?} of a sequence that is placed up to {free}"));
        }
        if tokens.end > capacity {
            return Err(BackendError::CacheFull { tokens: tokens.end - len, length: len, capacity });
        }
        self.images.push(image);
        Ok(())
    }

    /// Forgets the images that begin at `len` or later.
    pub fn truncate(&mut self, len: usize) {
        self.images.retain(|image| image.first < len);
    }

    /// The positions of the tokens `tokens` along time, height and width.
    pub fn positions(&self, tokens: Range<usize>) -> impl Iterator<Item = [i64; POSITION_AXES]> + '_ {
        let mut images = self.images.iter().peekable();
        // What positions are more than indices, for text from here on.
        let mut offset = 0_i64;
        tokens.map(move |index| {
            while let Some(image) = images.next_if(|image| image.tokens().end <= index) {
                offset += i64::from(image.extent) - image.places.len() as i64;
            }
            match images.peek().filter(|image| image.first <= index) {
                Some(image) => {
                    let begins = image.first as i64 + offset;
                    image.places[index - image.first].map(|place| begins + i64::from(place))
                }
                None => [index as i64 + offset; POSITION_AXES],
            }
        })
    }

    /// The tokens among `tokens` that are an image's, counted from the first of them, with their features.
    pub fn rows(&self, tokens: Range<usize>) -> impl Iterator<Item = (usize, &[f32])> {
        let overlaps = self.images.iter().map(move |image| {
            let own = image.tokens();
            (image, own.start.max(tokens.start)..own.end.min(tokens.end), tokens.start)
        });
        overlaps.flat_map(|(image, tokens, first)| {
            tokens.filter_map(move |index| Some((index - first, image.row(index)?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of three tokens each.
    fn image(first: usize) -> ImageTokens {
        let places: Vec<_> = (0..2).flat_map(|row| (0..3).map(move |column| [0, row, column])).collect();
        let features = (0..12_u8).map(f32::from).collect();
        ImageTokens { first, features, places: places.into(), extent: 3 }
    }

    fn placed(firsts: &[usize]) -> SequenceImages {
        let mut images = SequenceImages::new();
        firsts.iter().for_each(|&first| images.place(image(first), 0, 100, 2).unwrap());
        images
    }

    #[test]
    fn text_without_images_is_where_its_index_is() {
        let positions: Vec<_> = SequenceImages::new().positions(5..7).collect();
        assert_eq!(positions, [[5; 3], [6; 3]]);
    }

    #[test]
    fn text_goes_on_behind_the_largest_position_of_an_image() {
        let images = placed(&[2, 9]);
        let positions: Vec<_> = images.positions(0..17).collect();
        let first = [[2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4]];
        assert_eq!(positions[..2], [[0; 3], [1; 3]]);
        assert_eq!(positions[2..8], first);
        assert_eq!(positions[8], [5; 3]);
        assert_eq!(positions[9..15], first.map(|place| place.map(|axis| axis + 4)));
        assert_eq!(positions[15..], [[9; 3], [10; 3]]);
        for start in 0..17 {
            let tail: Vec<_> = images.positions(start..17).collect();
            assert_eq!(tail, positions[start..], "from {start}");
        }
    }

    #[test]
    fn rows_of_any_tokens_are_found() {
        let images = placed(&[2, 9]);
        let rows: Vec<_> = images.rows(6..11).collect();
        let expected: [(usize, &[f32]); 4] =
            [(0, &[8.0, 9.0]), (1, &[10.0, 11.0]), (3, &[0.0, 1.0]), (4, &[2.0, 3.0])];
        assert_eq!(rows, expected);
        assert_eq!(images.rows(0..2).count(), 0);
    }

    #[test]
    fn a_cut_forgets_images_that_begin_behind_it() {
        let mut images = placed(&[2, 9]);
        images.truncate(9);
        assert_eq!(images.positions(9..10).next(), Some([6; 3]));
        images.truncate(3);
        assert_eq!(
            images.positions(3..4).next(),
            Some([2, 2, 3]),
            "the rest of a cut image is still to come"
        );
        images.truncate(2);
        assert!(images.is_empty());
    }

    #[test]
    fn images_that_do_not_fit_are_refused() {
        let mut images = placed(&[2]);
        let refused = |images: &mut SequenceImages, first, len, capacity, hidden_size| {
            images.place(image(first), len, capacity, hidden_size).unwrap_err()
        };
        for (first, len, hidden_size) in [(7, 0, 2), (9, 10, 2), (8, 0, 3)] {
            let error = refused(&mut images, first, len, 100, hidden_size);
            assert!(matches!(error, BackendError::InvalidArgument(_)), "{error}");
        }
        let error = refused(&mut images, 8, 2, 13, 2);
        assert!(matches!(error, BackendError::CacheFull { tokens: 12, length: 2, capacity: 13 }), "{error}");
        images.place(image(8), 2, 14, 2).unwrap();
    }
}
