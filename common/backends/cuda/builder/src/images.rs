//! The files of kernels in an engine.

use roundhouse_engine::ComputeCapability;

/// The plan, JSON of [`roundhouse_cuda_plan::Plan`].
pub const PLAN: &str = "cuda.plan.json";

/// The kernels for a target: `kernels.sm_90.cubin`.
#[must_use]
pub fn image_name(target: ComputeCapability) -> String {
    format!("kernels.{target}.cubin")
}

/// Which of an engine's targets a device runs: the newest of its generation that is not newer than itself.
#[must_use]
pub fn image_for(
    targets: impl IntoIterator<Item = ComputeCapability>,
    device: ComputeCapability,
) -> Option<ComputeCapability> {
    targets.into_iter().filter(|target| target.major == device.major && target.minor <= device.minor).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_code_of_its_generation_that_is_not_newer() {
        let targets =
            [(8, 0), (8, 6), (9, 0), (12, 0)].map(|(major, minor)| ComputeCapability::new(major, minor));
        let picked =
            |major, minor| image_for(targets, ComputeCapability::new(major, minor)).map(|t| t.to_string());
        assert_eq!(picked(8, 9).as_deref(), Some("sm_86"));
        assert_eq!(picked(8, 0).as_deref(), Some("sm_80"));
        assert_eq!(picked(9, 0).as_deref(), Some("sm_90"));
        assert_eq!(picked(12, 1).as_deref(), Some("sm_120"));
        assert_eq!(picked(10, 0), None);
        assert_eq!(picked(7, 5), None);
    }
}
