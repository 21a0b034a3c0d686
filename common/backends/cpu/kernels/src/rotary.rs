//! Rotary position embedding (Su et al. 2021).

use crate::isa::{Isa, Kernel};
use crate::simd::Simd;

/// The cosines and sines of one position, one for each pair of dimensions: of the angle `position · inv_freq[i]`,
/// rounded to fp32 as Hugging Face computes it, times `attention_factor`. They serve every head and layer.
///
/// # Panics
/// If the lengths of the slices differ.
pub fn rope_table(inv_freq: &[f32], attention_factor: f32, position: i64, cos: &mut [f32], sin: &mut [f32]) {
    assert!(cos.len() == inv_freq.len() && sin.len() == inv_freq.len(), "one cosine and sine a frequency");
    for ((frequency, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        let angle = position as f32 * frequency;
        let (sine, cosine) = f64::from(angle).sin_cos();
        *cos = cosine as f32 * attention_factor;
        *sin = sine as f32 * attention_factor;
    }
}

/// Rotates the first `2 · cos.len()` dimensions of one head `[D]` in place: pairs `(x[i], x[i + rotary_dim/2])`, the
/// half-split form of Hugging Face checkpoints, or neighbours `(x[2i], x[2i+1])` when interleaved.
///
/// # Panics
/// If the head is shorter than that, or there are not as many sines as cosines.
pub fn rope_apply(isa: Isa, head: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool) {
    assert!(head.len() >= 2 * cos.len() && sin.len() == cos.len(), "a head holds the rotated dimensions");
    if interleaved {
        for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            let [a, b] = [pair[0], pair[1]];
            pair[0] = a * cos - b * sin;
            pair[1] = b * cos + a * sin;
        }
    } else {
        isa.dispatch(HalfSplit(head, cos, sin));
    }
}

struct HalfSplit<'a>(&'a mut [f32], &'a [f32], &'a [f32]);

impl Kernel for HalfSplit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(head, cos, sin) = self;
        let half = cos.len();
        let (first, second) = head.split_at_mut(half);
        let second = &mut second[..half];
        let (a, b) = (first.as_mut_ptr(), second.as_mut_ptr());
        let (cos, sin) = (cos.as_ptr(), sin[..half].as_ptr());
        for i in (0..half).step_by(S::LANES) {
            let n = half - i;
            // SAFETY: the four slices are `half` long; a whole vector is touched only where as many elements follow.
            unsafe {
                if n >= S::LANES {
                    let (x, y, c, d) =
                        (s.load(a.add(i)), s.load(b.add(i)), s.load(cos.add(i)), s.load(sin.add(i)));
                    s.store(a.add(i), s.sub(s.mul(x, c), s.mul(y, d)));
                    s.store(b.add(i), s.add(s.mul(y, c), s.mul(x, d)));
                } else {
                    let load = |from: *const f32| s.load_partial(from.add(i), n);
                    let (x, y, c, d) = (load(a), load(b), load(cos), load(sin));
                    s.store_partial(a.add(i), n, s.sub(s.mul(x, c), s.mul(y, d)));
                    s.store_partial(b.add(i), n, s.add(s.mul(y, c), s.mul(x, d)));
                }
            }
        }
    }
}
