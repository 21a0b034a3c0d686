//! The CUDA backend on this machine's GPU.
//!
//!     bench conformance                 the suite that every backend passes
//!     bench goldens FILE                tiny models of every family against Transformers' logits
//!     bench checkpoint FOLDER MODEL…    folders with checkpoints of random weights, which the compiler takes
//!     bench speed FOLDER MODEL…         engines of random weights, made in FOLDER: load, TTFT, tokens a second, attention
//!
//! `speed` measures the bandwidth of a copy on the device in the same run, and counts the bytes of weights as they are stored.
//! Models: see `shapes::NAMES`; `speed` quantises those of `llama-3.2-1b:int4` (`int8`, `int4`, `int4-symmetric` or `fp8`, and
//! after another colon the columns of a group). NVRTC is looked for in the folders of `NVRTC_FOLDERS`, which colons part.

mod checkpoint;
mod engine;
mod goldens;
mod shapes;
mod speed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use roundhouse_backend::LibrarySearch;
use roundhouse_backend_conformance::suite::{self, Backend, PROMISES};
use roundhouse_cuda_builder::{CudaBuilder, UNSUPPORTED_OPS};
use roundhouse_cuda_device::{GPU, compute_capability};
use roundhouse_cuda_kernels::{CompileError, Kernel, KernelCompiler};
use roundhouse_cuda_nvrtc::Nvrtc;
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::{CacheKind, ComputeCapability, EngineOptions, Precision, WeightQuantization};
use roundhouse_graph::{Graph, PassReport};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let ["checkpoint", folder, models @ ..] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        return checkpoint::write(Path::new(folder), models);
    }
    let folders = std::env::var_os("NVRTC_FOLDERS").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    let nvrtc = Nvrtc::open(&LibrarySearch { path: None, folders })?;
    let compiler = Kept { compiler: nvrtc, images: Mutex::default() };
    let builder = CudaBuilder::new(Arc::new(compiler), compute_capability(GPU).ok());
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["conformance"] => conformance(&builder),
        ["goldens", file] => goldens(&builder, Path::new(file)),
        ["speed", folder, models @ ..] => speed::measure(&builder, Path::new(folder), models),
        _ => {
            bail!("usage: bench conformance | goldens FILE | checkpoint FOLDER MODEL… | speed FOLDER MODEL…")
        }
    }
}

/// Compiles the same kernels once: engines of the suite share most of theirs.
struct Kept {
    compiler: Nvrtc,
    images: Mutex<HashMap<Vec<String>, Arc<OnceLock<Image>>>>,
}

type Image = Result<Vec<u8>, CompileError>;

impl KernelCompiler for Kept {
    fn version(&self) -> String {
        self.compiler.version()
    }

    fn targets(&self) -> Vec<ComputeCapability> {
        self.compiler.targets()
    }

    fn compile(&self, kernels: &[Kernel], target: ComputeCapability) -> Image {
        let names = kernels.iter().map(Kernel::name).chain([target.to_string()]).collect();
        let image = Arc::clone(self.images.lock().entry(names).or_default());
        image.get_or_init(|| self.compiler.compile(kernels, target)).clone()
    }
}

#[expect(
    clippy::expect_used,
    reason = "the suite's models are its own, and every one of them can be lowered"
)]
fn lower(graph: Graph, options: &EngineOptions) -> (Graph, Vec<PassReport>) {
    roundhouse_lowering::lower(graph, options).expect("a model of the suite")
}

fn conformance(builder: &CudaBuilder) -> anyhow::Result<()> {
    let ops: suite::Promise = |backend| suite::ops(backend, UNSUPPORTED_OPS);
    let examine = |name: &str, promise: suite::Promise| {
        let runtime = CudaRuntime::new();
        let started = Instant::now();
        let outcome = promise(&Backend::new(builder, &runtime, &lower));
        let seconds = started.elapsed().as_secs_f64();
        match &outcome {
            Ok(()) => println!("kept   {name} ({seconds:.1} s)"),
            Err(failure) => println!("BROKEN {name} ({seconds:.1} s): {failure}"),
        }
        outcome.is_ok()
    };
    let examine = &examine;
    let broken = std::thread::scope(|scope| {
        let all: Vec<_> = std::iter::once(("ops", ops)).chain(PROMISES.iter().copied()).collect();
        let threads: Vec<_> =
            all.into_iter().map(|(name, promise)| scope.spawn(move || examine(name, promise))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(false)).filter(|kept| !kept).count()
    });
    ensure!(broken == 0, "{broken} promises are broken");
    Ok(())
}

fn goldens(builder: &CudaBuilder, file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let goldens: Vec<goldens::Golden> = serde_json::from_str(&text)?;
    let runtime = CudaRuntime::new();
    for golden in goldens {
        let mut line = format!("{:24}", golden.name);
        let plain = [WeightQuantization::None];
        for quantization in plain.into_iter().chain(goldens::QUANTIZATIONS) {
            for &precision in Precision::ALL {
                let options = goldens::Golden::options(precision, CacheKind::InPlace, quantization);
                line += &match golden.difference(builder, &runtime, &options) {
                    Ok(difference) => format!(" {quantization} {precision} {difference:.1e}"),
                    Err(error) => format!(" {quantization} {precision} {error:#}"),
                };
            }
        }
        println!("{line}");
    }
    Ok(())
}
