//! The suite and the speed of the kernels on a GPU.
//!
//!     cargo run -p roundhouse-cuda-kernel-suite --example gpu -- image sm_90 DIR [suite] [speed]
//!                        compile with NVRTC (no GPU needed)
//!     gpu suite DIR      every case on the GPU
//!     gpu speed DIR      times of kernels as parts of the speed of a device-to-device copy
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

mod speed;
mod timed;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use roundhouse_backend::LibrarySearch;
use roundhouse_cuda_device::{Device, Driver, GPU};
use roundhouse_cuda_kernel_suite::{Runner, all};
use roundhouse_cuda_kernels::{Kernel, KernelCompiler};
use roundhouse_cuda_nvrtc::Nvrtc;
use roundhouse_engine::ComputeCapability;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["image", target, folder, ref parts @ ..] => image(target.parse()?, Path::new(folder), parts),
        ["suite", folder] => suite(Path::new(folder)),
        ["speed", folder] => speed::run(&runner(&Path::new(folder).join("speed.cubin"))?),
        _ => bail!("gpu image TARGET DIR [suite] [speed] | suite DIR | speed DIR"),
    }
}

/// Compiles the kernels of the suite and of the timings, in parts at a time.
fn image(target: ComputeCapability, folder: &Path, parts: &[&str]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let nvrtc = Nvrtc::open(&LibrarySearch { path: None, folders: vec![".roundhouse/nvrtc".into()] })?;
    let suite: Vec<Kernel> = all().into_iter().flat_map(|case| case.kernels).collect();
    let images = [("speed", timed::kernels()), ("suite", suite)];
    for (name, kernels) in images.into_iter().filter(|(name, _)| parts.is_empty() || parts.contains(name)) {
        let name = format!("{name}.cubin");
        let start = std::time::Instant::now();
        let cubin = nvrtc.compile(&kernels, target)?;
        println!("{name}: {} bytes in {:.1} s", cubin.len(), start.elapsed().as_secs_f64());
        std::fs::write(folder.join(&name), cubin)?;
    }
    Ok(())
}

fn runner(image: &Path) -> anyhow::Result<Runner> {
    let device: Arc<dyn Device> = Arc::new(Driver::open(GPU)?);
    println!("{:?}", device.properties());
    let cubin = std::fs::read(image).with_context(|| image.display().to_string())?;
    Ok(Runner::new(device, &cubin)?)
}

fn suite(folder: &Path) -> anyhow::Result<()> {
    let runner = runner(&folder.join("suite.cubin"))?;
    let cases = all();
    let mut failed = 0;
    for case in &cases {
        if let Err(error) = case.run(&runner) {
            failed += 1;
            println!("FAILED {}: {error}", case.name);
        }
    }
    println!("{} cases, {failed} failed", cases.len());
    if failed == 0 { Ok(()) } else { bail!("{failed} cases failed") }
}
