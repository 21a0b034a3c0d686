//! The options that make one engine differ from another of the same checkpoint.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::{ComputeCapabilities, TensorRtOptions, WeightQuantization};

/// A name that is none of the known ones.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} {found:?}: expected one of {expected}")]
pub struct UnknownName {
    /// What was named: `precision`, `cache`, ….
    pub what: &'static str,
    /// The name given.
    pub found: String,
    /// The known names.
    pub expected: String,
}

/// Declares an enum whose variants have one lower-case name each, in JSON, on the command line and in messages.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal, { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
        )]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant),+
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in JSON, on the command line and in messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::UnknownName;

            fn from_str(name: &str) -> Result<Self, $crate::UnknownName> {
                let known = Self::ALL.iter().copied().find(|known| known.name().eq_ignore_ascii_case(name));
                known.ok_or_else(|| $crate::UnknownName {
                    what: $what,
                    found: name.to_owned(),
                    expected: [$($name),+].join(", "),
                })
            }
        }
    };
}

pub(crate) use named;

named!(
    /// The arithmetic of an engine. Softmax, norms and accumulation are fp32 in all of them.
    Precision, "precision", {
        /// IEEE 754 binary32.
        Fp32 = "fp32",
        /// IEEE 754 binary16.
        Fp16 = "fp16",
        /// bfloat16.
        Bf16 = "bf16",
    }
);

impl Precision {
    /// The element type of weights, activations and cache.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::Bf16,
        }
    }
}

named!(
    /// How keys and values of earlier tokens are kept.
    CacheKind, "cache", {
        /// No cache: the whole sequence is computed again each step.
        None = "none",
        /// `new_k = cat(k_cache[..start], k, k_cache[end..])`, attention over `new_k[..end]`.
        StaticV1 = "static_v1",
        /// `ck = cat(k_cache[..start], k)`, attention over `ck`, output `cat(ck, k_cache[end..])`.
        StaticV2 = "static_v2",
        /// Keys and values written in place; lengths per sequence.
        InPlace = "in_place",
    }
);

named!(
    /// What runs an engine.
    BackendKind, "backend", {
        /// TensorRT.
        TensorRt = "tensorrt",
        /// Roundhouse's own CUDA kernels.
        Cuda = "cuda",
        /// CPU kernels.
        Cpu = "cpu",
    }
);

named!(
    /// A part of an engine beside its language model: a graph of its own that runs once for what it is given.
    Component, "component", {
        /// From pixels to hidden states.
        Vision = "vision",
        /// From hidden states to rows that stand for embeddings of the language model.
        Projector = "projector",
    }
);

/// Every option of an engine, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineOptions {
    /// The arithmetic.
    pub precision: Precision,
    /// How keys and values are kept.
    pub cache: CacheKind,
    /// What runs it.
    pub backend: BackendKind,
    /// Prompt and new tokens of one sequence together.
    pub max_seq_len: u32,
    /// Sequences in one step.
    pub max_batch_size: u32,
    /// Whether every position's logits are outputs, not only the last one's.
    pub all_logits: bool,
    /// How the weights of matrix products are kept.
    #[serde(default, skip_serializing_if = "WeightQuantization::is_none")]
    pub quantization: WeightQuantization,
    /// The GPUs it is for; none for the CPU.
    #[serde(default, skip_serializing_if = "ComputeCapabilities::is_empty")]
    pub targets: ComputeCapabilities,
    /// What only TensorRT engines have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensorrt: Option<TensorRtOptions>,
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::str::FromStr;

    use serde::de::DeserializeOwned;

    use super::*;

    fn round_trips<T>(all: &[T], expected: &[&str])
    where
        T: Copy
            + Debug
            + PartialEq
            + std::fmt::Display
            + FromStr<Err = UnknownName>
            + Serialize
            + DeserializeOwned,
    {
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        for value in all.iter().copied() {
            let name = value.to_string();
            assert_eq!(name.parse(), Ok(value));
            assert_eq!(name.to_uppercase().parse(), Ok(value), "names ignore case");
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(json, format!("{name:?}"), "JSON and text agree");
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value);
        }
    }

    #[test]
    fn names_round_trip() {
        round_trips(Precision::ALL, &["fp32", "fp16", "bf16"]);
        round_trips(CacheKind::ALL, &["none", "static_v1", "static_v2", "in_place"]);
        round_trips(BackendKind::ALL, &["tensorrt", "cuda", "cpu"]);
        round_trips(Component::ALL, &["vision", "projector"]);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "fp64".parse::<Precision>().unwrap_err();
        assert_eq!(error.to_string(), r#"unknown precision "fp64": expected one of fp32, fp16, bf16"#);
        assert!("".parse::<CacheKind>().is_err());
        assert!("cpu ".parse::<BackendKind>().is_err());
    }

    #[test]
    fn precision_decides_the_element_type() {
        let types: Vec<_> = Precision::ALL.iter().map(|precision| precision.dtype()).collect();
        assert_eq!(types, [DType::F32, DType::F16, DType::Bf16]);
    }
}
