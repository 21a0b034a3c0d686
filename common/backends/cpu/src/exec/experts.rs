//! Mixtures of experts: each chosen expert runs once a step, over all tokens that chose it.

use roundhouse_cpu_kernels::{self as kernels, LinearJob, Matrix};
use roundhouse_graph::ExpertAttributes;

use super::{Executor, Workspace};
use crate::plan::{Experts, Layout};

/// The memory of the step.
#[derive(Debug, Default)]
pub(super) struct ExpertMemory {
    /// By expert: its tokens with their weights.
    chosen: Vec<Vec<(usize, f32)>>,
    /// Of one expert at a time: its tokens, what is between its two products, and its output.
    inputs: Vec<f32>,
    activated: Vec<f32>,
    outputs: Vec<f32>,
}

impl ExpertMemory {
    /// How many numbers it holds.
    pub(super) fn floats(&self) -> usize {
        self.inputs.capacity() + self.activated.capacity() + self.outputs.capacity()
    }
}

impl Executor {
    /// A [`Step::Experts`](crate::plan::Step::Experts).
    pub(super) fn experts(&self, step: &Experts, workspace: &mut Workspace) {
        let (x_layout, router_layout) = (workspace.layout(&step.x), workspace.layout(&step.router_logits));
        let mut out = workspace.take(&self.plan, step.to);
        let mut memory = std::mem::take(&mut workspace.experts);
        let mut scratch = std::mem::take(&mut workspace.scratch);
        let (hidden, count) = (width(&x_layout), width(&router_layout));
        let x = &self.floats(step.x.root, workspace)[x_layout.offset..][..x_layout.elements()];
        let logits = &self.floats(step.router_logits.root, workspace)[router_layout.offset..];
        let logits = &logits[..router_layout.elements()];
        let (gate_up, down) = (self.matrix(step.gate_up), self.matrix(step.down));
        let intermediate = down.columns;

        memory.choose(logits, count, step.attributes);
        let sums = &mut out[..x.len()];
        sums.fill(0.0);
        let ExpertMemory { chosen, inputs, activated, outputs } = &mut memory;
        for (expert, tokens) in chosen.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            inputs.clear();
            for &(token, _) in tokens {
                inputs.extend_from_slice(&x[token * hidden..(token + 1) * hidden]);
            }
            activated.resize(tokens.len() * intermediate, 0.0);
            outputs.resize(tokens.len() * hidden, 0.0);
            let gate = part(gate_up, 2 * expert * intermediate, intermediate);
            let up = part(gate_up, (2 * expert + 1) * intermediate, intermediate);
            let (pool, m) = (&self.pool, tokens.len());
            kernels::linear_silu_mul(
                pool,
                &mut scratch,
                self.reduction,
                inputs,
                m,
                hidden,
                gate.into(),
                up.into(),
                &mut activated[..m * intermediate],
                intermediate,
            );
            let mut jobs = [LinearJob {
                weight: part(down, expert * hidden, hidden).into(),
                bias: None,
                accumulate: false,
                out: &mut outputs[..m * hidden],
                out_stride: hidden,
            }];
            kernels::linear(pool, &mut scratch, self.reduction, activated, m, intermediate, &mut jobs);
            for (&(token, weight), output) in tokens.iter().zip(outputs.chunks_exact(hidden)) {
                let sums = &mut sums[token * hidden..(token + 1) * hidden];
                sums.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
            }
        }
        workspace.scratch = scratch;
        workspace.experts = memory;
        workspace.put(&self.plan, step.to, out);
    }
}

impl ExpertMemory {
    /// Chooses the experts of each row of router logits.
    fn choose(&mut self, logits: &[f32], count: usize, attributes: ExpertAttributes) {
        self.chosen.resize_with(count, Vec::new);
        self.chosen.iter_mut().for_each(Vec::clear);
        let top_k = usize::try_from(attributes.top_k).unwrap_or(count).min(count);
        let mut order: Vec<usize> = Vec::with_capacity(count);
        for (token, logits) in logits.chunks_exact(count.max(1)).enumerate() {
            order.clear();
            order.extend(0..count);
            // Of equal logits the lower index comes first.
            let by_logit = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
            if top_k < count {
                order.select_nth_unstable_by(top_k, by_logit);
                order.truncate(top_k);
            }
            order.sort_unstable_by(by_logit);
            let largest = order.first().map_or(0.0, |&expert| logits[expert]);
            let exponential = |expert: usize| (logits[expert] - largest).exp();
            let total: f32 = if attributes.normalize {
                order.iter().map(|&expert| exponential(expert)).sum()
            } else {
                (0..count).map(exponential).sum()
            };
            for &expert in &order {
                self.chosen[expert].push((token, exponential(expert) / total));
            }
        }
    }
}

/// Rows `start..start + rows` of a matrix.
fn part(matrix: Matrix<'_>, start: usize, rows: usize) -> Matrix<'_> {
    let columns = matrix.columns;
    let elements = matrix.elements.slice(start * columns..(start + rows) * columns);
    Matrix { elements, rows, columns }
}

fn width(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1)
}
