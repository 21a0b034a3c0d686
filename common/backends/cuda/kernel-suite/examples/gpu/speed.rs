//! Times.

use std::time::Instant;

use roundhouse_cuda_device::{Launch as DeviceLaunch, Memory};
use roundhouse_cuda_kernel_suite::{Argument, Runner};
use roundhouse_cuda_kernels::step::Sequence;
use roundhouse_cuda_kernels::{
    AttentionCombine, AttentionPrefill, Kernel, Launch, Linear, Method, Prologue, QUERY_TILE, Weight,
};

use crate::timed::{
    DTYPE, HEADS, Heads, MULTIPROCESSORS, NOMINAL, POOL_BYTES, PRODUCTS, Product, ROTARY, decode, variants,
};

/// One launch, ready.
struct Ready {
    function: roundhouse_cuda_device::Function,
    launch: Launch,
    slots: Vec<u64>,
}

struct Bench<'a> {
    runner: &'a Runner,
    pool: Memory,
    x: Memory,
    y: Memory,
    scratch: Memory,
    counters: Memory,
    sums: Memory,
    copy_rate: f64,
}

impl Bench<'_> {
    fn ready(
        &self,
        kernel: impl Into<Kernel>,
        launch: Launch,
        arguments: &[Argument],
    ) -> anyhow::Result<Ready> {
        let kernel: Kernel = kernel.into();
        anyhow::ensure!(
            kernel.parameters().len() == arguments.len(),
            "{} takes other arguments",
            kernel.name()
        );
        let function = self.runner.function(&kernel)?;
        Ok(Ready { function, launch, slots: arguments.iter().map(|argument| argument.slot()).collect() })
    }

    /// Median seconds of a graph of these launches.
    fn seconds(&self, launches: &[Ready]) -> anyhow::Result<f64> {
        let device = self.runner.device();
        let stream = device.new_stream()?;
        device.begin_graph(stream)?;
        for ready in launches {
            device.launch(
                stream,
                &DeviceLaunch {
                    function: ready.function,
                    grid: ready.launch.grid,
                    block: [ready.launch.block, 1, 1],
                    shared_bytes: ready.launch.shared_bytes,
                    arguments: &ready.slots,
                    overlaps: true,
                },
            )?;
        }
        let graph = device.end_graph(stream)?;
        device.launch_graph(stream, graph)?;
        device.synchronize(stream)?;
        let mut times = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            device.launch_graph(stream, graph)?;
            device.synchronize(stream)?;
            times.push(start.elapsed().as_secs_f64());
        }
        device.free_graph(graph);
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn linear(&self, linear: &Linear, product: &Product, rows: u32, weight: u64) -> anyhow::Result<Ready> {
        let (x_stride, y_stride) = (linear.columns as i32, product.n as i32);
        let norm = if linear.prologue == Prologue::None { 0 } else { self.scratch.address() };
        let quantized = linear.weight != Weight::Float;
        let arguments = [
            Argument::from(&self.x),
            Argument::I32(x_stride),
            Argument::Pointer(norm),
            Argument::Pointer(0),
            Argument::F32(1e-5),
            Argument::Pointer(weight),
            Argument::Pointer(if quantized { self.pool.address() } else { 0 }),
            Argument::Pointer(if quantized { self.pool.address() } else { 0 }),
            Argument::Pointer(0),
            Argument::Pointer(if linear.epilogue.residual { self.y.address() } else { 0 }),
            Argument::I32(y_stride),
            Argument::from(&self.y),
            Argument::I32(y_stride),
            Argument::from(product.n as usize),
            Argument::from(linear.columns as usize),
            Argument::from(rows as usize),
            Argument::F32(1.0),
            Argument::F32(0.0),
            Argument::I32(linear.flags()),
            Argument::from(&self.counters),
            Argument::from(&self.sums),
        ];
        self.ready(linear.clone(), linear.launch(rows, product.n, MULTIPROCESSORS), &arguments)
    }

    /// Times one product over different weights.
    fn product(&self, product: &Product, rows: u32, method: Method, weight: Weight) -> anyhow::Result<()> {
        let linear = product.linear(rows, method, weight);
        let bytes = product.bytes(weight);
        let step = bytes.next_multiple_of(256);
        let places = (POOL_BYTES / step).clamp(1, 40);
        let count = if rows > 64 { 10 } else { 40 };
        let launches: Vec<Ready> = (0..count)
            .map(|i| self.linear(&linear, product, rows, self.pool.address() + (i % places * step) as u64))
            .collect::<anyhow::Result<_>>()?;
        let seconds = self.seconds(&launches)? / count as f64;
        let operations =
            2.0 * f64::from(rows) * f64::from(product.weight_rows()) * f64::from(product.columns);
        println!(
            "{:14} rows {rows:3} {:60} {:8.2} us {:6.1} % of copy {:6.1} TFLOP/s",
            product.name,
            Kernel::from(linear).name(),
            seconds * 1e6,
            bytes as f64 / seconds / self.copy_rate * 100.0,
            operations / seconds / 1e12
        );
        Ok(())
    }

    /// A step block: rows of sequences, all alike.
    fn step(&self, heads: &Heads, batch: u32, past: u32, rows: u32) -> anyhow::Result<[Memory; 4]> {
        let capacity = past + rows;
        let each = u64::from(2 * heads.kv_heads * capacity * heads.head_dim) * 2;
        let mut sequences = Vec::new();
        let mut row_sequence = Vec::new();
        let mut positions = Vec::new();
        let mut tiles = Vec::new();
        for i in 0..batch {
            let sequence = Sequence {
                kv: self.pool.address() + u64::from(i) * each % (POOL_BYTES as u64 - each) / 256 * 256,
                capacity: capacity as i32,
                first_row: (i * rows) as i32,
                rows: rows as i32,
                past: past as i32,
                padding: [0; 2],
            };
            sequences.extend(sequence.to_bytes());
            for r in 0..rows {
                row_sequence.push(i as i32);
                positions.push((past + r) as i32);
            }
            for first in (0..rows).step_by(QUERY_TILE as usize) {
                tiles.extend([i as i32, first as i32]);
            }
        }
        Ok([
            self.runner.upload(&sequences)?,
            self.runner.integers(&row_sequence)?,
            self.runner.integers(&positions)?,
            self.runner.integers(&tiles)?,
        ])
    }

    fn attention(
        &self,
        heads: &Heads,
        step: &[Memory; 4],
        batch: u32,
        splits: u32,
    ) -> anyhow::Result<Vec<Ready>> {
        let q_heads = heads.group * heads.kv_heads;
        let kernel = decode(heads);
        let width = (q_heads * heads.head_dim) as usize;
        let each = i64::from(heads.kv_heads * heads.head_dim);
        let mut launches = vec![self.ready(
            kernel.clone(),
            kernel.launch(batch, q_heads, heads.kv_heads, splits),
            &[
                Argument::from(&self.x),
                Argument::from(width),
                Argument::from(heads.group as usize),
                Argument::from(heads.head_dim as usize),
                Argument::from(&step[1]),
                Argument::from(&step[0]),
                Argument::I32(1),
                Argument::I64(0),
                Argument::I64(0),
                Argument::I64(each),
                Argument::I64(0),
                Argument::I32(0),
                Argument::I32(0),
                Argument::F32(0.1),
                Argument::F32(0.0),
                Argument::from(&self.scratch),
                Argument::from(&self.y),
                Argument::from(width),
            ],
        )?];
        if splits > 1 {
            let combine = AttentionCombine { dtype: DTYPE };
            launches.push(self.ready(
                combine.clone(),
                combine.launch(batch, q_heads, heads.head_dim, splits),
                &[
                    Argument::from(&self.scratch),
                    Argument::from(splits as usize),
                    Argument::from(heads.head_dim as usize),
                    Argument::from(&step[1]),
                    Argument::from(&step[0]),
                    Argument::I32(1),
                    Argument::I32(0),
                    Argument::from(&self.y),
                    Argument::from(width),
                ],
            )?);
        }
        Ok(launches)
    }

    fn decode(&self, heads: &Heads, batch: u32, length: u32, splits: u32) -> anyhow::Result<()> {
        let bytes = f64::from(batch * 2 * heads.kv_heads * heads.head_dim) * f64::from(length) * 2.0;
        // Other caches each time, as many as the pool has, or the second-level cache is timed.
        let places = ((POOL_BYTES as f64 / bytes) as usize).clamp(1, 24);
        let steps: Vec<[Memory; 4]> = (0..places)
            .map(|place| {
                let mut step = self.step(heads, batch, length - 1, 1)?;
                let mut sequences = Vec::new();
                for i in 0..batch {
                    let kv = self.pool.address()
                        + (place as f64 * bytes) as u64 / 256 * 256
                        + u64::from(i) * (bytes / f64::from(batch)) as u64 / 256 * 256;
                    let sequence = Sequence {
                        kv,
                        capacity: length as i32,
                        first_row: i as i32,
                        rows: 1,
                        past: length as i32 - 1,
                        padding: [0; 2],
                    };
                    sequences.extend(sequence.to_bytes());
                }
                step[0] = self.runner.upload(&sequences)?;
                Ok(step)
            })
            .collect::<anyhow::Result<_>>()?;
        let mut launches = Vec::new();
        for i in 0..48 {
            launches.extend(self.attention(heads, &steps[i % places], batch, splits)?);
        }
        let seconds = self.seconds(&launches)? / 48.0;
        println!(
            "decode {} batch {batch:2} length {length:6} splits {splits:3} {:8.2} us {:6.1} % of copy",
            heads.name,
            seconds * 1e6,
            bytes / seconds / self.copy_rate * 100.0
        );
        Ok(())
    }

    fn prefill(&self, heads: &Heads, rows: u32) -> anyhow::Result<()> {
        let step = self.step(heads, 1, 0, rows)?;
        let q_heads = heads.group * heads.kv_heads;
        let kernel = AttentionPrefill { dtype: DTYPE, head_dim: heads.head_dim };
        let width = (q_heads * heads.head_dim) as usize;
        let each = i64::from(heads.kv_heads * heads.head_dim);
        let arguments = [
            Argument::from(&self.x),
            Argument::from(width),
            Argument::from(&step[0]),
            Argument::from(&step[3]),
            Argument::from(heads.group as usize),
            Argument::I64(0),
            Argument::I64(0),
            Argument::I64(each),
            Argument::I64(0),
            Argument::I32(0),
            Argument::I32(0),
            Argument::F32(0.1),
            Argument::F32(0.0),
            Argument::from(&self.y),
            Argument::from(width),
        ];
        let launch = kernel.launch(rows.div_ceil(QUERY_TILE), q_heads);
        let launches: Vec<Ready> =
            (0..10).map(|_| self.ready(kernel.clone(), launch, &arguments)).collect::<anyhow::Result<_>>()?;
        let seconds = self.seconds(&launches)? / 10.0;
        let operations = 2.0 * f64::from(rows) * f64::from(rows) * f64::from(q_heads * heads.head_dim);
        println!(
            "prefill {} rows {rows:5} {:8.2} us {:6.1} TFLOP/s",
            heads.name,
            seconds * 1e6,
            operations / seconds / 1e12
        );
        Ok(())
    }

    /// A whole decode step without embedding and sampling.
    fn model(
        &self,
        name: &str,
        first: usize,
        layers: usize,
        heads: &Heads,
        length: u32,
    ) -> anyhow::Result<()> {
        let products = &PRODUCTS[first..first + 4];
        let step = self.step(heads, 1, length - 1, 1)?;
        let splits = decode(heads).splits(1, heads.kv_heads, MULTIPROCESSORS);
        let mut launches = Vec::new();
        let (mut place, mut total) = (0, 0);
        let mut linear = |product: &Product, launches: &mut Vec<Ready>| -> anyhow::Result<()> {
            let (rows, k) = (product.weight_rows(), product.columns);
            let normed = product.prologue != Prologue::None;
            let method = Method::choose(DTYPE, Weight::Float, 1, rows, k, normed, NOMINAL);
            let linear = product.linear(1, method, Weight::Float);
            let bytes = product.bytes(Weight::Float);
            if place + bytes > POOL_BYTES {
                place = 0;
            }
            launches.push(self.linear(&linear, product, 1, self.pool.address() + place as u64)?);
            place += bytes.next_multiple_of(256);
            total += bytes;
            Ok(())
        };
        let (q_heads, kv_heads, d) = (heads.group * heads.kv_heads, heads.kv_heads, heads.head_dim);
        let each = i64::from(kv_heads * d);
        for _ in 0..layers {
            linear(&products[0], &mut launches)?;
            launches.push(self.ready(
                ROTARY,
                ROTARY.launch(1, q_heads, kv_heads, d),
                &[
                    Argument::from(&self.y),
                    Argument::I32(32_768),
                    Argument::from(q_heads as usize),
                    Argument::from(kv_heads as usize),
                    Argument::from(d as usize),
                    Argument::from(d as usize),
                    Argument::I32(0),
                    Argument::from(&self.scratch),
                    Argument::F32(1.0),
                    Argument::Pointer(0),
                    Argument::Pointer(0),
                    Argument::F32(0.0),
                    Argument::from(&step[2]),
                    Argument::from(&step[1]),
                    Argument::from(&step[0]),
                    Argument::I64(0),
                    Argument::I64(0),
                    Argument::I64(each),
                    Argument::I64(0),
                    Argument::I32(0),
                    Argument::from(&self.x),
                    Argument::I32(32_768),
                ],
            )?);
            launches.extend(self.attention(heads, &step, 1, splits)?);
            for product in &products[1..] {
                linear(product, &mut launches)?;
            }
        }
        linear(&PRODUCTS[4], &mut launches)?;
        let seconds = self.seconds(&launches)?;
        let bytes = total as f64 + f64::from(2 * kv_heads * d * length) * 2.0 * layers as f64;
        println!(
            "step of {name} at length {length}: {:.1} us, {:.1} tok/s, {:.1} % of copy, {} launches",
            seconds * 1e6,
            1.0 / seconds,
            bytes / seconds / self.copy_rate * 100.0,
            launches.len()
        );
        Ok(())
    }
}

