//! Attention over caches.

use roundhouse_cuda_device::Memory;
use roundhouse_cuda_kernels::step::Sequence;
use roundhouse_cuda_kernels::{AttentionCombine, AttentionDecode, AttentionPrefill, Kernel, QUERY_TILE};
use roundhouse_graph::DType;

use super::{FLOATS, HALVES, arguments};
use crate::compare::SUM_SLACK;
use crate::{Case, Random, Runner, SuiteError, Tensor, compare};

/// What of attention a case is about.
#[derive(Debug, Clone)]
struct Shape {
    dtype: DType,
    head_dim: usize,
    group: usize,
    kv_heads: usize,
    window: usize,
    soft_cap: f32,
    /// Rows of a ring; 0 for none.
    ring_rows: usize,
    /// Of each sequence: its keys before the step, and its new rows.
    sequences: Vec<(usize, usize)>,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = |dtype, head_dim, group| Shape {
        dtype,
        head_dim,
        group,
        kv_heads: 2,
        window: 0,
        soft_cap: 0.0,
        ring_rows: 0,
        // One that is all there is, one at a tile's end, one past it; padding is added.
        sequences: vec![(0, 1), (63, 1), (150, 1)],
    };
    for dtype in FLOATS {
        for (head_dim, group) in [(64, 4), (6, 3), (80, 1)] {
            let shape = plain(dtype, head_dim, group);
            cases.push(decode(Shape { sequences: vec![(0, 1), (70, 3)], ..shape.clone() }, 1, 8));
            cases.push(decode(shape, 5, 1));
        }
        let ring = Shape { window: 20, soft_cap: 1.5, ring_rows: 24, ..plain(dtype, 32, 2) };
        cases.push(decode(ring.clone(), 1, 1));
        cases.push(decode(Shape { ring_rows: 0, ..ring }, 4, 1));
    }
    // So many parts that groups of threads add them up.
    for head_dim in [64, 80] {
        let long = Shape { sequences: vec![(1200, 1), (3, 1)], ..plain(DType::F16, head_dim, 2) };
        cases.push(decode(long, 20, 1));
    }
    // Types take turns here: the kernels differ by the width of heads.
    for (i, (head_dim, group)) in [(128, 7), (256, 4), (64, 16), (96, 12), (40, 8)].into_iter().enumerate() {
        cases.push(decode(plain(HALVES[i % 2], head_dim, group), 3, 1));
    }
    for (i, (head_dim, group)) in [(64, 4), (128, 2), (80, 1), (256, 1), (40, 1)].into_iter().enumerate() {
        let mixed = vec![(0, 70), (37, 1), (100, 9), (5, 64)];
        cases.push(prefill(Shape { sequences: mixed, ..plain(HALVES[i % 2], head_dim, group) }));
    }
    for dtype in HALVES {
        let ring = Shape { window: 30, soft_cap: 1.5, ring_rows: 99, ..plain(dtype, 64, 2) };
        cases.push(prefill(Shape { sequences: vec![(90, 70), (0, 3)], ..ring.clone() }));
        cases.push(prefill(Shape { sequences: vec![(20, 67)], ring_rows: 0, ..ring }));
    }
    cases
}

/// The operands on the device.
struct Operands {
    q: Tensor,
    q_stride: usize,
    row_sequence: Vec<i32>,
    row_sequence_memory: Memory,
    sequences: Memory,
    /// Of each sequence: its whole cache, keys and then values.
    caches: Vec<Tensor>,
    out: Tensor,
    out_stride: usize,
}

const SCALE: f32 = 0.2;

impl Shape {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Rows of a sequence's cache with room for `keys`.
    fn capacity(keys: usize) -> usize {
        keys + 3
    }

    fn cache_rows(&self, keys: usize) -> usize {
        let capacity = Self::capacity(keys);
        if self.ring_rows == 0 { capacity } else { capacity.min(self.ring_rows) }
    }

