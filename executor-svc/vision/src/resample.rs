//! Resizing, to the very values of Pillow 13's `Image.resize` of 8-bit images.
//!
//! A convolution with the filter, widened when the image shrinks (antialiasing), along rows and along columns, with 8 bits between
//! the two and weights of 22 bits of fraction. The crate `fast_image_resize` rounds otherwise: a fifth of its
//! samples differ by one step of 255, and some by several.

use crate::RgbImage;

/// Bits of fraction of a weight: 32, less 8 of a sample and 2 for sums that go beyond 1.
const WEIGHT_BITS: u32 = 32 - 8 - 2;
/// Half of a step, for rounding.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// A resampling filter, by Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// A triangle of radius 1.
    Bilinear,
    /// Keys' cubic convolution with a = −1/2, of radius 2.
    Bicubic,
    /// A sinc windowed by a sinc, of radius 3.
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Bicubic => {
                const A: f64 = -0.5;
                if distance < 1.0 {
                    ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The weights of one direction.
struct Weights {
    /// For each output sample: the first input sample, and how many there are.
    spans: Vec<(usize, usize)>,
    /// For each output sample `longest` weights, of which the span's are used.
    values: Vec<i32>,
    longest: usize,
}

impl Weights {
    fn new(filter: Filter, from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let radius = filter.radius() * stretch;
        let longest = radius.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(to);
        let mut values = vec![0; to * longest];
        let mut floats = Vec::with_capacity(longest);
        for (index, values) in values.chunks_exact_mut(longest).enumerate() {
            let centre = (index as f64 + 0.5) * scale;
            // Toward zero, as a cast of C.
            let first = (centre - radius + 0.5).max(0.0) as usize;
            let end = ((centre + radius + 0.5) as usize).min(from);
            let count = end.saturating_sub(first).min(longest);
            floats.clear();
            let inverse = 1.0 / stretch;
            floats.extend((0..count).map(|tap| filter.at(((tap + first) as f64 - centre + 0.5) * inverse)));
            let sum: f64 = floats.iter().sum();
            for (value, float) in values.iter_mut().zip(&floats) {
                let weight = if sum == 0.0 { *float } else { float / sum };
                let scaled = weight * f64::from(1 << WEIGHT_BITS);
                *value = (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32;
            }
            spans.push((first, count));
        }
        Self { spans, values, longest }
    }

    /// For each output sample: the first input sample, and the weights from there on.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let values = self.values.chunks_exact(self.longest);
        self.spans.iter().zip(values).map(|(&(first, count), values)| (first, &values[..count]))
    }
}

/// Resizes an image to `width` by `height` pixels, neither of which may be 0 (an image without pixels has no size to come from
/// or go to: the image itself is returned).
#[must_use]
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    if width == 0 || height == 0 {
        return image.clone();
    }
    let (from, to) = ((image.width() as usize, image.height() as usize), (width as usize, height as usize));
    let samples = image.pixels();
    let pixels = match (from.0 == to.0, from.1 == to.1) {
        (true, true) => return image.clone(),
        (true, false) => along_columns(samples, from, to.1, filter),
        (false, true) => along_rows(samples, from, to.0, filter),
        (false, false) if columns_first(from, to) => {
            along_rows(&along_columns(samples, from, to.1, filter), (from.0, to.1), to.0, filter)
        }
        (false, false) => {
            along_columns(&along_rows(samples, from, to.0, filter), (to.0, from.1), to.1, filter)
        }
    };
    RgbImage::new(width, height, pixels).unwrap_or_else(|_| image.clone())
}

/// Whether the height goes first: from Pillow 13 on where it shrinks by more than twice the pixels that the width does.
fn columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let less = |from: usize, to: usize| from as i64 - to as i64;
    let height = less(from.1, to.1);
    height > 0 && height > 2 * less(from.0, to.0)
}

/// Changes the width of `[height, width, 3]` samples.
fn along_rows(samples: &[u8], (width, height): (usize, usize), to: usize, filter: Filter) -> Vec<u8> {
    let weights = Weights::new(filter, width, to);
    let mut output = vec![0; to * height * 3];
    for (row, out) in samples.chunks_exact(width * 3).zip(output.chunks_exact_mut(to * 3)) {
        let (row, _) = row.as_chunks::<3>();
        let (out, _) = out.as_chunks_mut::<3>();
        for (out, (first, weights)) in out.iter_mut().zip(weights.iter()) {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in row[first..].iter().zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            *out = sums.map(to_sample);
        }
    }
    output
}

/// Changes the height of `[height, width, 3]` samples.
fn along_columns(samples: &[u8], (width, height): (usize, usize), to: usize, filter: Filter) -> Vec<u8> {
    let weights = Weights::new(filter, height, to);
    let row_len = width * 3;
    let mut output = vec![0; to * row_len];
    let mut sums = vec![HALF; row_len];
    for (out, (first, weights)) in output.chunks_exact_mut(row_len).zip(weights.iter()) {
        sums.fill(HALF);
        for (row, &weight) in samples[first * row_len..].chunks_exact(row_len).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = to_sample(sum);
        }
    }
    output
}

fn to_sample(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_image_stays_plain_in_every_size() {
        let image = RgbImage::new(7, 5, [10, 128, 250].repeat(35)).unwrap();
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for (width, height) in [(1, 1), (7, 9), (3, 5), (64, 48), (200, 1)] {
                let resized = resize(&image, width, height, filter);
                assert_eq!((resized.width(), resized.height()), (width, height));
                assert_eq!(resized.pixels(), [10, 128, 250].repeat((width * height) as usize), "{filter:?}");
            }
        }
    }
}
