//! Embeddings, chosen rows, norms, rotation.

use roundhouse_cuda_kernels::step::Sequence;
use roundhouse_cuda_kernels::{Embedding, HeadNorm, Norm, NormKind, RotaryAppend, SelectRows};
use roundhouse_graph::DType;

use super::{FLOATS, arguments};
use crate::compare::{SUM_SLACK, rounded_slack};
use crate::tensor::rounded;
use crate::{Case, Random, Runner, compare};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for width in [64, 37] {
            cases.push(embedding(dtype, width));
            cases.push(select_rows(dtype, width));
        }
    }
    // Types take turns: what is special to a type is its reader and its writer, which all kernels share.
    let kinds = [NormKind::Rms { unit_offset: false }, NormKind::Rms { unit_offset: true }, NormKind::Layer];
    for (i, kind) in kinds.into_iter().enumerate() {
        for (j, (add_before, add_after)) in
            [(false, false), (true, false), (false, true)].into_iter().enumerate()
        {
            let dtype = FLOATS[(i + j) % 3];
            for (width, groups) in [(2048, 1), (40, 3), (21, 2)] {
                cases.push(norm(Norm { dtype, kind, add_before, add_after }, width, groups));
            }
        }
    }
    let norms = [HeadNorm::None, HeadNorm::Rms, HeadNorm::RmsUnitOffset];
    for (dtype, head_norm) in FLOATS.into_iter().zip(norms).chain(FLOATS.map(|dtype| (dtype, HeadNorm::None)))
    {
        for (head_dim, rotary_dim, interleaved, ring_rows) in
            [(64, 64, false, 0), (80, 32, true, 0), (6, 6, false, 5), (16, 0, false, 0)]
        {
            cases.push(rotary(dtype, head_norm, head_dim, rotary_dim, interleaved, ring_rows));
        }
    }
    cases
}

fn embedding(dtype: DType, width: usize) -> Case {
    let kernel = Embedding { dtype };
    let run = move |runner: &Runner| {
        let (rows, vocabulary, places) = (5, 11, 7);
        let mut random = Random::new(width as u64);
        let table = runner.numbers(dtype, &random.floats(vocabulary * width, 1.0))?;
        let place_table = runner.numbers(dtype, &random.floats(places * width, 1.0))?;
        let ids = [3, 0, 10, 11, -1];
        let positions = [0, 6, 2, 1, 3];
        let (ids_memory, positions_memory) = (runner.integers(&ids)?, runner.integers(&positions)?);
        for with_places in [false, true] {
            let out = runner.output(dtype, rows * width)?;
            runner.launch(
                &kernel.clone().into(),
                kernel.launch(rows as u32),
                arguments![
                    &ids_memory,
                    &table,
                    &positions_memory,
                    with_places.then_some(&place_table),
                    &out,
                    width,
                    vocabulary,
                    places,
                    1.5_f32
                ],
            )?;
            let mut expected = Vec::new();
            for (&id, &position) in ids.iter().zip(&positions) {
                for i in 0..width {
                    let row = usize::try_from(id).ok().filter(|&id| id < vocabulary);
                    let x = row.map_or(0.0, |id| rounded(dtype, 1.5 * table.values[id * width + i]));
                    let place = place_table.values[position as usize * width + i];
                    expected.push(if with_places { x + place } else { x });
                }
            }
            compare("embedding", dtype, &runner.read(dtype, &out.memory)?, &expected, 1e-7)?;
        }
        Ok(())
    };
    Case::new(format!("embedding {dtype} {width}"), vec![Embedding { dtype }.into()], run)
}

fn select_rows(dtype: DType, width: usize) -> Case {
    let kernel = SelectRows { dtype };
    let run = move |runner: &Runner| {
        let mut random = Random::new(width as u64);
        let stride = width + 8;
        let x = runner.numbers(dtype, &random.floats(4 * stride, 1.0))?;
        let selected = runner.integers(&[2, 0, -1, 3])?;
        let out = runner.output(dtype, 4 * width)?;
        let arguments = arguments![&x, stride, &selected, &out, width];
        runner.launch(&kernel.clone().into(), kernel.launch(4), arguments)?;
        let found = runner.read(dtype, &out.memory)?;
        for (i, row) in [(0, 2), (1, 0), (3, 3)] {
            let expected = &x.values[row * stride..row * stride + width];
            compare("selected row", dtype, &found[i * width..(i + 1) * width], expected, 0.0)?;
        }
        let untouched = found[2 * width..3 * width].iter().all(|x| x.is_nan());
        if untouched { Ok(()) } else { compare("row of padding", dtype, &[0.0], &[f64::NAN], 0.0) }
    };
    Case::new(format!("select_rows {dtype} {width}"), vec![SelectRows { dtype }.into()], run)
}

