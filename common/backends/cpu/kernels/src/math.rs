//! Elementary functions of vectors.

use crate::simd::Simd;

/// `c[0] + c[1] x + c[2] x² + …`, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F32, coefficients: [f32; N]) -> S::F32 {
    let mut sum = s.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.mul_add(sum, x, s.splat(coefficients[i]));
    }
    sum
}

/// `e^x`, within 2 units in the last place where the result is a normal number; 0 below about -103.97, infinity above
/// about 88.72; NaN of NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LOWEST: f32 = -103.972_08;
    const HIGHEST: f32 = 88.722_84;
    // x = n ln 2 + r with |r| <= ln 2 / 2, the product with ln 2 in two parts so that r keeps its bits.
    let bounded = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-0.693_359_4), bounded);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    // The minimax polynomial of (e^r - 1 - r) / r² of Cephes' expf.
    let p = polynomial(s, r, [0.5, 1.666_666_5e-1, 4.166_579_6e-2, 8.333_452e-3, 1.398_2e-3, 1.987_569_1e-4]);
    let e = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    let e = s.mul_pow2(e, n);
    let e = s.select_less(x, s.splat(LOWEST), s.splat(0.0), e);
    s.select_less(s.splat(HIGHEST), x, s.splat(f32::INFINITY), e)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// The hyperbolic tangent, within 4 units in the last place.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.abs(x);
    // Near zero the quotient cancels; there, Cephes' polynomial for tanhf.
    let square = s.mul(x, x);
    let p = polynomial(
        s,
        square,
        [-3.333_328e-1, 1.333_144_2e-1, -5.373_971_5e-2, 2.063_909e-2, -5.704_988_7e-3],
    );
    let near = s.mul_add(s.mul(p, square), x, x);
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(exp(s, s.add(magnitude, magnitude)), one)));
    s.select_less(magnitude, s.splat(0.625), near, s.with_sign(far, x))
}

/// The standard normal distribution function `½ erfc(-x / √2)`, within 3·10⁻⁷ of it relative to the larger of it and
/// `e^(-x²/2)`, which keeps the lower tail accurate.
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // The Chebyshev fit of erfc of Numerical Recipes (Press et al.), section 6.2, in t = 1 / (1 + z/2).
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let one = s.splat(1.0);
    let t = s.div(one, s.mul_add(z, s.splat(0.5), one));
    let p = polynomial(
        s,
        t,
        [
            -1.265_512_2,
            1.000_023_7,
            0.374_091_96,
            0.096_784_18,
            -0.186_288_06,
            0.278_868_07,
            -1.135_204,
            1.488_515_9,
            -0.822_152_23,
            0.170_872_77,
        ],
    );
    let half_squared = s.mul(s.mul(x, x), s.splat(-0.5));
    let tail = s.mul(s.mul(s.splat(0.5), t), exp(s, s.add(half_squared, p)));
    s.select_less(x, s.splat(0.0), tail, s.sub(one, tail))
}
