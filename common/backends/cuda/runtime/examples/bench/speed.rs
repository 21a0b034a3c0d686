//! How fast engines are.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use roundhouse_backend::{Cache, GreedySequence, LogitsRequest, Model, Runtime as _, Sequence};
use roundhouse_cuda_builder::{CudaBuilder, PLAN};
use roundhouse_cuda_device::{Device, Driver, GPU, Memory};
use roundhouse_cuda_plan::Plan;
use roundhouse_cuda_runtime::CudaRuntime;
use roundhouse_engine::{CacheKind, Precision, WeightQuantization};

use crate::engine::{build, options};
use crate::shapes::{NAMES, Shape};

const PROMPT: usize = 512;
const NEW_TOKENS: usize = 128;
const LONG_CONTEXT: usize = 32_768;
const COPIED_BYTES: usize = 2 << 30;

/// The middle of some measurements.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes read and written a second by a copy on the device.
fn copy_bandwidth(device: &Arc<dyn Device>) -> anyhow::Result<f64> {
    let (from, to) = (Memory::new(device, COPIED_BYTES)?, Memory::new(device, COPIED_BYTES)?);
    let stream = device.stream();
    let mut times = Vec::new();
    for _ in 0..8 {
        let started = Instant::now();
        for _ in 0..4 {
            device.copy_within(stream, to.address(), from.address(), COPIED_BYTES)?;
        }
        device.synchronize(stream)?;
        times.push(started.elapsed().as_secs_f64() / 4.0);
    }
    Ok(2.0 * COPIED_BYTES as f64 / median(times))
}

/// Sequences of a model.
struct Batch<'a> {
    model: &'a dyn Model,
    caches: Vec<Box<dyn Cache>>,
    logits: Vec<Vec<f32>>,
}

impl<'a> Batch<'a> {
    fn new(model: &'a dyn Model, sequences: usize, capacity: usize) -> anyhow::Result<Self> {
        let caches = (0..sequences).map(|_| model.new_cache(capacity)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { model, caches, logits: vec![Vec::new(); sequences] })
    }

    fn length(&self) -> usize {
        self.caches.first().map_or(0, |cache| cache.len())
    }

    fn truncate(&mut self, length: usize) {
        for cache in &mut self.caches {
            cache.truncate(length);
        }
    }

    /// Appends the same tokens to all.
    fn step(&mut self, tokens: &[u32], request: LogitsRequest) -> anyhow::Result<()> {
        let parts = self.caches.iter_mut().zip(&mut self.logits);
        let mut batch: Vec<Sequence<'_>> =
            parts.map(|(cache, logits)| Sequence { cache: &mut **cache, tokens, request, logits }).collect();
        Ok(self.model.forward(&mut batch)?)
    }

    /// Seconds of a decode step that finds the next token on the device, `steps` of them at once.
    fn decode_greedily(&mut self, steps: usize) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        let length = self.length();
        let mut tokens = vec![7; self.caches.len()];
        for _ in 0..NEW_TOKENS / steps {
            let started = Instant::now();
            let parts = self.caches.iter_mut().zip(&tokens);
            let mut batch: Vec<GreedySequence<'_>> =
                parts.map(|(cache, &token)| GreedySequence { cache: &mut **cache, token }).collect();
            let mut last = Vec::new();
            let is_found = self.model.decode_greedily(&mut batch, steps, &mut |found| {
                last = found.to_vec();
                ControlFlow::Continue(())
            })?;
            ensure!(is_found, "no tokens are found on the device");
            tokens = last;
            times.push(started.elapsed().as_secs_f64() / steps as f64);
        }
        self.truncate(length);
        Ok(median(times))
    }

    /// Seconds of a decode step, the middle of [`NEW_TOKENS`].
    fn decode(&mut self, request: LogitsRequest) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        let length = self.length();
        for token in 0..NEW_TOKENS {
            let started = Instant::now();
            self.step(&[token as u32 + 7], request)?;
            times.push(started.elapsed().as_secs_f64());
        }
        self.truncate(length);
        Ok(median(times))
    }
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|position| position * 7919 % 50_000).collect()
}

