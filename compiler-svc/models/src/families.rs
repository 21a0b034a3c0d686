//! The table of families, one file each.

mod eagle2;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2_5_vl;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use crate::ModelFamily;

/// The families this compiler knows.
pub const FAMILIES: &[ModelFamily] = &[
    eagle2::FAMILY,
    gemma3::FAMILY,
    gpt2::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    olmo2::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen2_5_vl::FAMILY,
    qwen2_moe::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    smollm3::FAMILY,
];
