//! What differs between TensorRT for RTX and TensorRT for data-centre GPUs. Everything else is the same code.
//!
//! The cargo feature `enterprise` picks the flavour at compile time, because the headers differ.

mod run;

use roundhouse_engine::{ComputeCapabilities, ComputeCapability};
use trtx::builder::BuilderConfig;

pub use run::{Kernels, capture_graphs, check_plan};

/// One of the two products called TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// TensorRT for RTX: `libtensorrt_rtx`. Plans are made for named compute capabilities, on any machine; kernels are
    /// finished where the plan is loaded.
    Rtx,
    /// TensorRT: `libnvinfer`. Plans are made on the GPU that they are for.
    Enterprise,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Rtx, Self::Enterprise];

    /// The one that this program was compiled for.
    pub const COMPILED: Self = if cfg!(feature = "enterprise") { Self::Enterprise } else { Self::Rtx };

    /// Its short name, part of engine versions.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rtx => "rtx",
            Self::Enterprise => "enterprise",
        }
    }

    /// The file names that its library goes by, the most exact first.
    #[must_use]
    pub const fn library_names(self) -> &'static [&'static str] {
        match self {
            Self::Rtx => &["libtensorrt_rtx.so.1.7.1", "libtensorrt_rtx.so.1", "libtensorrt_rtx.so"],
            Self::Enterprise => &["libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so"],
        }
    }

    /// How to get it.
    #[must_use]
    pub const fn how_to_get(self) -> &'static str {
        match self {
            Self::Rtx => "`make tensorrt`, or `pip install tensorrt-rtx-cu13-libs==1.7.1.116`",
            Self::Enterprise => {
                "`pip install tensorrt-cu13-libs --extra-index-url https://pypi.nvidia.com`, or NVIDIA's packages of \
                 TensorRT 11"
            }
        }
    }

    /// The compute capabilities that it builds for.
    #[must_use]
    pub fn supported(self) -> ComputeCapabilities {
        let supported: &[(u8, u8)] = match self {
            Self::Rtx => &[(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)],
            Self::Enterprise => {
                &[(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
            }
        };
        supported.iter().map(|&(major, minor)| ComputeCapability::new(major, minor)).collect()
    }

    /// Whether a build names the compute capabilities that it is for. Otherwise it is for the GPU that builds, so that
    /// there must be one.
    #[must_use]
    pub const fn names_targets(self) -> bool {
        matches!(self, Self::Rtx)
    }
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rtx => "TensorRT for RTX",
            Self::Enterprise => "TensorRT",
        })
    }
}

/// Tells TensorRT what a plan is for. `false` when it refuses one of them.
#[cfg(not(feature = "enterprise"))]
pub(crate) fn set_targets(config: &mut BuilderConfig<'_>, targets: ComputeCapabilities) -> bool {
    use trtx::ComputeCapability as Sm;

    let known = |target: ComputeCapability| {
        Some(match (target.major, target.minor) {
            (7, 5) => Sm::kSM75,
            (8, 0) => Sm::kSM80,
            (8, 6) => Sm::kSM86,
            (8, 9) => Sm::kSM89,
            (12, 0) => Sm::kSM120,
            (12, 1) => Sm::kSM121,
            _ => return None,
        })
    };
    let Some(targets) = targets.iter().map(known).collect::<Option<Vec<_>>>() else { return false };
    let Ok(count) = i32::try_from(targets.len()) else { return false };
    config.set_nb_compute_capabilities(count).is_ok()
        && (0..).zip(targets).all(|(index, target)| config.set_compute_capability(target, index).is_ok())
}

/// Tells TensorRT what a plan is for: nothing can be told, it is the GPU that builds.
#[cfg(feature = "enterprise")]
pub(crate) fn set_targets(_config: &mut BuilderConfig<'_>, targets: ComputeCapabilities) -> bool {
    targets.iter().count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_packages_are_of_the_version_compiled_for() {
        let version = crate::Library::version();
        assert_eq!(version.flavour(), Flavour::COMPILED);
        if Flavour::COMPILED == Flavour::Rtx {
            assert!(Flavour::Rtx.library_names()[0].ends_with(&format!(".so.{version}")));
            assert!(Flavour::Rtx.how_to_get().contains(&format!("=={version}.")));
        }
    }

    #[test]
    fn rtx_supports_no_hopper_and_enterprise_does() {
        let hopper = ComputeCapability::new(9, 0);
        assert!(!Flavour::Rtx.supported().contains(hopper));
        assert!(Flavour::Enterprise.supported().contains(hopper));
        assert_eq!(
            Flavour::Rtx.supported().names(),
            ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]
        );
    }
}
