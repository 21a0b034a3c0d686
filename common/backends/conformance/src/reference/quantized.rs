//! Products with quantised weights.

use roundhouse_graph::{QuantizedLinearAttributes, WeightFormat};

use super::{Scope, linear};
use crate::tensor::Tensor;

pub(super) fn quantized_linear(scope: &Scope<'_>, attributes: QuantizedLinearAttributes) -> Tensor {
    let (x, bytes, scales) = (scope.inputs[0], scope.inputs[1], scope.inputs[2]);
    let (offsets, rest) = match (&scope.inputs[3..], attributes.has_offsets) {
        ([offsets, rest @ ..], true) => (Some(offsets.floats()), rest),
        (rest, _) => (None, rest),
    };
    let rows = bytes.shape[0];
    let columns = x.shape[x.shape.len() - 1];
    let group_size = attributes.quantization.group_size as usize;
    let mut weight = Vec::with_capacity(rows * columns);
    let numbers = bytes.floats().iter().flat_map(|&byte| decode(attributes.quantization.format, byte as u8));
    for (index, number) in numbers.enumerate() {
        let group = index / group_size;
        let offset = offsets.map_or(0.0, |offsets| offsets[group]);
        weight.push(number * scales.floats()[group] + offset);
    }
    let weight = Tensor::float(&[rows, columns], weight);
    let inputs: Vec<&Tensor> = [x, &weight].into_iter().chain(rest.iter().copied()).collect();
    linear::linear(&Scope { inputs: &inputs, symbols: scope.symbols })
}

/// The numbers that a byte holds, in the order of their columns.
fn decode(format: WeightFormat, byte: u8) -> Vec<f32> {
    match format {
        WeightFormat::Int8 => vec![f32::from(byte.cast_signed())],
        WeightFormat::Int4 => vec![f32::from(byte & 15) - 8.0, f32::from(byte >> 4) - 8.0],
        WeightFormat::Fp8 => vec![e4m3(byte)],
    }
}

/// One sign bit, four of exponent (bias 7), three of mantissa. `S.1111.111` is not a number; there is no infinity.
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2.0_f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    }
}