fn norm(kernel: Norm, width: usize, groups: usize) -> Case {
    let case_kernel = kernel.clone();
    let run = move |runner: &Runner| {
        let Norm { dtype, kind, add_before, add_after } = kernel;
        let mut random = Random::new(width as u64);
        let (rows, x_stride, out_stride) = (3, width * groups + 16, width * groups);
        // Off zero, so that a mean that is not taken off shows.
        let shifted = |random: &mut Random, count| {
            random.floats(count, 1.0).iter().map(|x| x + 0.5).collect::<Vec<_>>()
        };
        let x = runner.numbers(dtype, &shifted(&mut random, rows * x_stride))?;
        let before = runner.numbers(dtype, &random.floats(rows * x_stride, 1.0))?;
        let after = runner.numbers(dtype, &random.floats(rows * out_stride, 1.0))?;
        let weight = runner.numbers(dtype, &random.floats(width, 1.0))?;
        let bias = runner.numbers(dtype, &random.floats(width, 1.0))?;
        let sum = runner.output(dtype, rows * x_stride)?;
        let out = runner.output(dtype, rows * out_stride)?;
        let layer = kind == NormKind::Layer;
        let epsilon = 1e-3_f32;
        runner.launch(
            &kernel.clone().into(),
            kernel.launch(rows as u32, groups as u32, width as u32),
            arguments![
                &x,
                x_stride,
                add_before.then_some(&before),
                add_before.then_some(&sum),
                &weight,
                layer.then_some(&bias),
                add_after.then_some(&after),
                &out,
                out_stride,
                width,
                epsilon
            ],
        )?;
        let (mut expected, mut sums) = (Vec::new(), Vec::new());
        for group in 0..rows * groups {
            let (row, part) = (group / groups, group % groups);
            let at = row * x_stride + part * width;
            let h: Vec<f64> = (at..at + width)
                .map(|i| {
                    let sum = x.values[i] + if add_before { before.values[i] } else { 0.0 };
                    if add_before { rounded(dtype, sum) } else { sum }
                })
                .collect();
            let unit = if kind == (NormKind::Rms { unit_offset: true }) { 1.0 } else { 0.0 };
            for (i, normalised) in normalise(&h, layer, f64::from(epsilon)).into_iter().enumerate() {
                let value = normalised * (weight.values[i] + unit) + if layer { bias.values[i] } else { 0.0 };
                let after = after.values[row * out_stride + part * width + i];
                expected.push(if add_after { rounded(dtype, value) + after } else { value });
            }
            sums.push((at, h));
        }
        let slack = if add_after { rounded_slack(dtype) } else { SUM_SLACK };
        compare("norm", dtype, &runner.read(dtype, &out.memory)?, &expected, slack)?;
        if add_before {
            let found = runner.read(dtype, &sum.memory)?;
            for (at, h) in sums {
                compare("sum before the norm", dtype, &found[at..at + width], &h, 0.0)?;
            }
        }
        Ok(())
    };
    Case::new(format!("{} {width}x{groups}", case_kernel_name(&case_kernel)), vec![case_kernel.into()], run)
}

fn case_kernel_name(kernel: &Norm) -> String {
    roundhouse_cuda_kernels::Kernel::from(kernel.clone()).name()
}

/// Rows to mean 0 (if `layer`) and mean square 1.
pub(super) fn normalise(h: &[f64], layer: bool, epsilon: f64) -> Vec<f64> {
    let count = h.len() as f64;
    let mean = if layer { h.iter().sum::<f64>() / count } else { 0.0 };
    let variance = h.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    h.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()).collect()
}

