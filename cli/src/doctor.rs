//! `doctor`: what this machine can build and run, and what to install.

use std::path::Path;
use std::process::Command;

use clap::Args;
use roundhouse_models::FAMILIES;
use serde::Serialize;

use crate::output;

/// `roundhouse doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    os: &'static str,
    arch: &'static str,
    cores: usize,
    memory_bytes: Option<u64>,
    /// Instruction sets that the CPU backend uses where they are there.
    cpu_features: Vec<&'static str>,
    /// What the kernels will use.
    cpu_path: String,
    nvidia_driver: Option<String>,
    python: Option<String>,
    model_families: Vec<&'static str>,
    backends: Vec<Backend>,
}

/// What a backend can do here.
#[derive(Debug, Serialize)]
struct Backend {
    name: &'static str,
    builds: bool,
    runs: bool,
    /// Why not, and what to do.
    note: String,
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let report = examine();
    if args.json {
        return output::print_json(&report);
    }
    println!("machine    {} {}, {} cores", report.os, report.arch, report.cores);
    if let Some(bytes) = report.memory_bytes {
        println!("memory     {}", output::bytes(bytes));
    }
    println!("processor  {} (kernels: {})", report.cpu_features.join(" "), report.cpu_path);
    println!("GPU driver {}", report.nvidia_driver.as_deref().unwrap_or("none"));
    println!(
        "python     {}",
        report.python.as_deref().unwrap_or("none: only `make demo` and `make test` want it")
    );
    println!("models     {}", report.model_families.join(", "));
    for backend in &report.backends {
        let can = |can: bool| if can { "yes" } else { "no" };
        println!(
            "{:10} builds: {}, runs: {}. {}",
            backend.name,
            can(backend.builds),
            can(backend.runs),
            backend.note
        );
    }
    Ok(())
}

fn examine() -> Report {
    let nvidia_driver = std::fs::read_to_string("/proc/driver/nvidia/version")
        .ok()
        .and_then(|text| text.lines().next().map(str::to_owned));
    let absent = "not part of this version; the cpu backend serves every model".to_owned();
    Report {
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_bytes: memory_bytes(),
        cpu_features: cpu_features(),
        cpu_path: roundhouse_cpu_kernels::Isa::detect().name().to_owned(),
        nvidia_driver,
        python: version_of("python3"),
        model_families: FAMILIES.iter().map(|family| family.architecture).collect(),
        backends: vec![
            Backend { name: "cpu", builds: true, runs: true, note: "Needs nothing.".to_owned() },
            Backend { name: "cuda", builds: false, runs: false, note: absent.clone() },
            Backend { name: "tensorrt", builds: false, runs: false, note: absent },
        ],
    }
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn version_of(program: &str) -> Option<String> {
    let output =
        Command::new(program).arg("--version").output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The instruction sets that the kernels know, as far as this processor has them.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
