//! Mixtures of experts.

use roundhouse_graph::ExpertAttributes;

use super::Scope;
use super::linear::dot;
use crate::tensor::Tensor;

pub(super) fn mixture_of_experts(scope: &Scope<'_>, attributes: ExpertAttributes) -> Tensor {
    let (x, router, gate_up, down) = (scope.inputs[0], scope.inputs[1], scope.inputs[2], scope.inputs[3]);
    let (hidden, experts, intermediate) = (x.shape[2], router.shape[2], down.shape[1]);
    let mut out = Vec::with_capacity(x.len());
    for (token, logits) in x.floats().chunks_exact(hidden).zip(router.floats().chunks_exact(experts)) {
        let mut sums = vec![0.0_f64; hidden];
        for (expert, weight) in chosen(logits, attributes) {
            let row = |matrix: &Tensor, row: usize, width: usize, with: &[f32]| {
                dot(&matrix.floats()[row * width..(row + 1) * width], with)
            };
            let activated = (0..intermediate).map(|column| {
                let first = expert * 2 * intermediate;
                let gate = row(gate_up, first + column, hidden, token);
                let up = row(gate_up, first + intermediate + column, hidden, token);
                (gate / (1.0 + (-gate).exp()) * up) as f32
            });
            let activated: Vec<f32> = activated.collect();
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += weight * row(down, expert * hidden + column, intermediate, &activated);
            }
        }
        out.extend(sums.into_iter().map(|sum| sum as f32));
    }
    Tensor::float(&x.shape, out)
}

/// A token's experts with their weights.
fn chosen(logits: &[f32], attributes: ExpertAttributes) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let total: f64 = exponentials.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable: of equal logits the lower index comes first.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(attributes.top_k as usize);
    let of_chosen: f64 = order.iter().map(|&expert| exponentials[expert]).sum();
    let scale = if attributes.normalize { of_chosen } else { total };
    order.into_iter().map(|expert| (expert, exponentials[expert] / scale)).collect()
}
