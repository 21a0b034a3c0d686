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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_processor_system_and_compute_capabilities() {
        let mut target =
            Target { os: "linux".to_owned(), arch: "x86_64".to_owned(), compute_capabilities: Vec::new() };
        assert_eq!(target.to_string(), "x86_64-linux");
        target.compute_capabilities = vec!["sm_80".to_owned(), "sm_90a".to_owned()];
        assert_eq!(target.to_string(), "x86_64-linux-sm_80+sm_90a");
    }

    #[test]
    fn a_target_without_compute_capabilities_reads_from_json() {
        let target: Target = serde_json::from_str(r#"{"os":"any","arch":"any"}"#).unwrap();
        assert_eq!(target.compute_capabilities, Vec::<String>::new());
        let json = serde_json::to_string(&target).unwrap();
        assert_eq!(json, r#"{"os":"any","arch":"any"}"#);
    }
}