    fn name(&self) -> String {
        let Self { dtype, head_dim, group, window, soft_cap, ring_rows, sequences, .. } = self;
        format!("{dtype} d{head_dim} g{group} window {window} cap {soft_cap} ring {ring_rows} {sequences:?}")
    }

    fn operands(&self, runner: &Runner) -> Result<Operands, SuiteError> {
        let mut random = Random::new((self.head_dim * self.group) as u64);
        let rows: usize = self.sequences.iter().map(|&(_, rows)| rows).sum();
        let (q_stride, out_stride) = (self.heads() * self.head_dim + 16, self.heads() * self.head_dim + 8);
        let mut caches = Vec::new();
        let mut bytes = Vec::new();
        let mut row_sequence = Vec::new();
        for (index, &(past, new)) in self.sequences.iter().enumerate() {
            let count = 2 * self.kv_heads * self.cache_rows(past + new) * self.head_dim;
            // Rows that hold no key yet are NaN: what reads them is noticed.
            let mut values = random.floats(count, 1.0);
            for (row, chunk) in values.chunks_mut(self.head_dim).enumerate() {
                if row % self.cache_rows(past + new) >= past + new {
                    chunk.fill(f32::NAN);
                }
            }
            let cache = runner.numbers(self.dtype, &values)?;
            let sequence = Sequence {
                kv: cache.address(),
                capacity: Self::capacity(past + new) as i32,
                first_row: row_sequence.len() as i32,
                rows: new as i32,
                past: past as i32,
                padding: [0; 2],
            };
            bytes.extend(sequence.to_bytes());
            caches.push(cache);
            row_sequence.extend(std::iter::repeat_n(index as i32, new));
        }
        // A row of padding.
        row_sequence.push(-1);
        Ok(Operands {
            q: runner.numbers(self.dtype, &random.floats((rows + 1) * q_stride, 2.0))?,
            q_stride,
            row_sequence_memory: runner.integers(&row_sequence)?,
            row_sequence,
            sequences: runner.upload(&bytes)?,
            caches,
            out: runner.output(self.dtype, (rows + 1) * out_stride)?,
            out_stride,
        })
    }

    /// `k_full, k_ring, v_full, v_ring`.
    fn places(&self) -> [i64; 4] {
        let each = (self.kv_heads * self.head_dim) as i64;
        if self.ring_rows == 0 { [0, 0, each, 0] } else { [0, 0, 0, each] }
    }

    fn check(&self, runner: &Runner, operands: &Operands, max_rows: usize) -> Result<(), SuiteError> {
        let found = runner.read(self.dtype, &operands.out.memory)?;
        let rounding = match self.dtype {
            DType::F16 => 2_f64.powi(-11),
            DType::Bf16 => 2_f64.powi(-8),
            _ => 0.0,
        };
        let d = self.head_dim;
        let mut first_row = 0;
        for (index, &(past, new)) in self.sequences.iter().enumerate() {
            let rows = self.cache_rows(past + new);
            let cache = &operands.caches[index].values;
            for i in 0..new {
                for head in 0..self.heads() {
                    let at = (first_row + i) * operands.out_stride + head * d;
                    if new > max_rows {
                        let untouched = found[at..at + d].iter().all(|x| x.is_nan());
                        if !untouched {
                            compare("row of another kernel", self.dtype, &[0.0], &[f64::NAN], 0.0)?;
                        }
                        continue;
                    }
                    let q_at = (first_row + i) * operands.q_stride + head * d;
                    let q = &operands.q.values[q_at..q_at + d];
                    let end = past + i + 1;
                    let begin = if self.window == 0 { 0 } else { end.saturating_sub(self.window) };
                    let of = |key: usize, values: usize| {
                        let at = ((values + head / self.group) * rows + key % rows) * d;
                        &cache[at..at + d]
                    };
                    let scores: Vec<f64> = (begin..end)
                        .map(|key| {
                            let dot: f64 = q.iter().zip(of(key, 0)).map(|(q, k)| q * k).sum();
                            let (s, cap) = (dot * f64::from(SCALE), f64::from(self.soft_cap));
                            if cap > 0.0 { cap * (s / cap).tanh() } else { s }
                        })
                        .collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                    let mut expected = vec![0.0; d];
                    for (key, s) in (begin..end).zip(&scores) {
                        let weight = (s - most).exp() / total;
                        for (x, v) in expected.iter_mut().zip(of(key, self.kv_heads)) {
                            *x += weight * v;
                        }
                    }
                    // Weights are rounded to the type for the tensor cores.
                    compare(
                        "attention",
                        self.dtype,
                        &found[at..at + d],
                        &expected,
                        SUM_SLACK + 2.0 * rounding,
                    )?;
                }
            }
            first_row += new;
        }
        Ok(())
    }
}

