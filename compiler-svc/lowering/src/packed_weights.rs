//! Keeps weights as the checkpoint has them quantised, instead of the numbers that they stand for.
//!
//! Runs after the precision is set: scales keep the dtype that holds them exactly. What a product with such a weight
//! computes is what it computed with the decoded weight, but that this one was rounded to the precision.

use roundhouse_backend::{QuantizedTensor, WeightSource};
use roundhouse_graph::{DType, Graph, PassReport, QuantizedLinearAttributes, Rewriter, WeightExpr};

use crate::LoweringError;
use crate::quantized_linear::{Parts, quantize, tensors_used_otherwise, weight};

const NAME: &str = "packed_weights";

/// Turns each product whose weight is made of rows of tensors that `source` has quantised alike, in a way that `accepts`
/// says the backend multiplies with, into one that reads their bytes, scales and offsets. Weights that are made
/// otherwise, or whose tensors are used for something else too, stay decoded.
///
/// # Errors
/// When the graph does not verify.
pub fn packed_weights(
    graph: Graph,
    source: &dyn WeightSource,
    accepts: &dyn Fn(QuantizedLinearAttributes) -> bool,
) -> Result<(Graph, PassReport), LoweringError> {
    let mut rewriter = Rewriter::new(graph);
    let used_otherwise = tensors_used_otherwise(rewriter.graph());
    let (mut packed, mut with_offsets, mut left, mut left_by_backend) = (0, 0, 0, 0);
    for id in rewriter.nodes_where(|_| true) {
        let Some((_, expr)) = weight(rewriter.graph(), rewriter.node(id)) else { continue };
        let free = expr.tensors().iter().all(|&tensor| !used_otherwise.contains(tensor));
        let Some(parts) = description(source, expr).filter(|_| free).map(|described| parts(expr, described))
        else {
            left += 1;
            continue;
        };
        if !accepts(parts.attributes) {
            left_by_backend += 1;
            continue;
        }
        packed += 1;
        with_offsets += u64::from(parts.attributes.has_offsets);
        quantize(&mut rewriter, id, parts)?;
    }
    let removed = rewriter.remove_dead();
    let counts = [
        ("packed_linears", packed),
        ("with_offsets", with_offsets),
        ("left_linears", left),
        ("left_by_backend", left_by_backend),
        ("removed_weights", removed.weights),
    ];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}

/// How all tensors of a recipe of rows are quantised, if they are all alike. Where only some have offsets, all do.
fn description(source: &dyn WeightSource, expr: &WeightExpr) -> Option<QuantizedTensor> {
    match expr {
        WeightExpr::Tensor { name } => source.quantized(name),
        WeightExpr::Rows { of, .. } => description(source, of),
        WeightExpr::Concat { parts } => {
            let mut parts = parts.iter().map(|part| description(source, part));
            let first = parts.next()??;
            parts.try_fold(first, |all, part| {
                let part = part.filter(|part| part.quantization == all.quantization)?;
                let same_dtype = part.scales_dtype == all.scales_dtype;
                Some(QuantizedTensor {
                    quantization: all.quantization,
                    has_offsets: all.has_offsets || part.has_offsets,
                    scales_dtype: if same_dtype { all.scales_dtype } else { DType::F32 },
                })
            })
        }
        WeightExpr::Matrix { .. }
        | WeightExpr::Flattened { .. }
        | WeightExpr::Transpose { .. }
        | WeightExpr::Quantized { .. }
        | WeightExpr::Literal { .. } => None,
    }
}

fn parts(expr: &WeightExpr, described: QuantizedTensor) -> Parts {
    let QuantizedTensor { quantization, has_offsets, scales_dtype } = described;
    Parts {
        attributes: QuantizedLinearAttributes { quantization, has_offsets },
        dtype: scales_dtype,
        values: renamed(expr, QuantizedTensor::values_of),
        scales: renamed(expr, QuantizedTensor::scales_of),
        offsets: has_offsets.then(|| renamed(expr, QuantizedTensor::offsets_of)),
    }
}

/// The same rows of other tensors.
fn renamed(expr: &WeightExpr, name_of: fn(&str) -> String) -> WeightExpr {
    match expr {
        WeightExpr::Tensor { name } => WeightExpr::Tensor { name: name_of(name) },
        WeightExpr::Rows { of, start, end } => {
            WeightExpr::Rows { of: Box::new(renamed(of, name_of)), start: *start, end: *end }
        }
        WeightExpr::Concat { parts } => {
            WeightExpr::Concat { parts: parts.iter().map(|part| renamed(part, name_of)).collect() }
        }
        other => other.clone(),
    }
}
