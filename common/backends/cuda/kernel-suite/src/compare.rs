//! Comparing with a reference.

use roundhouse_graph::DType;

use crate::SuiteError;

/// Half a last place of the type, relative: the one rounding of a stored result.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2_f64.powi(-11),
        DType::Bf16 => 2_f64.powi(-8),
        _ => 2_f64.powi(-24),
    }
}

/// Compares results with a reference: they may differ by the rounding of the result, and by `slack` of the reference's
/// root mean square for what is lost on the way.
///
/// # Errors
/// [`SuiteError::Mismatch`] with the first that is too far away; NaN always is.
pub fn compare(
    what: &str,
    dtype: DType,
    found: &[f64],
    expected: &[f64],
    slack: f64,
) -> Result<(), SuiteError> {
    let squares: f64 = expected.iter().map(|x| x * x).sum();
    let scale = (squares / expected.len().max(1) as f64).sqrt();
    let mismatch = |index: usize, found, expected, tolerance| SuiteError::Mismatch {
        what: what.to_owned(),
        index,
        found,
        expected,
        tolerance,
    };
    if found.len() != expected.len() {
        return Err(mismatch(found.len().min(expected.len()), f64::NAN, f64::NAN, 0.0));
    }
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let tolerance = expected.abs() * rounding(dtype) * 1.01 + scale * slack + f64::MIN_POSITIVE;
        let near = (found - expected).abs() <= tolerance;
        if !near {
            return Err(mismatch(index, found, expected, tolerance));
        }
    }
    Ok(())
}

/// What sums in fp32 lose: small against everything that a mistake would change.
pub(crate) const SUM_SLACK: f64 = 2e-5;

/// What one more rounding to the type on the way loses, relative to the result's size.
pub(crate) fn rounded_slack(dtype: DType) -> f64 {
    SUM_SLACK + 2.0 * rounding(dtype)
}
