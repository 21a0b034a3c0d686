//! The options of TensorRT engines.

use serde::{Deserialize, Serialize};

use crate::options::named;

named!(
    /// How attention is expressed to TensorRT.
    AttentionForm, "attention", {
        /// Fused where the dtype and target have such kernels, else decomposed.
        Auto = "auto",
        /// `IAttention`: one kernel, scores never in memory.
        Fused = "fused",
        /// Scaled matmul, mask, softmax, matmul.
        Decomposed = "decomposed",
    }
);

named!(
    /// Where the weights of a TensorRT engine are.
    WeightPlacement, "weights", {
        /// Embedded, unless the build node has not the memory for it.
        Auto = "auto",
        /// In the plan.
        Embedded = "embedded",
        /// In a weights file of their own, shared with the other backends' engines; the plan is refitted at load.
        Separate = "separate",
    }
);

named!(
    /// How many optimization profiles an engine has.
    Profiles, "profiles", {
        /// One of 1 to the most new tokens.
        One = "one",
        /// One for a single new token, one for more. TensorRT stores weights of both: larger plans and longer builds.
        Two = "two",
    }
);

/// What only TensorRT engines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRtOptions {
    /// Whether matrix products accumulate in fp32 whatever their dtype.
    pub fp32_accumulation: bool,
    /// How attention is expressed.
    pub attention: AttentionForm,
    /// Where the weights are.
    pub weights: WeightPlacement,
    /// Whether weights may be streamed from host memory as the engine runs.
    pub weight_streaming: bool,
    /// How many optimization profiles.
    pub profiles: Profiles,
}

impl Default for TensorRtOptions {
    fn default() -> Self {
        Self {
            fp32_accumulation: true,
            attention: AttentionForm::Auto,
            weights: WeightPlacement::Auto,
            weight_streaming: false,
            profiles: Profiles::One,
        }
    }
}
