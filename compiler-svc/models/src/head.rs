//! Which weight the output layer reads.

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_graph::ValueId;

use crate::ModelError;
use crate::graph_builder::GraphBuilder;

/// The output layer's weight `[vocab_size, hidden_size]`: the embedding table when `tied`, else the tensor `name`.
///
/// Transformers unties a tied model whose checkpoint holds an output weight that differs from the table; so does this.
pub(crate) fn head_weight(
    builder: &mut GraphBuilder<'_>,
    name: &str,
    shape: [u32; 2],
    embedding: (&str, ValueId),
    tied: bool,
) -> Result<ValueId, ModelError> {
    match builder.checkpoint().shape(name) {
        Ok(_) if tied && equal(builder.checkpoint(), name, embedding.0)? => Ok(embedding.1),
        Ok(_) => builder.weight(name, &shape),
        Err(WeightError::NotFound { .. }) if tied => Ok(embedding.1),
        Err(WeightError::NotFound { name }) => Err(ModelError::MissingHead { name }),
        Err(error) => Err(error.into()),
    }
}

/// Whether two tensors hold the same numbers. Reads a row of each at a time and stops at the first difference.
fn equal(weights: &dyn WeightSource, a: &str, b: &str) -> Result<bool, WeightError> {
    let shape = weights.shape(a)?;
    if shape != weights.shape(b)? {
        return Ok(false);
    }
    let columns = shape.iter().skip(1).product::<u64>() as usize;
    let (mut row_a, mut row_b) = (vec![0.0; columns], vec![0.0; columns]);
    for row in 0..shape.first().copied().unwrap_or(0) {
        weights.read_rows(a, row..row + 1, &mut row_a)?;
        weights.read_rows(b, row..row + 1, &mut row_b)?;
        if row_a != row_b {
            return Ok(false);
        }
    }
    Ok(true)
}