/// Measures the models, all of them where none is named, and prints a line for each measurement.
pub(crate) fn measure(builder: &CudaBuilder, folder: &Path, names: &[&str]) -> anyhow::Result<()> {
    let device: Arc<dyn Device> = Arc::new(Driver::open(GPU)?);
    let bandwidth = copy_bandwidth(&device)?;
    let properties = device.properties();
    println!(
        "{}, {} multiprocessors; copy {:.0} GB/s",
        properties.name,
        properties.multiprocessors,
        bandwidth / 1e9
    );
    for &name in if names.is_empty() { &NAMES[..] } else { names } {
        one(builder, &device, folder, name, bandwidth).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn one(
    builder: &CudaBuilder,
    device: &Arc<dyn Device>,
    folder: &Path,
    name: &str,
    bandwidth: f64,
) -> anyhow::Result<()> {
    let shape =
        Shape::named(name).with_context(|| format!("unknown model; there are {}", NAMES.join(", ")))?;
    let longest = shape.config["max_position_embeddings"].as_u64().unwrap_or(1024);
    let max_seq_len = u32::try_from(longest)?.min(LONG_CONTEXT as u32 + 256);
    let folder = tempfile::Builder::new().tempdir_in(folder)?;
    let quantization = match shape.weights.are_quantized() {
        true => WeightQuantization::Checkpoint,
        false => WeightQuantization::None,
    };
    let options = options(Precision::Fp16, CacheKind::InPlace, max_seq_len, 64, quantization);
    let started = Instant::now();
    let files = build(builder, name, &shape.config, &shape.weights, &options, folder.path())?;
    println!("{name}: built in {:.1} s", started.elapsed().as_secs_f64());

    let runtime = CudaRuntime::on(Arc::clone(device));
    let (free, _) = device.memory()?;
    let started = Instant::now();
    let model = runtime.load(&files)?;
    let load = started.elapsed().as_secs_f64();
    let memory = model.memory_plan();
    let taken = free.saturating_sub(device.memory()?.0);
    // As they are stored: the bytes, scales and offsets of those that are quantised.
    let plan: Plan = serde_json::from_slice(&std::fs::read(files.path(PLAN)?)?)?;
    let weights = plan.step_weight_bytes() as f64;
    println!(
        "{name}: loaded in {load:.2} s, {:.2} GB on the device ({:.2} GB of weights, of which a step reads {:.2} GB)",
        taken as f64 / 1e9,
        memory.weight_bytes as f64 / 1e9,
        weights / 1e9
    );
    for sequences in [1, 16, 64] {
        let mut batch = Batch::new(&*model, sequences, PROMPT + 2 * NEW_TOKENS)?;
        batch.step(&prompt(64), LogitsRequest::None)?;
        let mut first = Vec::new();
        for _ in 0..if sequences == 1 { 5 } else { 2 } {
            batch.truncate(0);
            let started = Instant::now();
            batch.step(&prompt(PROMPT), LogitsRequest::Last)?;
            first.push(started.elapsed().as_secs_f64());
        }
        batch.decode(LogitsRequest::None)?;
        let bare = batch.decode(LogitsRequest::None)?;
        let whole = batch.decode(LogitsRequest::Last)?;
        let (greedy, ahead) = (batch.decode_greedily(1)?, batch.decode_greedily(8)?);
        let keys = (memory.kv_bytes_per_token * (PROMPT + NEW_TOKENS / 2) as u64 * sequences as u64) as f64;
        println!(
            "{name}: {sequences:2} sequences: first token {:.2} ms, {:.1} tok/s without logits ({:.1} us a step, {:.1} % of copy), \
             {:.1} tok/s with logits on the host, {:.1} tok/s greedy on the device, {:.1} tok/s eight steps ahead",
            median(first) * 1e3,
            sequences as f64 / bare,
            bare * 1e6,
            100.0 * (weights + keys) / bare / bandwidth,
            sequences as f64 / whole,
            sequences as f64 / greedy,
            sequences as f64 / ahead,
        );
    }
    if max_seq_len as usize > LONG_CONTEXT {
        long_context(&*model, name, bandwidth)?;
    }
    Ok(())
}

/// Attention at a long context: what a decode step takes more there than at a short one.
fn long_context(model: &dyn Model, name: &str, bandwidth: f64) -> anyhow::Result<()> {
    let capacity = LONG_CONTEXT + 200;
    let mut batch = Batch::new(model, 1, capacity)?;
    batch.step(&prompt(64), LogitsRequest::None)?;
    let short = batch.decode(LogitsRequest::None)?;
    let started = Instant::now();
    let rest = LONG_CONTEXT - batch.length();
    batch.step(&prompt(rest), LogitsRequest::None)?;
    let prefill = started.elapsed().as_secs_f64();
    let long = batch.decode(LogitsRequest::None)?;
    let memory = model.memory_plan();
    let read = memory.kv_bytes(LONG_CONTEXT as u64) as f64 - memory.kv_bytes(128) as f64;
    println!(
        "{name}: at {LONG_CONTEXT} tokens: {:.1} tok/s; attention reads {:.0} MB in {:.1} us more, {:.1} % of copy; \
         prefilled at {:.0} tok/s",
        1.0 / long,
        read / 1e6,
        (long - short) * 1e6,
        100.0 * read / (long - short) / bandwidth,
        rest as f64 / prefill,
    );
    Ok(())
}
