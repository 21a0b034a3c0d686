//! Every case on the emulated device.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use roundhouse_cuda_emulation::{EmulatedDevice, EmulationCompiler, Mistake};
use roundhouse_cuda_kernel_suite::{Case, Runner, all};
use roundhouse_cuda_kernels::KernelCompiler;

/// Compiled kernels stay here from run to run.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulation")
}

fn run(case: &Case) -> Result<(), String> {
    run_on(EmulatedDevice::new(folder()), case)
}

fn run_on(device: EmulatedDevice, case: &Case) -> Result<(), String> {
    let device = Arc::new(device);
    let compiler = EmulationCompiler;
    let image = compiler.compile(&case.kernels, compiler.targets()[0]).map_err(|error| error.to_string())?;
    let runner = Runner::new(device, &image).map_err(|error| error.to_string())?;
    case.run(&runner).map_err(|error| error.to_string())
}

#[test]
fn every_kernel_gives_what_its_reference_gives() {
    // A part of the names, to run fewer while working on one kernel.
    let wanted = std::env::var("CASES").unwrap_or_default();
    let cases: Vec<Case> = all().into_iter().filter(|case| case.name.contains(&wanted)).collect();
    assert!(!cases.is_empty(), "no case is called {wanted}");
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = run(case) {
                    failures.push(format!("{}: {error}", case.name));
                }
            }
            failures
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// What is wrong, the case that has to notice, what is in the source and what is put there.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    (
        "a barrier is missing",
        "linear_any_f16 2x9 flags 0x1",
        "= v;\n  __syncthreads();\n  float total",
        "= v;\n  float total",
    ),
    (
        "a key past the end counts",
        "attention_decode_tensor_f16_d40_g8",
        "+ 2 * t + e < last ?",
        "+ 2 * t + e <= last ?",
    ),
    (
        "the window is one too wide",
        "attention_decode_fma_f32 splits 1 f32 d32 g2 window 20",
        "? end - window : 0",
        "? end - window - 1 : 0",
    ),
    (
        "a ring is not wrapped",
        "attention_decode_fma_f32 splits 1 f32 d32 g2 window 20",
        "(key % k_cache.rows)",
        "(key)",
    ),
    (
        "a query sees the next key",
        "attention_prefill_f16_d64 f16 d64 g4",
        "key > position ||",
        "key > position + 1 ||",
    ),
    ("copies are not waited for", "attention_prefill_f16_d64 f16 d64 g4", "wait_for_copies<0>();", ""),
    (
        "a split of the columns is left out",
        "linear_rows1x4_f16_k2048",
        "other < SPLIT;",
        "other < SPLIT - 1;",
    ),
    ("the second row is the first", "linear_tensor8x1_f16", "(j0 + 8 < last ? j0 + 8 : last)", "i0"),
    (
        "nibbles are swapped",
        "linear_tensor8x2_f16_int4",
        "(4 + e / 2) << 8 | e / 2",
        "e / 2 << 8 | (4 + e / 2)",
    ),
    (
        "a part of a tile is left out",
        "linear_tiles64_f16_bias_gated_gelu_residual 63x70",
        "int z = 0; z <",
        "int z = 1; z <",
    ),
    (
        "a group of warps has another's rows",
        "linear_warpgroups128_f16",
        "+ warp / 4 * (64 * TILE_COLUMNS)",
        "",
    ),
    ("the mean is not taken off", "norm_layer_f32", "(h[i + e] - mean) * factor", "h[i + e] * factor"),
    ("pairs are not rotated together", "rotary f32 None d64", "(second ? sine : -sine)", "sine"),
    ("equal tokens are all kept", "sample", "running_equals + equal_count <= equals_kept", "true"),
];

#[test]
fn mistakes_are_noticed() {
    let cases = all();
    for &(what, name, right, wrong) in MISTAKES {
        let mistake = Mistake { right: right.to_owned(), wrong: wrong.to_owned() };
        let case = cases.iter().find(|case| case.name.contains(name));
        let case = case.unwrap_or_else(|| panic!("{what}: no case is called {name}"));
        let noticed = run_on(EmulatedDevice::with_mistake(folder(), mistake), case);
        let error = noticed.expect_err(what);
        assert!(!error.contains("does not compile"), "{what}: {error}");
    }
}