/// Prints the table.
pub(crate) fn run(runner: &Runner) -> anyhow::Result<()> {
    let device = runner.device();
    let pool = Memory::new(device, POOL_BYTES)?;
    let other = Memory::new(device, POOL_BYTES)?;
    // Numbers that are not all alike, and none of them large: halves of random bits below 1.
    let mut random = roundhouse_cuda_kernel_suite::Random::new(1);
    let block: Vec<u8> =
        (0..8 << 20).flat_map(|_| (0x2000 | (random.number() as u16 & 0x87ff)).to_le_bytes()).collect();
    let stream = device.stream();
    for at in (0..POOL_BYTES).step_by(block.len()) {
        device.copy_in(stream, pool.address() + at as u64, &block)?;
    }
    device.synchronize(stream)?;
    let mut times = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        for _ in 0..4 {
            device.copy_within(stream, other.address(), pool.address(), POOL_BYTES)?;
        }
        device.synchronize(stream)?;
        times.push(start.elapsed().as_secs_f64() / 4.0);
    }
    times.sort_by(f64::total_cmp);
    let copy_rate = 2.0 * POOL_BYTES as f64 / times[3];
    println!("copy: {:.1} GB/s read and written", copy_rate / 1e9);
    drop(other);
    let small: Vec<u8> = block.iter().copied().cycle().take(64 << 20).collect();
    let bench = Bench {
        runner,
        pool,
        x: runner.upload(&small)?,
        y: runner.upload(&small)?,
        scratch: runner.upload(&small)?,
        counters: runner.upload(&[0; 4096])?,
        sums: runner.upload(&vec![0; 256 << 20])?,
        copy_rate,
    };
    bench.model("Llama-3.2-1B", 0, 16, &HEADS[0], 600)?;
    bench.model("Llama-3.1-8B", 5, 32, &HEADS[2], 600)?;
    for heads in &HEADS {
        for length in [512, 2048, 8192, 32_768] {
            for splits in [16, 32, 66, 128] {
                bench.decode(heads, 1, length, splits)?;
            }
        }
        for splits in [1, 2, 4] {
            bench.decode(heads, 16, 2048, splits)?;
        }
        for rows in [512, 2048] {
            bench.prefill(heads, rows)?;
        }
    }
    for (index, rows, method, weight) in variants() {
        bench.product(&PRODUCTS[index], rows, method, weight)?;
    }
    Ok(())
}
