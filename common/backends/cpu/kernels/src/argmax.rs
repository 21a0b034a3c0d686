//! The largest number's place.

use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use crate::softmax::row_max;

/// The index of the largest number, the lowest on ties; NaN counts as smallest. 0 of an empty slice.
#[must_use]
pub fn argmax(isa: Isa, values: &[f32]) -> usize {
    let max = isa.dispatch(Max(values));
    values.iter().position(|&value| value == max).unwrap_or(0)
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        row_max(s, self.0)
    }
}
