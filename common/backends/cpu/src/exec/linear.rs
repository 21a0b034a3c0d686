//! Matrix products.

use roundhouse_cpu_kernels::{self as kernels, LinearJob, QuantizedFormat, QuantizedMatrix, Weight};
use roundhouse_graph::WeightFormat;

use super::{Executor, Workspace, weight_elements};
use crate::plan::{BufferId, Layout, LinearPart, LinearWeight, View};

impl Executor {
    /// A [`Step::Linear`](crate::plan::Step::Linear): `x` is contiguous, the parts write different buffers.
    pub(super) fn linear(&self, x: &View, parts: &[LinearPart], workspace: &mut Workspace) {
        let layout = workspace.layout(x);
        let mut outputs: Vec<Vec<f32>> =
            parts.iter().map(|part| workspace.take(&self.plan, part.to)).collect();
        let mut scratch = std::mem::take(&mut workspace.scratch);
        let (rows, width) = rows(&layout);
        let x = &self.floats(x.root, workspace)[layout.offset..layout.offset + rows * width];
        let mut jobs: Vec<LinearJob<'_>> = parts
            .iter()
            .zip(&mut outputs)
            .map(|(part, out)| {
                let weight = self.linear_weight(part.weight);
                let width = weight.rows();
                LinearJob {
                    weight,
                    bias: part.bias.map(|bias| &self.constants[bias][..]),
                    accumulate: part.accumulate,
                    out: &mut out[..rows * width],
                    out_stride: width,
                }
            })
            .collect();
        kernels::linear(&self.pool, &mut scratch, self.reduction, x, rows, width, &mut jobs);
        workspace.scratch = scratch;
        for (part, memory) in parts.iter().zip(outputs) {
            workspace.put(&self.plan, part.to, memory);
        }
    }

    /// A [`Step::LinearSiluMul`](crate::plan::Step::LinearSiluMul): `x` is contiguous.
    pub(super) fn linear_silu_mul(
        &self,
        x: &View,
        gate: LinearWeight,
        up: LinearWeight,
        to: BufferId,
        workspace: &mut Workspace,
    ) {
        let layout = workspace.layout(x);
        let mut out = workspace.take(&self.plan, to);
        let mut scratch = std::mem::take(&mut workspace.scratch);
        let (rows, width) = rows(&layout);
        let x = &self.floats(x.root, workspace)[layout.offset..layout.offset + rows * width];
        let (gate, up) = (self.linear_weight(gate), self.linear_weight(up));
        let memory = &mut out[..rows * gate.rows()];
        kernels::linear_silu_mul(
            &self.pool,
            &mut scratch,
            self.reduction,
            x,
            rows,
            width,
            gate,
            up,
            memory,
            gate.rows(),
        );
        workspace.scratch = scratch;
        workspace.put(&self.plan, to, out);
    }

    /// A weight where it is mapped.
    fn linear_weight(&self, weight: LinearWeight) -> Weight<'_> {
        let (values, scales, offsets, quantization) = match weight {
            LinearWeight::Plain(id) => return self.matrix(id).into(),
            LinearWeight::Quantized { values, scales, offsets, quantization } => {
                (&self.tensors[values.0], &self.tensors[scales.0], offsets, quantization)
            }
        };
        let size = |axis: usize| scales.shape.get(axis).copied().unwrap_or_default();
        let group_size = quantization.group_size as usize;
        Weight::Quantized(QuantizedMatrix {
            format: match quantization.format {
                WeightFormat::Int8 => QuantizedFormat::Int8,
                WeightFormat::Int4 => QuantizedFormat::Int4,
                WeightFormat::Fp8 => QuantizedFormat::E4m3,
            },
            values: self.weights.bytes(values),
            scales: weight_elements(&self.weights, scales),
            offsets: offsets.map(|offsets| weight_elements(&self.weights, &self.tensors[offsets.0])),
            rows: size(0),
            columns: size(1) * group_size,
            group_size,
        })
    }

    /// A [`Step::MatMul`](crate::plan::Step::MatMul): `a […, M, K] · b […, K, N]` into a contiguous view. For graphs
    /// that spell something out which has an op of its own.
    pub(super) fn matmul(&self, a: &View, b: &View, to: &View, workspace: &mut Workspace) {
        workspace.write(&self.plan, to, |workspace, memory| {
            let (a_layout, b_layout) = (workspace.layout(a), workspace.layout(b));
            let (a, b) = (self.floats(a.root, workspace), self.floats(b.root, workspace));
            let leading = a_layout.dims().len() - 2;
            let (inner, columns) = (a_layout.dims()[leading + 1], b_layout.dims()[leading + 1]);
            let (a_step, [b_row, b_step]) = (
                a_layout.strides()[leading + 1],
                [b_layout.strides()[leading], b_layout.strides()[leading + 1]],
            );
            let rows = a_layout.dims()[leading];
            for (row, out) in memory.chunks_exact_mut(columns.max(1)).enumerate().take(rows_of(&a_layout)) {
                let (batch, row) = (row / rows, row % rows);
                let from_a = start(&a_layout, batch, leading) + row * a_layout.strides()[leading];
                let from_b = start(&b_layout, batch, leading);
                out.fill(0.0);
                for k in 0..inner {
                    let factor = a[from_a + k * a_step];
                    let line = &b[from_b + k * b_row..];
                    if b_step == 1 {
                        out.iter_mut().zip(line).for_each(|(out, b)| *out += factor * b);
                    } else {
                        out.iter_mut()
                            .zip(line.iter().step_by(b_step.max(1)))
                            .for_each(|(out, b)| *out += factor * b);
                    }
                }
            }
        });
    }
}

/// A contiguous view as rows: how many, and how long.
fn rows(layout: &Layout) -> (usize, usize) {
    let width = layout.dims().last().copied().unwrap_or(1);
    (layout.elements().checked_div(width).unwrap_or(0), width)
}

/// Rows of all matrices together.
fn rows_of(layout: &Layout) -> usize {
    rows(layout).0
}

/// Where matrix number `batch` begins.
fn start(layout: &Layout, mut batch: usize, leading: usize) -> usize {
    let mut start = layout.offset;
    for axis in (0..leading).rev() {
        start += batch % layout.dims()[axis] * layout.strides()[axis];
        batch /= layout.dims()[axis];
    }
    start
}
