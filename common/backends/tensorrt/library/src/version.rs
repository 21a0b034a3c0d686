//! Versions of TensorRT.

use crate::Flavour;

/// A release of TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Incompatible changes.
    pub major: u32,
    /// Additions. Plans are of one minor version.
    pub minor: u32,
    /// Corrections.
    pub patch: u32,
}

impl Version {
    /// Reads the number that `getInferLibVersion` gives: `major · 10000 + minor · 100 + patch`, in both flavours.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }

    /// The flavour that counts its releases so: TensorRT for RTX began at 1 when TensorRT was at 10.
    #[must_use]
    pub const fn flavour(self) -> Flavour {
        if self.major < 8 { Flavour::Rtx } else { Flavour::Enterprise }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_flavours_are_read() {
        let rtx = Version::from_number(10_701);
        assert_eq!((rtx.to_string().as_str(), rtx.flavour()), ("1.7.1", Flavour::Rtx));
        let enterprise = Version::from_number(110_400);
        assert_eq!((enterprise.to_string().as_str(), enterprise.flavour()), ("11.4.0", Flavour::Enterprise));
    }
}
