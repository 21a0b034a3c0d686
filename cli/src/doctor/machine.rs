//! The machine itself.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::output;

/// What the machine has.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
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
}

impl Machine {
    pub(super) fn examine() -> Self {
        let nvidia_driver = std::fs::read_to_string("/proc/driver/nvidia/version")
            .ok()
            .and_then(|text| text.lines().next().map(str::to_owned));
        Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory_bytes(),
            cpu_features: cpu_features(),
            cpu_path: roundhouse_cpu_kernels::Isa::detect().name().to_owned(),
            nvidia_driver,
            python: version_of("python3"),
        }
    }

    pub(super) fn print(&self) {
        println!("machine    {} {}, {} cores", self.os, self.arch, self.cores);
        if let Some(bytes) = self.memory_bytes {
            println!("memory     {}", output::bytes(bytes));
        }
        println!("processor  {} (kernels: {})", self.cpu_features.join(" "), self.cpu_path);
        println!("GPU driver {}", self.nvidia_driver.as_deref().unwrap_or("none"));
        println!(
            "python     {}",
            self.python.as_deref().unwrap_or("none: only `make demo` and `make test` want it")
        );
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
