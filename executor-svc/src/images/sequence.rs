//! Images at their places in a sequence of tokens.

use roundhouse_backend::ImageTokens;

use super::EncodedImage;

/// An image in a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceImage {
    /// The index of its first token.
    pub first: usize,
    /// What it is.
    pub image: EncodedImage,
}

/// A prompt with another number of placeholders than images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rendered prompt has {placeholders} placeholders of images for {images} images: text must not spell them"
)]
pub struct WrongPlaceholders {
    /// In the tokens.
    pub placeholders: usize,
    /// Given.
    pub images: usize,
}

impl SequenceImage {
    /// The index after its last token.
    #[must_use]
    pub fn end(&self) -> usize {
        self.first.saturating_add(self.image.tokens())
    }

    /// As a cache takes it.
    #[must_use]
    pub fn placed(&self) -> ImageTokens {
        ImageTokens {
            first: self.first,
            features: self.image.features.clone(),
            places: self.image.places.clone(),
            extent: self.image.extent,
        }
    }
}

/// Puts as many placeholders in the place of each image's one as it has tokens.
///
/// # Errors
/// [`WrongPlaceholders`].
pub fn expand(
    tokens: &[u32],
    placeholder: u32,
    images: &[EncodedImage],
) -> Result<(Vec<u32>, Vec<SequenceImage>), WrongPlaceholders> {
    let placeholders = tokens.iter().filter(|&&token| token == placeholder).count();
    if placeholders != images.len() {
        return Err(WrongPlaceholders { placeholders, images: images.len() });
    }
    let mut expanded = Vec::with_capacity(tokens.len());
    let mut placed = Vec::with_capacity(images.len());
    let mut images = images.iter();
    for &token in tokens {
        match images.as_slice().first().filter(|_| token == placeholder) {
            Some(image) => {
                placed.push(SequenceImage { first: expanded.len(), image: image.clone() });
                expanded.resize(expanded.len() + image.tokens(), placeholder);
                images.next();
            }
            None => expanded.push(token),
        }
    }
    Ok((expanded, placed))
}

/// The first token from which the images of two sequences are not the same.
#[must_use]
pub fn first_difference(some: &[SequenceImage], others: &[SequenceImage]) -> usize {
    let is_same =
        |a: &SequenceImage, b: &SequenceImage| a.first == b.first && a.image.digest == b.image.digest;
    let same = some.iter().zip(others).take_while(|(a, b)| is_same(a, b)).count();
    let next = |images: &[SequenceImage]| images.get(same).map_or(usize::MAX, |image| image.first);
    next(some).min(next(others))
}

#[cfg(test)]
mod tests {
    use super::super::test_support::image;
    use super::*;

    const PAD: u32 = 9;

    #[test]
    fn each_placeholder_becomes_as_many_as_its_image_has_tokens() {
        let images = [image(1, 3), image(2, 1)];
        let (tokens, placed) = expand(&[1, PAD, 2, PAD, 3], PAD, &images).unwrap();
        assert_eq!(tokens, [1, PAD, PAD, PAD, 2, PAD, 3]);
        let places: Vec<_> = placed.iter().map(|image| image.first..image.end()).collect();
        assert_eq!(places, [1..4, 5..6]);
        assert_eq!(placed[1].image, images[1]);
    }

    #[test]
    fn placeholders_that_text_spells_are_refused() {
        for (tokens, images) in [(&[PAD, PAD][..], 1), (&[1], 1), (&[PAD], 0)] {
            let images: Vec<_> = (0..images).map(|side| image(side + 1, 2)).collect();
            assert!(expand(tokens, PAD, &images).is_err(), "{tokens:?}");
        }
    }

    #[test]
    fn sequences_differ_from_the_first_image_that_is_another() {
        let of = |images: &[(usize, u32)]| -> Vec<SequenceImage> {
            images.iter().map(|&(first, side)| SequenceImage { first, image: image(side, 2) }).collect()
        };
        let two = of(&[(3, 1), (8, 2)]);
        for (other, difference) in [
            (of(&[(3, 1), (8, 2)]), usize::MAX),
            (of(&[(3, 1), (8, 3)]), 8),
            (of(&[(3, 1), (7, 2)]), 7),
            (of(&[(3, 1)]), 8),
            (of(&[(3, 2), (8, 2)]), 3),
            (of(&[]), 3),
        ] {
            assert_eq!(first_difference(&two, &other), difference);
            assert_eq!(first_difference(&other, &two), difference);
        }
    }
}