fn decode(shape: Shape, splits: u32, max_rows: usize) -> Case {
    let kernel = AttentionDecode::new(shape.dtype, shape.head_dim as u32, shape.group as u32);
    let combine = AttentionCombine { dtype: shape.dtype };
    let mut kernels: Vec<Kernel> = vec![kernel.clone().into()];
    if splits > 1 {
        kernels.push(combine.clone().into());
    }
    let name = format!("{} splits {splits} {}", kernels[0].name(), shape.name());
    let run = move |runner: &Runner| {
        let operands = shape.operands(runner)?;
        let rows = operands.row_sequence.len() as u32;
        let (q_heads, kv_heads) = (shape.heads() as u32, shape.kv_heads as u32);
        let partial = runner.poisoned(kernel.partial_bytes(rows, q_heads, splits) as usize)?;
        let [k_full, k_ring, v_full, v_ring] = shape.places();
        runner.launch(
            &kernel.clone().into(),
            kernel.launch(rows, q_heads, kv_heads, splits),
            arguments![
                &operands.q,
                operands.q_stride,
                shape.group,
                shape.head_dim,
                &operands.row_sequence_memory,
                &operands.sequences,
                max_rows,
                k_full,
                k_ring,
                v_full,
                v_ring,
                shape.ring_rows,
                shape.window,
                SCALE,
                shape.soft_cap,
                &partial,
                &operands.out,
                operands.out_stride
            ],
        )?;
        if splits > 1 {
            runner.launch(
                &combine.clone().into(),
                combine.launch(rows, q_heads, shape.head_dim as u32, splits),
                arguments![
                    &partial,
                    splits as usize,
                    shape.head_dim,
                    &operands.row_sequence_memory,
                    &operands.sequences,
                    max_rows,
                    shape.window,
                    &operands.out,
                    operands.out_stride
                ],
            )?;
        }
        shape.check(runner, &operands, max_rows)
    };
    Case::new(name, kernels, run)
}

fn prefill(shape: Shape) -> Case {
    let kernel = AttentionPrefill { dtype: shape.dtype, head_dim: shape.head_dim as u32 };
    let name = format!("{} {}", Kernel::from(kernel.clone()).name(), shape.name());
    let kernels = vec![kernel.clone().into()];
    let run = move |runner: &Runner| {
        let operands = shape.operands(runner)?;
        let mut tiles = vec![-1, 0];
        for (index, &(_, new)) in shape.sequences.iter().enumerate() {
            for first in (0..new).step_by(QUERY_TILE as usize) {
                tiles.extend([index as i32, first as i32]);
            }
        }
        let tiles_memory = runner.integers(&tiles)?;
        let [k_full, k_ring, v_full, v_ring] = shape.places();
        runner.launch(
            &kernel.clone().into(),
            kernel.launch(tiles.len() as u32 / 2, shape.heads() as u32),
            arguments![
                &operands.q,
                operands.q_stride,
                &operands.sequences,
                &tiles_memory,
                shape.group,
                k_full,
                k_ring,
                v_full,
                v_ring,
                shape.ring_rows,
                shape.window,
                SCALE,
                shape.soft_cap,
                &operands.out,
                operands.out_stride
            ],
        )?;
        shape.check(runner, &operands, usize::MAX)
    };
    Case::new(name, kernels, run)
}
