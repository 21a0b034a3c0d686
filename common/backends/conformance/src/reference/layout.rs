//! Ops that move, cut, join or convert elements.

use roundhouse_graph::{DType, Dim};

use super::Scope;
use super::elementwise::advance;
use crate::tensor::{Data, Tensor, round_to};

/// A tensor of another shape whose element `n` is element `source(n)` of this one.
fn pick(tensor: &Tensor, shape: Vec<usize>, source: impl Iterator<Item = usize>) -> Tensor {
    let data = match &tensor.data {
        Data::Float(values) => Data::Float(source.map(|at| values[at]).collect()),
        Data::Int(values) => Data::Int(source.map(|at| values[at]).collect()),
    };
    Tensor { shape, data }
}

pub(super) fn cat(scope: &Scope<'_>, axis: usize) -> Tensor {
    let first = scope.inputs[0];
    let [outer, _, inner] = first.around(axis);
    let mut shape = first.shape.clone();
    shape[axis] = scope.inputs.iter().map(|part| part.shape[axis]).sum();
    let mut data = match &first.data {
        Data::Float(_) => Data::Float(Vec::new()),
        Data::Int(_) => Data::Int(Vec::new()),
    };
    for o in 0..outer {
        for part in scope.inputs {
            let length = part.shape[axis] * inner;
            let range = o * length..(o + 1) * length;
            match &mut data {
                Data::Float(values) => values.extend_from_slice(&part.floats()[range]),
                Data::Int(values) => values.extend_from_slice(&part.ints()[range]),
            }
        }
    }
    Tensor { shape, data }
}

pub(super) fn slice(scope: &Scope<'_>, axis: usize, start: &Dim, end: &Dim) -> Result<Tensor, String> {
    let x = scope.inputs[0];
    let [outer, length, inner] = x.around(axis);
    let bounds = scope.symbols.size(start).zip(scope.symbols.size(end));
    let (start, end) = bounds.filter(|&(start, end)| start <= end && end <= length).ok_or_else(|| {
        let (start, end) = (scope.symbols.evaluate(start), scope.symbols.evaluate(end));
        format!("{start:?}..{end:?} is outside of a length of {length}")
    })?;
    let mut shape = x.shape.clone();
    shape[axis] = end - start;
    let rows = (0..outer).flat_map(|o| (start..end).map(move |k| o * length + k));
    Ok(pick(x, shape, rows.flat_map(|row| row * inner..(row + 1) * inner)))
}

pub(super) fn replace_rows(scope: &Scope<'_>) -> Result<Tensor, String> {
    let (x, rows, indices) = (scope.inputs[0], scope.inputs[1], scope.inputs[2]);
    let (count, width) = (rows.shape[0], rows.shape[1]);
    let mut out = x.floats().to_vec();
    for (&index, out) in indices.ints().iter().zip(out.chunks_exact_mut(width.max(1))) {
        let Ok(index) = usize::try_from(index) else { continue };
        if index >= count {
            return Err(format!("index {index} of {count} rows"));
        }
        out.copy_from_slice(&rows.floats()[index * width..(index + 1) * width]);
    }
    Ok(Tensor::float(&x.shape, out))
}

pub(super) fn reshape(scope: &Scope<'_>, shape: &[Dim]) -> Result<Tensor, String> {
    let x = scope.inputs[0];
    let shape: Option<Vec<usize>> = shape.iter().map(|dim| scope.symbols.size(dim)).collect();
    let shape = shape.ok_or_else(|| "a dimension of the new shape is negative".to_owned())?;
    Ok(Tensor { shape, data: x.data.clone() })
}

pub(super) fn transpose(scope: &Scope<'_>, permutation: &[usize]) -> Tensor {
    let x = scope.inputs[0];
    let shape: Vec<usize> = permutation.iter().map(|&axis| x.shape[axis]).collect();
    let mut index = vec![0; shape.len()];
    let mut source = vec![0; shape.len()];
    let places = (0..x.len()).map(|_| {
        for (&axis, &i) in permutation.iter().zip(&index) {
            source[axis] = i;
        }
        advance(&mut index, &shape);
        source.iter().zip(&x.shape).fold(0, |at, (i, size)| at * size + i)
    });
    let places: Vec<usize> = places.collect();
    pick(x, shape, places.into_iter())
}

pub(super) fn gather(scope: &Scope<'_>, axis: usize) -> Result<Tensor, String> {
    let (x, indices) = (scope.inputs[0], scope.inputs[1]);
    let [outer, length, inner] = x.around(axis);
    let rows: Result<Vec<usize>, String> = indices
        .ints()
        .iter()
        .map(|&index| {
            let row = usize::try_from(index).ok().filter(|&row| row < length);
            row.ok_or_else(|| format!("index {index} is outside of a length of {length}"))
        })
        .collect();
    let rows = rows?;
    let mut shape = x.shape.clone();
    shape.splice(axis..=axis, indices.shape.iter().copied());
    let picked = (0..outer).flat_map(|o| rows.iter().map(move |row| o * length + row));
    Ok(pick(x, shape, picked.flat_map(|row| row * inner..(row + 1) * inner)))
}

/// To integers towards zero; to truth values by `≠ 0`.
pub(super) fn cast(scope: &Scope<'_>, to: DType) -> Tensor {
    let x = scope.inputs[0];
    let data = match (&x.data, to) {
        (Data::Float(values), DType::Bool) => {
            Data::Int(values.iter().map(|&x| i64::from(x != 0.0)).collect())
        }
        (Data::Int(values), DType::Bool) => Data::Int(values.iter().map(|&x| i64::from(x != 0)).collect()),
        (Data::Float(values), DType::I64) => Data::Int(values.iter().map(|&x| x as i64).collect()),
        (Data::Int(values), DType::I64) => Data::Int(values.clone()),
        (Data::Float(values), _) => Data::Float(values.iter().map(|&x| round_to(to, x)).collect()),
        (Data::Int(values), _) => Data::Float(values.iter().map(|&x| round_to(to, x as f32)).collect()),
    };
    Tensor { shape: x.shape.clone(), data }
}
