//! Weights whose numbers are in the graph.

use roundhouse_graph::{Origin, Rewriter, ValueId, WeightExpr};

/// The numbers of a value, row-major, if the graph holds them.
pub(crate) fn literal(rewriter: &Rewriter, value: ValueId) -> Option<&[f32]> {
    match &rewriter.value(value).origin {
        Origin::Weight { expr: WeightExpr::Literal { values } } => Some(values),
        _ => None,
    }
}

/// Whether a value is this number everywhere, and the graph says so.
pub(crate) fn is_all(rewriter: &Rewriter, value: ValueId, number: f32) -> bool {
    literal(rewriter, value).is_some_and(|values| values.iter().all(|&found| found == number))
}
