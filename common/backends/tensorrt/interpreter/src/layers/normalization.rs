//! Layers along axes: `IReduceLayer`, `ISoftMaxLayer`.

use roundhouse_backend_conformance::{Data, Tensor};
use roundhouse_tensorrt_network::Reduce;

use crate::elements::{around, floats, places, strides, volume};

pub(super) fn reduce(operation: Reduce, axes: &[usize], x: &Tensor) -> Result<Tensor, String> {
    let lengths = |reduced: bool| -> Vec<usize> {
        let of = |(axis, &dim)| if axes.contains(&axis) == reduced { dim } else { 1 };
        x.shape.iter().enumerate().map(of).collect()
    };
    let shape = lengths(false);
    let strides = strides(&x.shape);
    let within = places(&lengths(true), &strides, 0);
    let starts = places(&shape, &strides, 0);
    volume(&shape)?;
    let data = match &x.data {
        Data::Float(values) => {
            let of = |start: usize| of_floats(operation, within.iter().map(|place| values[start + place]));
            Data::Float(starts.into_iter().map(of).collect())
        }
        Data::Int(values) => {
            let of = |start: usize| of_integers(operation, within.iter().map(|place| values[start + place]));
            Data::Int(starts.into_iter().map(of).collect::<Result<_, _>>()?)
        }
    };
    Ok(Tensor { shape, data })
}

fn of_floats(operation: Reduce, values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len() as f64;
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).sum::<f64>();
    let mut values = values;
    match operation {
        Reduce::Sum => sum(&mut values) as f32,
        Reduce::Avg => (sum(&mut values) / count) as f32,
        Reduce::Max => {
            values.fold(f32::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
        }
    }
}

fn of_integers(operation: Reduce, mut values: impl ExactSizeIterator<Item = i64>) -> Result<i64, String> {
    match operation {
        Reduce::Sum => {
            values.try_fold(0_i64, i64::checked_add).ok_or_else(|| "a sum beyond kINT64".to_owned())
        }
        Reduce::Max => values.max().ok_or_else(|| "the largest of no integers".to_owned()),
        Reduce::Avg => Err("an average of integers".to_owned()),
    }
}

/// A row whose largest element is −∞ gives NaN, as it does on a GPU.
pub(super) fn softmax(axis: usize, x: &Tensor) -> Result<Tensor, String> {
    let values = floats(x)?;
    let [before, length, after] = around(&x.shape, axis);
    let mut out = vec![0.0; values.len()];
    for outer in 0..before {
        for inner in 0..after {
            let place = |index: usize| (outer * length + index) * after + inner;
            let row: Vec<f64> = (0..length).map(|index| f64::from(values[place(index)])).collect();
            for (index, probability) in probabilities(&row).into_iter().enumerate() {
                out[place(index)] = probability as f32;
            }
        }
    }
    Ok(Tensor::float(&x.shape, out))
}

/// `exp(xᵢ − max x) / Σⱼ exp(xⱼ − max x)`.
pub(super) fn probabilities(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}
