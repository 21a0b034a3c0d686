//! Generations of NVIDIA GPUs.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::UnknownName;

/// The compute capability of a GPU: major and minor revision, as the driver reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The generation.
    pub major: u8,
    /// The revision in it.
    pub minor: u8,
}

impl ComputeCapability {
    /// All that an engine can be built for, in ascending order.
    pub const ALL: &'static [Self] = &[
        Self::new(7, 5),
        Self::new(8, 0),
        Self::new(8, 6),
        Self::new(8, 7),
        Self::new(8, 9),
        Self::new(9, 0),
        Self::new(10, 0),
        Self::new(10, 3),
        Self::new(11, 0),
        Self::new(12, 0),
        Self::new(12, 1),
    ];

    /// The capability `major.minor`.
    #[must_use]
    pub const fn new(major: u8, minor: u8) -> Self {
        Self { major, minor }
    }

    /// Its place in [`ComputeCapability::ALL`].
    fn index(self) -> Option<usize> {
        Self::ALL.iter().position(|&known| known == self)
    }
}

impl std::fmt::Display for ComputeCapability {
    /// As compilers name it: `sm_89`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

impl FromStr for ComputeCapability {
    type Err = UnknownName;

    /// Reads `sm_89`, `sm89`, `89` or `8.9`, of [`ComputeCapability::ALL`].
    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let digits = text.trim().trim_start_matches("sm_").trim_start_matches("sm").replace('.', "");
        let known =
            Self::ALL.iter().copied().find(|known| format!("{}{}", known.major, known.minor) == digits);
        known.ok_or_else(|| UnknownName {
            what: "compute capability",
            found: text.to_owned(),
            expected: Self::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A set of compute capabilities, in ascending order; as JSON a list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct ComputeCapabilities(u32);

impl ComputeCapabilities {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    #[must_use]
    pub fn contains(self, capability: ComputeCapability) -> bool {
        self.iter().any(|member| member == capability)
    }

    /// Its members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = ComputeCapability> {
        ComputeCapability::ALL
            .iter()
            .enumerate()
            .filter(move |(index, _)| self.0 & (1 << index) != 0)
            .map(|(_, &capability)| capability)
    }

    /// Their names in ascending order.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        self.iter().map(|capability| capability.to_string()).collect()
    }
}

impl FromIterator<ComputeCapability> for ComputeCapabilities {
    fn from_iter<I: IntoIterator<Item = ComputeCapability>>(capabilities: I) -> Self {
        let indices = capabilities.into_iter().filter_map(ComputeCapability::index);
        Self(indices.fold(0, |set, index| set | 1 << index))
    }
}

impl From<ComputeCapabilities> for Vec<String> {
    fn from(set: ComputeCapabilities) -> Self {
        set.names()
    }
}

impl TryFrom<Vec<String>> for ComputeCapabilities {
    type Error = UnknownName;

    fn try_from(names: Vec<String>) -> Result<Self, UnknownName> {
        names.iter().map(|name| name.parse::<ComputeCapability>()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read() {
        for text in ["sm_89", "sm89", "89", "8.9", " sm_89 "] {
            assert_eq!(text.parse(), Ok(ComputeCapability::new(8, 9)), "{text}");
        }
        assert_eq!("12.1".parse(), Ok(ComputeCapability::new(12, 1)));
        let error = "sm_61".parse::<ComputeCapability>().unwrap_err();
        assert!(error.to_string().contains("sm_61") && error.to_string().contains("sm_75"), "{error}");
    }

    #[test]
    fn every_capability_round_trips_alone_and_in_a_set() {
        for &capability in ComputeCapability::ALL {
            assert_eq!(capability.to_string().parse(), Ok(capability));
            assert!(ComputeCapabilities::from_iter([capability]).contains(capability));
        }
        let all: ComputeCapabilities = ComputeCapability::ALL.iter().copied().collect();
        assert_eq!(all.iter().collect::<Vec<_>>(), ComputeCapability::ALL);
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<ComputeCapabilities>(&json).unwrap(), all);
    }

    #[test]
    fn a_set_is_a_sorted_list_of_names_in_json() {
        let set: ComputeCapabilities =
            [ComputeCapability::new(12, 0), ComputeCapability::new(8, 9)].into_iter().collect();
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"["sm_89","sm_120"]"#);
        assert!(serde_json::from_str::<ComputeCapabilities>(r#"["sm_1"]"#).is_err());
    }
}
