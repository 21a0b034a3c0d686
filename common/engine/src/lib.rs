//! The engine: what the compiler makes and an executor loads.
//!
//! An engine is a [`Manifest`] and the blobs it names. Blobs are content-addressed, so that engines share weights and
//! tokenizers; the [`EngineKey`] is a hash of everything that makes one engine differ from another.

#![forbid(unsafe_code)]

mod compute_capability;
mod files;
mod key;
mod manifest;
mod options;
mod target;
mod tensorrt;
mod validate;
mod weight_quantization;

pub use compute_capability::{ComputeCapabilities, ComputeCapability};
pub use files::{EngineFiles, blob_names};
pub use key::{EngineKey, InvalidKey, KeyInputs};
pub use manifest::{BlobRef, KvRing, Manifest, ManifestError, MemoryPlan, ModelInfo, Patches, VisionInfo};
pub use options::{BackendKind, CacheKind, Component, EngineOptions, Precision, UnknownName};
pub use target::Target;
pub use tensorrt::{AttentionForm, Profiles, TensorRtOptions, WeightPlacement};
pub use weight_quantization::WeightQuantization;
