//! Every case on the emulated device.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use roundhouse_cuda_emulation::{EmulatedDevice, EmulationCompiler};
use roundhouse_cuda_kernel_suite::{Case, Runner, all};
use roundhouse_cuda_kernels::KernelCompiler;

/// Compiled kernels stay here from run to run.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulation")
}

fn run(case: &Case) -> Result<(), String> {
    let device = Arc::new(EmulatedDevice::new(folder()));
    let compiler = EmulationCompiler;
    let image = compiler.compile(&case.kernels, compiler.targets()[0]).map_err(|error| error.to_string())?;
    let runner = Runner::new(device, &image).map_err(|error| error.to_string())?;
    case.run(&runner).map_err(|error| error.to_string())
}

#[test]
fn every_kernel_gives_what_its_reference_gives() {
    let cases = all();
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
