//! A loaded engine on its device: its executions, the buffers of its inputs and logits, and its caches.
//!
//! Lives on the device's thread. One step at a time: rows in, logits out.

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use parking_lot::Mutex;
use roundhouse_engine::{CacheKind, MemoryPlan};
use roundhouse_tensorrt_network::DataType;

use crate::DeviceError;
use crate::device::{Device, Engine, EngineSource, Execution, ExecutionOptions};
use crate::signature::{
    END, INPUT_IDS, KV_LENGTHS, LOGITS, POSITION_IDS, QUERY_LENGTHS, START, Signature, WRITE_INDICES,
};
use crate::slabs::Slabs;
use crate::slots::Slots;

/// One run of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where the rows' caches are; any, without a cache.
    pub(crate) slab: usize,
    /// The first of them.
    pub(crate) first_row: usize,
    /// New tokens of each row.
    pub(crate) seq: usize,
    /// The rows.
    pub(crate) rows: Vec<StepRow>,
}

/// A row of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepRow {
    /// Tokens in its cache.
    pub(crate) past: usize,
    /// Its new tokens; none for a row that nobody uses.
    pub(crate) tokens: Vec<u32>,
    /// Which of them have logits that are wanted.
    pub(crate) wanted: Range<usize>,
}

/// The most that an engine is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepLimits {
    /// Rows.
    pub(crate) rows: usize,
    /// New tokens of a row.
    pub(crate) seq: usize,
    /// Rows of logits.
    pub(crate) logits: usize,
}

/// An input or output with a buffer of its own.
struct Staged<B> {
    name: &'static str,
    buffer: B,
}

/// A loaded engine on its device. Fields are dropped in this order: executions before the engine that they are of, both
/// before the memory that they use.
pub(crate) struct Executor<D: Device> {
    /// For one new token a row, then for more; one for both where they would not differ.
    executions: Vec<<D::Engine as Engine>::Execution>,
    engine: D::Engine,
    inputs: Vec<Staged<D::Buffer>>,
    logits: D::Buffer,
    slabs: Slabs<D>,
    signature: Arc<Signature>,
    memory: MemoryPlan,
    /// Whether the kernels of the first step are kept.
    kept_kernels: bool,
}

impl<D: Device> Executor<D> {
    /// Loads an engine. `planned` is what its manifest says of its memory, for what the device cannot tell.
    pub(crate) fn load(
        device: &mut D,
        source: &EngineSource<'_>,
        signature: Arc<Signature>,
        limits: StepLimits,
        slots: Arc<Mutex<Slots>>,
        planned: &MemoryPlan,
    ) -> Result<Self, DeviceError> {
        let free = device.free_bytes();
        let mut engine = device.load(source)?;
        let weights = free.zip(device.free_bytes()).map(|(before, after)| before.saturating_sub(after));
        let options = execution_options(&signature);
        let mut executions = engine.executions(&options)?;
        if executions.len() != options.len() {
            return Err(DeviceError::Engine("the engine made too few executions".to_owned()));
        }

        let mut staged_bytes = 0;
        let mut allocate = |device: &mut D, bytes: usize| {
            staged_bytes += bytes as u64;
            device.allocate(bytes)
        };
        let tokens = limits.rows.saturating_mul(limits.seq).saturating_mul(size_of::<i64>());
        let mut inputs = Vec::new();
        for &name in &signature.token_inputs {
            inputs.push(Staged { name, buffer: allocate(device, tokens)? });
        }
        for &name in &signature.row_inputs {
            inputs.push(Staged { name, buffer: allocate(device, limits.rows * size_of::<i64>())? });
        }
        let logit_bytes = signature.vocab_size.saturating_mul(signature.logits.size());
        let logits = allocate(device, limits.logits.saturating_mul(logit_bytes))?;
        for execution in &mut executions {
            for input in &inputs {
                execution.bind_input(input.name, &input.buffer, 0)?;
            }
            execution.bind_output(LOGITS, &logits, 0)?;
        }
        let memory = MemoryPlan {
            weight_bytes: weights.filter(|&bytes| bytes > 0).unwrap_or(planned.weight_bytes),
            kv_bytes_per_token: signature.kv_bytes_per_token(),
            workspace_bytes: engine
                .workspace_bytes()
                .map_or(planned.workspace_bytes, |bytes| bytes + staged_bytes),
            kv_rings: Vec::new(),
        };
        let slabs = Slabs::new(Arc::clone(&signature), slots, executions.len());
        Ok(Self { executions, engine, inputs, logits, slabs, signature, memory, kept_kernels: false })
    }

    /// The memory that it takes.
    pub(crate) fn memory_plan(&self) -> MemoryPlan {
        self.memory.clone()
    }

    /// Gives a slab memory if it has none.
    pub(crate) fn open_slab(&mut self, device: &mut D, slab: usize) -> Result<(), DeviceError> {
        self.slabs.close_unwanted(&mut self.executions)?;
        self.slabs.open(device, slab)
    }

