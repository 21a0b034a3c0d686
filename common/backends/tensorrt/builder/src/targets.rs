//! Which GPUs an engine is for.

use roundhouse_backend::BackendError;
use roundhouse_engine::{ComputeCapabilities, ComputeCapability, Precision};
use roundhouse_tensorrt_library::{Flavour, device};

use crate::error::BACKEND;

/// The first compute capability that is built for without being asked for, and the first with all precisions.
const AMPERE: ComputeCapability = ComputeCapability::new(8, 0);

/// The targets asked for if the library builds for them in this precision; without any, all from [`AMPERE`] on, or
/// this machine's GPU where TensorRT builds for that one only.
///
/// # Errors
/// [`BackendError::Unsupported`] names the first that it does not build for, and those that it does.
pub(crate) fn resolve(
    flavour: Flavour,
    targets: ComputeCapabilities,
    precision: Precision,
) -> Result<ComputeCapabilities, BackendError> {
    let supported = flavour.supported();
    let unsupported = |what: String| BackendError::Unsupported { backend: BACKEND, what };
    if targets.is_empty() {
        if flavour.names_targets() {
            return Ok(supported.iter().filter(|&target| target >= AMPERE).collect());
        }
        let found = device::compute_capabilities()
            .map_err(|error| BackendError::Device { backend: BACKEND, what: error.to_string() })?;
        return resolve(flavour, found.into_iter().take(1).collect(), precision);
    }
    if let Some(target) = targets.iter().find(|&target| !supported.contains(target)) {
        let known = supported.names().join(", ");
        return Err(unsupported(format!("target {target}: {flavour} builds for {known}")));
    }
    // Turing has no bf16, and TensorRT for RTX has no products in fp32 for it.
    let needs_ampere =
        precision == Precision::Bf16 || (precision == Precision::Fp32 && flavour == Flavour::Rtx);
    if let Some(target) = targets.iter().find(|&target| needs_ampere && target < AMPERE) {
        return Err(unsupported(format!(
            "precision {precision} on {target}: {flavour} has it from {AMPERE} on"
        )));
    }
    if !flavour.names_targets() && targets.iter().count() != 1 {
        let names = targets.names().join(", ");
        return Err(unsupported(format!(
            "the targets {names} in one engine: {flavour} builds for one GPU, its own"
        )));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(names: &[&str]) -> ComputeCapabilities {
        names.iter().map(|name| name.parse::<ComputeCapability>().unwrap()).collect()
    }

    #[test]
    fn without_targets_all_from_ampere_on() {
        let found = resolve(Flavour::Rtx, ComputeCapabilities::NONE, Precision::Fp16).unwrap();
        assert_eq!(found.names(), ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]);
    }

    #[test]
    fn what_the_library_does_not_build_for_is_refused_with_what_it_does() {
        let error =
            resolve(Flavour::Rtx, targets(&["sm_89", "sm_90"]), Precision::Fp16).unwrap_err().to_string();
        assert!(
            error.contains("sm_90") && error.contains("sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"),
            "{error}"
        );
        let asked = targets(&["sm_90"]);
        assert_eq!(resolve(Flavour::Enterprise, asked, Precision::Fp16).unwrap(), asked);
        let error = resolve(Flavour::Enterprise, targets(&["sm_80", "sm_90"]), Precision::Fp16).unwrap_err();
        assert!(error.to_string().contains("one GPU"), "{error}");
    }

    #[test]
    fn turing_has_fp16_only() {
        for precision in [Precision::Bf16, Precision::Fp32] {
            let error = resolve(Flavour::Rtx, targets(&["sm_75", "sm_80"]), precision).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("{precision} on sm_75")) && text.contains("sm_80"), "{text}");
        }
        assert!(resolve(Flavour::Rtx, targets(&["sm_75"]), Precision::Fp16).is_ok());
        assert!(resolve(Flavour::Enterprise, targets(&["sm_75"]), Precision::Fp32).is_ok());
        assert!(resolve(Flavour::Enterprise, targets(&["sm_75"]), Precision::Bf16).is_err());
    }
}
