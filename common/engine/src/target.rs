//! What an engine runs on.

use serde::{Deserialize, Serialize};

/// What an engine runs on: operating system, processor and, for GPU backends, compute capabilities.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// `std::env::consts::OS`, e.g. `linux`; `any` where it does not matter.
    pub os: String,
    /// `std::env::consts::ARCH`, e.g. `x86_64`; `any` where it does not matter.
    pub arch: String,
    /// `sm_80`, `sm_90a`, … in ascending order; empty for a CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compute_capabilities: Vec<String>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.arch, self.os)?;
        if !self.compute_capabilities.is_empty() {
            write!(f, "-{}", self.compute_capabilities.join("+"))?;
        }
        Ok(())
    }
}
