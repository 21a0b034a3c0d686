//! Optimization profiles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An `IOptimizationProfile`: what shapes an engine accepts, by input.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Profile {
    /// A range for each input with dynamic dimensions and for each shape tensor.
    pub inputs: BTreeMap<String, InputRange>,
}

/// The range of one input; the vectors of one range have equal lengths and `min ≤ opt ≤ max` elementwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum InputRange {
    /// Of its dimensions.
    Dimensions {
        /// Smallest.
        min: Vec<i64>,
        /// What kernels are tuned for.
        opt: Vec<i64>,
        /// Largest.
        max: Vec<i64>,
    },
    /// Of the elements of a shape tensor.
    Values {
        /// Smallest.
        min: Vec<i64>,
        /// What kernels are tuned for.
        opt: Vec<i64>,
        /// Largest.
        max: Vec<i64>,
    },
}