    /// Runs a step; the wanted logits, one row after the other.
    pub(crate) fn run(&mut self, device: &mut D, step: &Step) -> Result<Vec<f32>, DeviceError> {
        self.slabs.close_unwanted(&mut self.executions)?;
        let index = if step.seq == 1 { 0 } else { self.executions.len() - 1 };
        let execution = self
            .executions
            .get_mut(index)
            .ok_or_else(|| DeviceError::Engine("the engine has no execution".to_owned()))?;
        let rows = dim(step.rows.len());
        for input in &self.inputs {
            let values = values(input.name, step);
            device.upload(&input.buffer, 0, bytemuck::cast_slice(&values))?;
            match input.name {
                INPUT_IDS | POSITION_IDS => execution.set_input_shape(input.name, &[rows, dim(step.seq)])?,
                _ => execution.set_input_shape(input.name, &[rows])?,
            }
        }
        for &name in &self.signature.index_inputs {
            execution.set_shape_values(name, &values(name, step))?;
        }
        for cache in &self.signature.caches {
            let [heads, length, head_dim] = cache.row_dims;
            execution.set_input_shape(&cache.input, &[rows, heads, length, head_dim])?;
        }
        self.slabs.bind(device, execution, index, step)?;
        execution.enqueue()?;
        let logits = self.take_logits(device, step)?;
        self.slabs.ran(step);
        if !self.kept_kernels {
            self.kept_kernels = true;
            self.engine.keep_kernels();
        }
        Ok(logits)
    }

    /// Waits for the run and reads the logits that are wanted.
    fn take_logits(&self, device: &mut D, step: &Step) -> Result<Vec<f32>, DeviceError> {
        let columns = self.signature.vocab_size;
        let row_bytes = columns * self.signature.logits.size();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (index, row) in step.rows.iter().enumerate().filter(|(_, row)| !row.wanted.is_empty()) {
            let wanted = match self.signature.all_logits {
                true => index * step.seq + row.wanted.start..index * step.seq + row.wanted.end,
                false => index..index + 1,
            };
            let bytes = wanted.start * row_bytes..wanted.end * row_bytes;
            match ranges.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => ranges.push(bytes),
            }
        }
        let bytes = device.download(&self.logits, &ranges)?;
        Ok(floats(&bytes, self.signature.logits))
    }
}

impl<D: Device> Drop for Executor<D> {
    fn drop(&mut self) {
        self.engine.keep_kernels();
    }
}

/// One execution for single tokens and one for more, where they have different profiles, or where a step of single
/// tokens is worth a CUDA graph: all its addresses and shapes are on the device and repeat.
fn execution_options(signature: &Signature) -> Vec<ExecutionOptions> {
    let in_place = signature.cache == CacheKind::InPlace;
    let decode = ExecutionOptions { profile: signature.decode().unwrap_or(0), repeats: in_place };
    let prefill = ExecutionOptions { profile: signature.prefill(), repeats: false };
    if decode == prefill { vec![prefill] } else { vec![decode, prefill] }
}

/// The elements of an input.
fn values(input: &str, step: &Step) -> Vec<i64> {
    let tokens = |of: &dyn Fn(&StepRow, usize) -> i64| {
        step.rows.iter().flat_map(|row| (0..step.seq).map(|at| of(row, at))).collect()
    };
    let rows = |of: &dyn Fn(&StepRow) -> usize| step.rows.iter().map(|row| dim(of(row))).collect();
    let first =
        |of: &dyn Fn(&StepRow) -> usize| step.rows.first().map(|row| dim(of(row))).into_iter().collect();
    match input {
        INPUT_IDS => tokens(&|row, at| row.tokens.get(at).map_or(0, |&token| i64::from(token))),
        POSITION_IDS => tokens(&|row, at| dim(row.past + at)),
        WRITE_INDICES => rows(&|row| row.past),
        KV_LENGTHS => rows(&|row| row.past + step.seq),
        QUERY_LENGTHS => rows(&|_| step.seq),
        START => first(&|row| row.past),
        END => first(&|row| row.past + step.seq),
        _ => Vec::new(),
    }
}

fn dim(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Little-endian elements as fp32.
fn floats(bytes: &[u8], dtype: DataType) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect::<Vec<u16>>();
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    match dtype {
        DataType::Half => bytemuck::cast_slice::<u16, f16>(&halves()).convert_to_f32_slice(&mut values),
        DataType::Bf16 => bytemuck::cast_slice::<u16, bf16>(&halves()).convert_to_f32_slice(&mut values),
        DataType::Float | DataType::Int32 | DataType::Int64 | DataType::Bool => {
            let (chunks, _) = bytes.as_chunks();
            values.iter_mut().zip(chunks).for_each(|(value, &bytes)| *value = f32::from_le_bytes(bytes));
        }
    }
    values
}