fn rotary(
    dtype: DType,
    head_norm: HeadNorm,
    head_dim: usize,
    rotary_dim: usize,
    interleaved: bool,
    ring_rows: usize,
) -> Case {
    let kernel = RotaryAppend { dtype, head_norm };
    let kernels = vec![kernel.clone().into()];
    let run = move |runner: &Runner| {
        let mut random = Random::new(head_dim as u64);
        let (q_heads, kv_heads, rows, capacity) = (3_usize, 2_usize, 6_usize, 9_usize);
        let heads = q_heads + 2 * kv_heads;
        let row_stride = heads * head_dim + 8;
        let qkv = runner.numbers(dtype, &random.floats(rows * row_stride, 1.0))?;
        let inv_freq: Vec<f32> = (0..rotary_dim / 2).map(|i| 0.3_f32.powi(i as i32)).collect();
        let inv_freq_memory = runner.numbers(DType::F32, &inv_freq)?;
        let q_norm = runner.numbers(dtype, &random.floats(head_dim, 1.0))?;
        let k_norm = runner.numbers(dtype, &random.floats(head_dim, 1.0))?;
        let positions = [4, 5, 6, 90_000, 0, 0];
        // The last row is padding.
        let row_sequence = [0, 0, 0, 1, 2, -1];
        let layer_rows = if ring_rows == 0 { capacity } else { ring_rows.min(capacity) };
        let part = kv_heads * layer_rows * head_dim;
        // Something before the layer's own, so that its place matters: a layer of as much a sequence.
        let caches: Vec<_> = (0..3).map(|_| runner.output(dtype, 4 * part)).collect::<Result<_, _>>()?;
        let each = (kv_heads * head_dim) as i64;
        let (k_full, v_full, k_ring, v_ring) =
            if ring_rows == 0 { (2 * each, 3 * each, 0, 0) } else { (0, 0, 2 * each, 3 * each) };
        let pasts = [4, 7, 0];
        let sequences: Vec<u8> = [(0, 3), (3, 1), (4, 1)]
            .iter()
            .zip(&caches)
            .zip(pasts)
            .flat_map(|((&(first_row, rows), cache), past)| {
                let capacity = capacity as i32;
                Sequence { kv: cache.address(), capacity, first_row, rows, past, padding: [0; 2] }.to_bytes()
            })
            .collect();
        let (positions_memory, rows_memory) = (runner.integers(&positions)?, runner.integers(&row_sequence)?);
        let sequences = runner.upload(&sequences)?;
        let q_stride = q_heads * head_dim;
        let q_out = runner.output(dtype, rows * q_stride)?;
        let (factor, epsilon) = (1.25_f32, 1e-3_f32);
        runner.launch(
            &kernel.clone().into(),
            kernel.launch(rows as u32, q_heads as u32, kv_heads as u32, head_dim as u32),
            arguments![
                &qkv,
                row_stride,
                q_heads,
                kv_heads,
                head_dim,
                rotary_dim,
                i32::from(interleaved),
                &inv_freq_memory,
                factor,
                &q_norm,
                &k_norm,
                epsilon,
                &positions_memory,
                &rows_memory,
                &sequences,
                k_full,
                k_ring,
                v_full,
                v_ring,
                ring_rows,
                &q_out,
                q_stride
            ],
        )?;

        let rotated = |row: usize, head: usize, weight: &[f64]| -> Vec<f64> {
            let at = row * row_stride + head * head_dim;
            let mut h = qkv.values[at..at + head_dim].to_vec();
            if head_norm != HeadNorm::None {
                let unit = if head_norm == HeadNorm::RmsUnitOffset { 1.0 } else { 0.0 };
                let normal = normalise(&h, false, f64::from(epsilon));
                h = normal.iter().zip(weight).map(|(x, w)| rounded(dtype, x * (w + unit))).collect();
            }
            let mut out = h.clone();
            for (i, &frequency) in inv_freq.iter().enumerate() {
                let angle = f64::from(positions[row] as f32 * frequency);
                let (sine, cosine) = (angle.sin() * f64::from(factor), angle.cos() * f64::from(factor));
                let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + rotary_dim / 2) };
                out[a] = h[a] * cosine - h[b] * sine;
                out[b] = h[b] * cosine + h[a] * sine;
            }
            out
        };
        let slack = if head_norm == HeadNorm::None { SUM_SLACK } else { rounded_slack(dtype) };
        let found = runner.read(dtype, &q_out.memory)?;
        let caches: Vec<Vec<f64>> =
            caches.iter().map(|cache| runner.read(dtype, &cache.memory)).collect::<Result<_, _>>()?;
        let mut written = 0;
        for (row, &sequence) in row_sequence[..5].iter().enumerate() {
            for head in 0..q_heads {
                let at = row * q_stride + head * head_dim;
                let expected = rotated(row, head, &q_norm.values);
                compare("rotated query", dtype, &found[at..at + head_dim], &expected, slack)?;
            }
            let sequence = sequence as usize;
            let key = pasts[sequence] as usize + row - [0, 3, 4][sequence];
            for head in 0..kv_heads {
                let at = (head * layer_rows + key % layer_rows) * head_dim;
                let expected = rotated(row, q_heads + head, &k_norm.values);
                let found = &caches[sequence][2 * part + at..2 * part + at + head_dim];
                compare("key in the cache", dtype, found, &expected, slack)?;
                let from = row * row_stride + (q_heads + kv_heads + head) * head_dim;
                let found = &caches[sequence][3 * part + at..3 * part + at + head_dim];
                compare("value in the cache", dtype, found, &qkv.values[from..from + head_dim], 0.0)?;
                written += 2 * head_dim;
            }
        }
        let filled = caches.iter().flatten().filter(|x| !x.is_nan()).count();
        if filled == written {
            Ok(())
        } else {
            compare("elements written", DType::F32, &[filled as f64], &[written as f64], 0.0)
        }
    };
    let name = format!(
        "rotary {dtype} {head_norm:?} d{head_dim} r{rotary_dim} interleaved {interleaved} ring {ring_rows}"
    );
    Case::new(name, kernels, run)
}
