//! Embedding and matrix products.

use super::Scope;
use crate::tensor::Tensor;

pub(super) fn embedding(scope: &Scope<'_>) -> Result<Tensor, String> {
    let [ids, table] = scope.inputs[..] else { return Err("two inputs".to_owned()) };
    let (rows, width) = (table.shape[0], table.shape[1]);
    let mut out = Vec::with_capacity(ids.len() * width);
    for &id in ids.ints() {
        let row = usize::try_from(id).ok().filter(|&row| row < rows);
        let row = row.ok_or_else(|| format!("token {id} is outside of a vocabulary of {rows}"))?;
        out.extend_from_slice(&table.floats()[row * width..(row + 1) * width]);
    }
    Ok(Tensor::float(&[&ids.shape[..], &[width]].concat(), out))
}

pub(super) fn linear(scope: &Scope<'_>) -> Tensor {
    let (x, weight, bias) = (scope.inputs[0], scope.inputs[1], scope.inputs.get(2));
    let (columns, inner) = (weight.shape[0], weight.shape[1]);
    let mut out = Vec::with_capacity(x.len() / inner * columns);
    for row in x.floats().chunks_exact(inner) {
        for (column, weights) in weight.floats().chunks_exact(inner).enumerate() {
            let offset = bias.map_or(0.0, |bias| f64::from(bias.floats()[column]));
            out.push((dot(row, weights) + offset) as f32);
        }
    }
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    Tensor::float(&shape, out)
}

pub(super) fn matmul(scope: &Scope<'_>, transpose_b: bool) -> Tensor {
    let (a, b) = (scope.inputs[0], scope.inputs[1]);
    let rank = a.shape.len();
    let (rows, inner) = (a.shape[rank - 2], a.shape[rank - 1]);
    let columns = if transpose_b { b.shape[rank - 2] } else { b.shape[rank - 1] };
    let mut out = Vec::new();
    for (a, b) in a.floats().chunks_exact(rows * inner).zip(b.floats().chunks_exact(inner * columns)) {
        for row in a.chunks_exact(inner) {
            for column in 0..columns {
                let element = |k| if transpose_b { b[column * inner + k] } else { b[k * columns + column] };
                let products = row.iter().enumerate().map(|(k, &x)| f64::from(x) * f64::from(element(k)));
                out.push(products.sum::<f64>() as f32);
            }
        }
    }
    let mut shape = a.shape.clone();
    shape[rank - 1] = columns;
    Tensor::float(&shape, out)
}

/// `Σ a · b` in fp64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
