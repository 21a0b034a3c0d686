//! Normalisation of rows.

use crate::ThreadPool;
use crate::isa::{Isa, Kernel};
use crate::shared::{Queue, SharedMut};
use crate::simd::Simd;

/// A sum over a slice of `f(x)`, in four parts that are added at the end.
macro_rules! sum_over {
    ($s:ident, $x:ident, |$sum:ident, $v:ident| $body:expr, |$tail:ident| $tail_body:expr) => {{
        let len = $x.len();
        let x = $x.as_ptr();
        let mut parts = [$s.splat(0.0); 4];
        let mut i = 0;
        // SAFETY: vectors are loaded only where as many elements follow, and the rest partially.
        unsafe {
            while i + 4 * S::LANES <= len {
                for (part, $sum) in parts.iter_mut().enumerate() {
                    let $v = $s.load(x.add(i + part * S::LANES));
                    *$sum = $body;
                }
                i += 4 * S::LANES;
            }
            while i + S::LANES <= len {
                let ($sum, $v) = (&mut parts[0], $s.load(x.add(i)));
                *$sum = $body;
                i += S::LANES;
            }
        }
        let total = $s.add($s.add(parts[0], parts[1]), $s.add(parts[2], parts[3]));
        let mut total = $s.reduce_add(total);
        for &$tail in &$x[i..] {
            total += $tail_body;
        }
        total
    }};
}

#[derive(Clone, Copy)]
struct RmsNorm<'a> {
    weight: &'a [f32],
    epsilon: f32,
    unit_offset: bool,
}

impl RmsNorm<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, s: S, x: &[f32], out: &mut [f32]) {
        let len = self.weight.len();
        assert!(x.len() == len && out.len() == len, "the weight is as long as a row");
        let squares = sum_over!(s, x, |sum, v| s.mul_add(v, v, *sum), |v| v * v);
        let factor = s.splat(1.0 / (squares / len as f32 + self.epsilon).sqrt());
        let offset = s.splat(if self.unit_offset { 1.0 } else { 0.0 });
        let (x, weight, out) = (x.as_ptr(), self.weight.as_ptr(), out.as_mut_ptr());
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: i is below the length of all three; a whole vector is touched only where as many follow.
            unsafe {
                if n >= S::LANES {
                    let weight = s.add(s.load(weight.add(i)), offset);
                    s.store(out.add(i), s.mul(s.mul(s.load(x.add(i)), factor), weight));
                } else {
                    let weight = s.add(s.load_partial(weight.add(i), n), offset);
                    let value = s.mul(s.mul(s.load_partial(x.add(i), n), factor), weight);
                    s.store_partial(out.add(i), n, value);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct LayerNorm<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
}

impl LayerNorm<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, s: S, x: &[f32], out: &mut [f32]) {
        let len = self.weight.len();
        assert!(x.len() == len && out.len() == len, "the weight is as long as a row");
        assert!(self.bias.is_none_or(|bias| bias.len() == len), "the bias is as long as a row");
        let mean = sum_over!(s, x, |sum, v| s.add(*sum, v), |v| v) / len as f32;
        let centre = s.splat(mean);
        let squares = sum_over!(
            s,
            x,
            |sum, v| {
                let v = s.sub(v, centre);
                s.mul_add(v, v, *sum)
            },
            |v| (v - mean) * (v - mean)
        );
        let factor = 1.0 / (squares / len as f32 + self.epsilon).sqrt();
        let scale = s.splat(factor);
        let (from, weight, to) = (x.as_ptr(), self.weight.as_ptr(), out.as_mut_ptr());
        let bias = self.bias.map(<[f32]>::as_ptr);
        for i in (0..len).step_by(S::LANES) {
            let n = (len - i).min(S::LANES);
            // SAFETY: i is below the length of all four, and n elements follow.
            unsafe {
                let value = s.mul(s.sub(s.load_partial(from.add(i), n), centre), scale);
                let weight = s.load_partial(weight.add(i), n);
                let value = match bias {
                    Some(bias) => s.mul_add(value, weight, s.load_partial(bias.add(i), n)),
                    None => s.mul(value, weight),
                };
                s.store_partial(to.add(i), n, value);
            }
        }
    }
}

/// One row after another.
struct Rows<'a, N> {
    norm: N,
    x: &'a [f32],
    out: &'a mut [f32],
    len: usize,
}

macro_rules! rows_kernel {
    ($norm:ident) => {
        impl Kernel for Rows<'_, $norm<'_>> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                assert_eq!(self.x.len(), self.out.len(), "the result is as long as the rows");
                let len = self.len.max(1);
                for (x, out) in self.x.chunks(len).zip(self.out.chunks_mut(len)) {
                    self.norm.row(s, x, out);
                }
            }
        }

        impl $norm<'_> {
            /// Shares the rows out where there are enough for that to pay.
            fn rows(self, pool: &ThreadPool, x: &[f32], out: &mut [f32]) {
                const WORTH_SHARING: usize = 16 * 1024;
                assert_eq!(x.len(), out.len(), "the result is as long as the rows");
                let len = self.weight.len();
                let isa = pool.isa();
                if x.len() < WORTH_SHARING || pool.threads() == 1 {
                    isa.dispatch(Rows { norm: self, x, out, len });
                    return;
                }
                let queue = Queue::new(x.len() / len.max(1), 4, pool.threads());
                let out = SharedMut::new(out);
                pool.run(&|_| {
                    while let Some(rows) = queue.take() {
                        let range = rows.start * len..rows.end * len;
                        // SAFETY: the queue hands out every row once.
                        let out = unsafe { out.slice(range.clone()) };
                        isa.dispatch(Rows { norm: self, x: &x[range], out, len });
                    }
                });
            }
        }
    };
}

rows_kernel!(RmsNorm);
rows_kernel!(LayerNorm);

/// `out = x / sqrt(mean(x²) + epsilon) · weight` (Zhang and Sennrich 2019) of one row `[H]`; the factor is `1 + weight`
/// with `unit_offset` (Gemma).
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, unit_offset: bool, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len(), "the weight is as long as a row");
    let norm = RmsNorm { weight, epsilon, unit_offset };
    isa.dispatch(Rows { norm, x, out, len: weight.len() });
}

/// [`rms_norm`] of every row of `x [rows, H]`, shared out over the pool.
///
/// # Panics
/// If `x` and `out` differ in length or are not whole rows.
pub fn rms_norm_rows(
    pool: &ThreadPool,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    unit_offset: bool,
    out: &mut [f32],
) {
    RmsNorm { weight, epsilon, unit_offset }.rows(pool, x, out);
}

/// `out = (x - mean(x)) / sqrt(var(x) + epsilon) · weight + bias` (Ba et al. 2016) of one row `[H]`.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: Option<&[f32]>, epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len(), "the weight is as long as a row");
    let norm = LayerNorm { weight, bias, epsilon };
    isa.dispatch(Rows { norm, x, out, len: weight.len() });
}

/// [`layer_norm`] of every row of `x [rows, H]`, shared out over the pool.
///
/// # Panics
/// If `x` and `out` differ in length or are not whole rows.
pub fn layer_norm_rows(
    pool: &ThreadPool,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    epsilon: f32,
    out: &mut [f32],
) {
    LayerNorm { weight, bias, epsilon }.rows(pool, x, out);
}
