//! Ops whose output has the shape of an input: activations, sums, norms, softmax.

use roundhouse_graph::GeluApproximation;

use super::Scope;
use crate::tensor::Tensor;

pub(super) fn unary(scope: &Scope<'_>, function: impl Fn(f32) -> f32) -> Tensor {
    let x = scope.inputs[0];
    Tensor::float(&x.shape, x.floats().iter().map(|&x| function(x)).collect())
}

pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

pub(super) fn gelu(approximation: GeluApproximation) -> impl Fn(f32) -> f32 {
    move |x| {
        let x = f64::from(x);
        let phi = match approximation {
            GeluApproximation::None => 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            GeluApproximation::Tanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * (1.0 + inner.tanh())
            }
        };
        (x * phi) as f32
    }
}

/// The error function, by its Maclaurin series where that converges fast and is far from cancelling, else by the
/// continued fraction of its complement (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (2.0 * x, 2.0 * x);
        for n in 1..100 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        scale * sum
    } else {
        let magnitude = x.abs();
        let fraction = (1..=60).rev().fold(magnitude, |below, k| magnitude + f64::from(k) / 2.0 / below);
        x.signum() * (1.0 - scale / fraction)
    }
}

/// Broadcasts dimensions of 1 and missing leading ones.
pub(super) fn binary(scope: &Scope<'_>, function: impl Fn(f32, f32) -> f32) -> Tensor {
    let (a, b) = (scope.inputs[0], scope.inputs[1]);
    let rank = a.shape.len().max(b.shape.len());
    let padded = |tensor: &Tensor| [vec![1; rank - tensor.shape.len()], tensor.shape.clone()].concat();
    let (a_shape, b_shape) = (padded(a), padded(b));
    let shape: Vec<usize> = a_shape.iter().zip(&b_shape).map(|(&a, &b)| if a == 1 { b } else { a }).collect();
    let offset = |own: &[usize], index: &[usize]| {
        own.iter().zip(index).fold(0, |offset, (&size, &i)| offset * size + if size == 1 { 0 } else { i })
    };
    let mut index = vec![0; rank];
    let mut out = Vec::with_capacity(shape.iter().product());
    for _ in 0..shape.iter().product() {
        out.push(function(a.floats()[offset(&a_shape, &index)], b.floats()[offset(&b_shape, &index)]));
        advance(&mut index, &shape);
    }
    Tensor::float(&shape, out)
}

/// The next index of a shape, row-major.
pub(super) fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < size {
            return;
        }
        *i = 0;
    }
}

pub(super) fn rms_norm(scope: &Scope<'_>, epsilon: f32, unit_offset: bool) -> Tensor {
    let (x, weight) = (scope.inputs[0], scope.inputs[1]);
    let offset = if unit_offset { 1.0 } else { 0.0 };
    let mut out = Vec::with_capacity(x.len());
    for row in x.floats().chunks_exact(weight.len()) {
        let mean_square = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (mean_square + f64::from(epsilon)).sqrt();
        let weighted = row.iter().zip(weight.floats());
        out.extend(weighted.map(|(&x, &w)| (f64::from(x) * factor * (offset + f64::from(w))) as f32));
    }
    Tensor::float(&x.shape, out)
}

pub(super) fn layer_norm(scope: &Scope<'_>, epsilon: f32) -> Tensor {
    let (x, weight, bias) = (scope.inputs[0], scope.inputs[1], scope.inputs.get(2));
    let mut out = Vec::with_capacity(x.len());
    for row in x.floats().chunks_exact(weight.len()) {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let factor = 1.0 / (variance + f64::from(epsilon)).sqrt();
        for (column, (&x, &w)) in row.iter().zip(weight.floats()).enumerate() {
            let offset = bias.map_or(0.0, |bias| f64::from(bias.floats()[column]));
            out.push(((f64::from(x) - mean) * factor * f64::from(w) + offset) as f32);
        }
    }
    Tensor::float(&x.shape, out)
}

pub(super) fn softmax(scope: &Scope<'_>, axis: usize) -> Tensor {
    let x = scope.inputs[0];
    let [outer, length, inner] = x.around(axis);
    let mut out = vec![0.0; x.len()];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |k: usize| (o * length + k) * inner + i;
        let scores: Vec<f64> = (0..length).map(|k| f64::from(x.floats()[at(k)])).collect();
        for (k, probability) in probabilities(&scores).into_iter().enumerate() {
            out[at(k)] = probability as f32;
        }
    }
    Tensor::float(&x.shape, out)
}

/// The softmax of a list; zeros if all of it is `-∞` or it is empty.
pub(super) fn probabilities(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return vec![0.0; scores.len()];
    }
    let exponentials: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}
