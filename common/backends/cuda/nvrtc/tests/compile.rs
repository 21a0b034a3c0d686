//! Compiling kernels for GPUs, on a machine that has none. Without NVRTC these tests fail with how to get it.

use std::path::Path;

use roundhouse_backend::LibrarySearch;
use roundhouse_cuda_kernels::{
    Activation, AttentionCombine, AttentionDecode, AttentionPrefill, Epilogue, Kernel, KernelCompiler,
    Linear, Method, Prologue, Sample, Weight,
};
use roundhouse_cuda_nvrtc::{Nvrtc, cubin};
use roundhouse_engine::ComputeCapability;
use roundhouse_graph::{DType, WeightFormat};

#[expect(clippy::panic, reason = "a test that needs NVRTC fails without it")]
fn nvrtc() -> Nvrtc {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(4);
    let folders = workspace.map(|root| root.join(".roundhouse/nvrtc")).into_iter().collect();
    Nvrtc::open(&LibrarySearch { path: None, folders })
        .unwrap_or_else(|error| panic!("this test needs NVRTC: {error}"))
}

const INT4: Weight =
    Weight::Quantized { format: WeightFormat::Int4, group_size: 32, offsets: true, scales: DType::F16 };
const INT8: Weight =
    Weight::Quantized { format: WeightFormat::Int8, group_size: 16, offsets: true, scales: DType::F32 };
const FP8: Weight =
    Weight::Quantized { format: WeightFormat::Fp8, group_size: 128, offsets: false, scales: DType::F16 };

/// One of each source that is hard on registers.
fn kernels() -> Vec<Kernel> {
    let dtype = DType::Bf16;
    let linear = |columns, method, weight, prologue, epilogue| {
        Kernel::from(Linear { dtype, weight, columns, method, prologue, epilogue })
    };
    let rms = Prologue::RmsNorm { unit_offset: false };
    let gated = Epilogue { gated: true, activation: Activation::Silu, ..Epilogue::NONE };
    let residual = Epilogue { residual: true, ..Epilogue::NONE };
    vec![
        linear(4096, Method::Rows { rows: 1, split: 1 }, Weight::Float, rms, gated),
        linear(14_336, Method::Rows { rows: 1, split: 8 }, Weight::Float, Prologue::None, residual),
        linear(4096, Method::Tensor { rows: 8, split: 2 }, INT4, rms, gated),
        linear(4096, Method::Tensor { rows: 8, split: 4 }, INT4, Prologue::None, residual),
        linear(4096, Method::Tensor { rows: 8, split: 4 }, INT8, Prologue::None, residual),
        linear(4096, Method::Tensor { rows: 16, split: 8 }, INT4, Prologue::None, residual),
        linear(4096, Method::Tensor { rows: 16, split: 2 }, FP8, Prologue::None, gated),
        linear(4096, Method::Tiles { rows: 32 }, INT8, Prologue::None, residual),
        linear(4096, Method::Tiles { rows: 64 }, Weight::Float, Prologue::None, gated),
        linear(4096, Method::Tiles { rows: 64 }, FP8, Prologue::None, gated),
        linear(4096, Method::Tiles { rows: 128 }, INT4, Prologue::None, gated),
        Linear {
            dtype: DType::F32,
            weight: INT4,
            columns: 4096,
            method: Method::Rows { rows: 1, split: 2 },
            prologue: rms,
            epilogue: gated,
        }
        .into(),
        AttentionDecode::new(dtype, 64, 4).into(),
        AttentionDecode::new(dtype, 128, 16).into(),
        AttentionDecode::new(DType::F32, 64, 4).into(),
        AttentionCombine { dtype }.into(),
        AttentionPrefill { dtype, head_dim: 128 }.into(),
        AttentionPrefill { dtype, head_dim: 256 }.into(),
        Sample {}.into(),
    ]
}

#[test]
fn kernels_compile_for_every_target_without_spilling() {
    let nvrtc = nvrtc();
    assert_eq!(nvrtc.version(), "nvrtc.12.9");
    let kernels = kernels();
    for target in nvrtc.targets() {
        let mut kernels = kernels.clone();
        if target == ComputeCapability::new(9, 0) {
            for weight in [Weight::Float, INT4, INT8, FP8] {
                kernels.extend([128, 256].map(|outputs| {
                    Kernel::from(Linear {
                        dtype: DType::Bf16,
                        weight,
                        columns: 4096,
                        method: Method::Warpgroups { outputs },
                        prologue: Prologue::None,
                        epilogue: Epilogue { gated: true, activation: Activation::Silu, ..Epilogue::NONE },
                    })
                }));
            }
        }
        let image = nvrtc.compile(&kernels, target).unwrap();
        let resources = cubin::resources(&image).unwrap();
        for kernel in &kernels {
            let name = kernel.name();
            let found = resources.iter().find(|resources| resources.function == name);
            let found = found.unwrap_or_else(|| panic!("{target}: no {name} in {resources:?}"));
            assert!(found.registers > 0 && found.registers <= 255, "{target}: {found:?}");
            // A block of 1024 threads leaves 64 registers a thread, which is a few too few.
            let most = if matches!(kernel, Kernel::Sample(_)) { 32 } else { 0 };
            assert!(found.stack_bytes <= most, "{target}: {name} spills {}", found.stack_bytes);
        }
    }
}

#[test]
fn the_same_kernels_are_the_same_bytes() {
    let nvrtc = nvrtc();
    let target = nvrtc.targets()[0];
    let kernels =
        [AttentionCombine { dtype: DType::F16 }.into(), AttentionDecode::new(DType::F16, 64, 4).into()];
    let first = nvrtc.compile(&kernels, target).unwrap();
    assert_eq!(nvrtc.compile(&kernels, target).unwrap(), first);
    let backwards: Vec<Kernel> = kernels.into_iter().rev().collect();
    assert_eq!(nvrtc.compile(&backwards, target).unwrap().len(), first.len());
}

#[test]
fn what_does_not_compile_says_why() {
    let nvrtc = nvrtc();
    let error = nvrtc.compile_text("this is no CUDA", nvrtc.targets()[0]).unwrap_err();
    assert!(error.to_string().contains("sm_80") && error.to_string().contains("kernels.cu"), "{error}");
}
