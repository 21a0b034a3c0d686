//! A tiny model of every family on the emulated device, against Transformers' logits.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

#[path = "../examples/bench/engine.rs"]
mod engine;
#[path = "../examples/bench/goldens.rs"]
mod goldens;

use std::path::Path;
use std::sync::Arc;

use roundhouse_cuda_builder::CudaBuilder;
use roundhouse_cuda_emulation::{EmulatedDevice, EmulationCompiler};
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::{CacheKind, Precision};

const GOLDENS: &str = include_str!("../../../../../compiler-svc/models/tests/golden/families.json");

fn every_family(precision: Precision, allowed: f32) {
    let goldens: Vec<goldens::Golden> = serde_json::from_str(GOLDENS).unwrap();
    let builder = CudaBuilder::new(Arc::new(EmulationCompiler), None);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("cuda-emulation");
    let runtime = CudaRuntime::on(Arc::new(EmulatedDevice::new(folder)));
    for golden in goldens {
        let difference = golden.difference(&builder, &runtime, precision, CacheKind::InPlace).unwrap();
        assert!(difference < allowed, "{}: {difference:e}", golden.name);
    }
}

/// Sums of some 30 products, made in another order.
#[test]
fn fp32_logits_are_those_of_transformers() {
    every_family(Precision::Fp32, 2e-5);
}

/// Some 30 values stored one after another, each rounded by at most half a unit in the last place: as in the suite.
#[test]
fn fp16_logits_are_those_of_transformers_but_for_rounding() {
    every_family(Precision::Fp16, 16.0 / 2048.0);
}

#[test]
fn bf16_logits_are_those_of_transformers_but_for_rounding() {
    every_family(Precision::Bf16, 16.0 / 256.0);
}
