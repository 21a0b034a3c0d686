//! Element by element functions of slices.

use crate::isa::{Isa, Kernel};
use crate::math;
use crate::simd::Simd;

/// A function of one number; implementors mark `apply` `#[inline(always)]`.
pub(crate) trait Unary: Copy {
    /// Of a vector of them.
    fn apply<S: Simd>(self, s: S, x: S::F32) -> S::F32;
}

/// A function of two numbers; implementors mark `apply` `#[inline(always)]`.
pub(crate) trait Binary: Copy {
    /// Of two vectors of them.
    fn apply<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32;
}

/// `x[i] = f(x[i])`.
struct Map<'a, F>(F, &'a mut [f32]);

impl<F: Unary> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(f, x) = self;
        let (len, x) = (x.len(), x.as_mut_ptr());
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: i is below the length; a whole vector is touched only where as many elements follow.
            unsafe {
                if n >= S::LANES {
                    s.store(x.add(i), f.apply(s, s.load(x.add(i))));
                } else {
                    s.store_partial(x.add(i), n, f.apply(s, s.load_partial(x.add(i), n)));
                }
            }
        }
    }
}

/// `out[i] = f(a[i], b[i])`.
struct Zip<'a, F> {
    f: F,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Binary> Kernel for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { f, a, b, out } = self;
        assert!(a.len() == out.len() && b.len() == out.len(), "operands are as long as the result");
        // SAFETY: three slices of one length.
        unsafe { zip(s, f, a.as_ptr(), b.as_ptr(), out.as_mut_ptr(), out.len()) }
    }
}

/// `a[i] = f(a[i], b[i])`.
struct ZipAssign<'a, F>(F, &'a mut [f32], &'a [f32]);

impl<F: Binary> Kernel for ZipAssign<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(f, a, b) = self;
        assert_eq!(a.len(), b.len(), "operands have one length");
        let to = a.as_mut_ptr();
        // SAFETY: two slices of one length; an element is read before it is written.
        unsafe { zip(s, f, to, b.as_ptr(), to, b.len()) }
    }
}

/// # Safety
/// `len` elements at `a` and `b` are readable and at `out` writable; `out` may be `a` or `b`, or overlaps neither.
#[inline(always)]
unsafe fn zip<S: Simd, F: Binary>(s: S, f: F, a: *const f32, b: *const f32, out: *mut f32, len: usize) {
    for i in (0..len).step_by(S::LANES) {
        let n = len - i;
        // SAFETY: i is below the length; a whole vector is touched only where as many elements follow.
        unsafe {
            if n >= S::LANES {
                s.store(out.add(i), f.apply(s, s.load(a.add(i)), s.load(b.add(i))));
            } else {
                let result = f.apply(s, s.load_partial(a.add(i), n), s.load_partial(b.add(i), n));
                s.store_partial(out.add(i), n, result);
            }
        }
    }
}

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $op:ident($($field:ident),*), |$s:ident, $x:ident| $body:expr) => {
        #[derive(Clone, Copy)]
        struct $op { $($field: f32),* }

        impl Unary for $op {
            #[inline(always)]
            fn apply<S: Simd>(self, $s: S, $x: S::F32) -> S::F32 {
                let Self { $($field),* } = self;
                $body
            }
        }

        $(#[$doc])*
        pub fn $name(isa: Isa, x: &mut [f32] $(, $field: f32)*) {
            isa.dispatch(Map($op { $($field),* }, x));
        }
    };
}

unary! {
    /// `x[i] = factor · x[i]`.
    scale, Scale(factor), |s, x| s.mul(x, s.splat(factor))
}
unary! {
    /// `x[i] = x[i] · sigmoid(x[i])` (Elfwing et al. 2017), within 4 units in the last place.
    silu, Silu(), |s, x| math::silu(s, x)
}
unary! {
    /// `x[i] = 1 / (1 + exp(-x[i]))`, within 4 units in the last place.
    sigmoid, Sigmoid(), |s, x| math::sigmoid(s, x)
}
unary! {
    /// `x[i] = ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, as `x · sigmoid(2√(2/π) (x + 0.044715 x³))`: the same, but
    /// accurate to about 10⁻⁶ relative for negative `x` also.
    gelu_tanh, GeluTanh(), |s, x| {
        let cubic = s.mul_add(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
        s.mul(x, math::sigmoid(s, s.mul(cubic, s.splat(1.595_769))))
    }
}
unary! {
    /// `x[i] = x · Φ(x)` (Hendrycks and Gimpel 2016), within `3·10⁻⁷ |x|`.
    gelu_erf, GeluErf(), |s, x| s.mul(x, math::normal_cdf(s, x))
}
unary! {
    /// `x[i] = cap · tanh(x[i] / cap)` (Gemma 2), within 5 units in the last place.
    soft_cap, SoftCap(cap), |s, x| s.mul(s.splat(cap), math::tanh(s, s.div(x, s.splat(cap))))
}

#[derive(Clone, Copy)]
struct Add;

impl Binary for Add {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        s.add(a, b)
    }
}

#[derive(Clone, Copy)]
struct Mul;

impl Binary for Mul {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        s.mul(a, b)
    }
}

/// `silu(gate) · up`.
#[derive(Clone, Copy)]
pub(crate) struct SiluMul;

impl Binary for SiluMul {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, gate: S::F32, up: S::F32) -> S::F32 {
        s.mul(math::silu(s, gate), up)
    }
}

/// `out[i] = a[i] + b[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn add(isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    isa.dispatch(Zip { f: Add, a, b, out });
}

/// `a[i] += b[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(isa: Isa, a: &mut [f32], b: &[f32]) {
    isa.dispatch(ZipAssign(Add, a, b));
}

/// `out[i] = a[i] · b[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn mul(isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    isa.dispatch(Zip { f: Mul, a, b, out });
}

/// `a[i] *= b[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn mul_assign(isa: Isa, a: &mut [f32], b: &[f32]) {
    isa.dispatch(ZipAssign(Mul, a, b));
}

/// `out[i] = silu(gate[i]) · up[i]` (SwiGLU, Shazeer 2020).
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    isa.dispatch(Zip { f: SiluMul, a: gate, b: up, out });
}

/// As [`silu_mul`], in place of `gate`.
pub(crate) fn silu_mul_assign(isa: Isa, gate: &mut [f32], up: &[f32]) {
    isa.dispatch(ZipAssign(SiluMul, gate, up));
}
