//! Softmax of a row.

use crate::isa::{Isa, Kernel};
use crate::math;
use crate::simd::Simd;

/// `row[i] = exp(row[i] - max) / Σ exp(row[j] - max)`. A row of nothing but negative infinity becomes zeros.
pub fn softmax(isa: Isa, row: &mut [f32]) {
    isa.dispatch(Softmax(row));
}

struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row = self.0;
        let max = row_max(s, row);
        if max == f32::NEG_INFINITY {
            row.fill(0.0);
            return;
        }
        let sum = exp_in_place(s, row, max);
        let factor = s.splat(1.0 / sum);
        let (len, x) = (row.len(), row.as_mut_ptr());
        for i in (0..len).step_by(S::LANES) {
            let n = (len - i).min(S::LANES);
            // SAFETY: n elements follow i.
            unsafe { s.store_partial(x.add(i), n, s.mul(s.load_partial(x.add(i), n), factor)) }
        }
    }
}

/// The largest number of a row, negative infinity if there is none.
#[inline(always)]
pub(crate) fn row_max<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut max = s.splat(f32::NEG_INFINITY);
    let whole = row.len() - row.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: a whole vector follows i.
        max = s.max(unsafe { s.load(row.as_ptr().add(i)) }, max);
    }
    row[whole..].iter().fold(s.reduce_max(max), |max, &value| if value > max { value } else { max })
}

/// `row[i] = exp(row[i] - max)`, and their sum.
#[inline(always)]
pub(crate) fn exp_in_place<S: Simd>(s: S, row: &mut [f32], max: f32) -> f32 {
    let (len, x) = (row.len(), row.as_mut_ptr());
    let max = s.splat(max);
    let mut sum = s.splat(0.0);
    let whole = len - len % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: a whole vector follows i.
        unsafe {
            let e = math::exp(s, s.sub(s.load(x.add(i)), max));
            s.store(x.add(i), e);
            sum = s.add(sum, e);
        }
    }
    let mut total = s.reduce_add(sum);
    if whole < len {
        // SAFETY: the rest is fewer elements than a vector; a load fills up with zeros, which are not stored.
        unsafe {
            let e = math::exp(s, s.sub(s.load_partial(x.add(whole), len - whole), max));
            s.store_partial(x.add(whole), len - whole, e);
        }
        total += row[whole..].iter().sum::<f32>();
    }
    total
}
