//! The same generation by Transformers on PyTorch, for comparison: `run-llm --enable-pytorch-run`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// The program that runs it.
const PROGRAM: &str = include_str!("pytorch_run.py");

/// What to generate.
#[derive(Debug, Serialize)]
pub(crate) struct Request<'a> {
    /// A hub ID, folder or GGUF file.
    pub(crate) model: &'a str,
    /// `float32`, `float16` or `bfloat16`.
    pub(crate) dtype: &'static str,
    pub(crate) prompt_token_ids: &'a [u32],
    pub(crate) num_tokens: u32,
    pub(crate) ignore_eos: bool,
    pub(crate) eos_token_ids: &'a [u32],
    pub(crate) iterations: u32,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) output_token_ids: Vec<u32>,
    pub(crate) ttft_ms: f64,
    pub(crate) tpot_ms: f64,
}

/// Runs it with `python`, which must have torch and transformers.
pub(crate) fn run(python: &str, request: &Request<'_>) -> anyhow::Result<Answer> {
    let mut process = Command::new(python)
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("--enable-pytorch-run: cannot start {python:?} (see --python)"))?;
    let mut input = process.stdin.take().context("the Python program has no standard input")?;
    input.write_all(&serde_json::to_vec(request)?)?;
    drop(input);
    let output = process.wait_with_output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let last = message.trim_end().lines().last().unwrap_or("it said nothing").to_owned();
        bail!(
            "--enable-pytorch-run: {last} ({python} needs torch, transformers and, for GGUF files, gguf and accelerate)"
        );
    }
    serde_json::from_slice(&output.stdout).context("the Python program's answer")
}
