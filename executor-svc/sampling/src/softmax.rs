//! Passes over a row of logits, written so that compilers vectorise them, and the same to the last bit on every machine:
//! what a seed draws depends on them.

use crate::SamplingError;

const LANES: usize = 16;

/// Checks that every logit is finite.
///
/// # Errors
/// [`SamplingError::LogitNotFinite`] names the first that is not, [`SamplingError::NoCandidate`] says that there are none.
pub(crate) fn check_finite(logits: &[f32]) -> Result<(), SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::NoCandidate);
    }
    // An exponent of all ones is NaN or infinite.
    const EXPONENT: u32 = 0x7F80_0000;
    let mut found = [0_u32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (found, logit) in found.iter_mut().zip(chunk) {
            *found |= u32::from(logit.to_bits() & EXPONENT == EXPONENT);
        }
    }
    if found.iter().all(|&found| found == 0) && rest.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    match logits.iter().enumerate().find(|(_, logit)| !logit.is_finite()) {
        Some((token, &value)) => Err(SamplingError::LogitNotFinite { token, value }),
        None => Ok(()),
    }
}

/// The largest of the logits, none of which is NaN.
pub(crate) fn max(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| larger(max, logit))
}

/// The sum, in double precision and in an order that does not depend on the machine.
pub(crate) fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0_f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

/// Writes `exp((logit - max) / temperature)` of every logit: probabilities up to their sum.
pub(crate) fn weights(logits: &[f32], max: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.extend(logits.iter().map(|&logit| weight(logit, max, temperature)));
}

/// `exp((logit - max) / temperature)`. For the largest logit it is 1, whatever the temperature.
#[inline]
pub(crate) fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    exp((logit - max) / temperature)
}

/// `e^x` for `x ≤ 0`, to 2 units in the last place; 0 where it would be subnormal. The standard library's differs
/// between platforms in the last bit.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`, then `2^n` times a polynomial for `e^r` (the coefficients are those of
/// Cephes' `expf`, S. Moshier).
#[inline]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// ln of the smallest normal number, rounded up.
    const SMALLEST: f32 = -87.336_5;

    let clamped = if x > SMALLEST { x } else { SMALLEST };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    polynomial = polynomial * r + 1.398_2e-3;
    polynomial = polynomial * r + 8.333_452e-3;
    polynomial = polynomial * r + 4.166_579_6e-2;
    polynomial = polynomial * r + 1.666_666_5e-1;
    polynomial = polynomial * r + 0.5;
    let power = polynomial * r * r + r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let result = power * f32::from_bits(exponent << 23);
    if x > SMALLEST { result } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        let mut worst = 0_f64;
        for step in 0..2_000_000 {
            let x = -(step as f32) * 87.3 / 2_000_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_first_logit_that_is_not_finite_is_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 15, 16, 35, 36] {
                let mut logits = vec![f32::MAX; 37];
                logits[place] = value;
                logits[36] = f32::NAN;
                let error = check_finite(&logits).unwrap_err();
                assert!(
                    matches!(error, SamplingError::LogitNotFinite { token, .. } if token == place),
                    "{error}"
                );
            }
        }
        assert_eq!(check_finite(&[f32::MIN; 37]), Ok(()));
        assert_eq!(check_finite(&[]), Err(SamplingError::NoCandidate));
    }

    #[test]
    fn the_maximum_is_found_anywhere() {
        for place in 0..37 {
            let mut logits = vec![-1.0; 37];
            logits[place] = -0.5;
            assert_eq!(max(&logits), -0.5);
        }
    }
}
