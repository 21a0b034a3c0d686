//! The CPU backend's passes over a lowered graph, one a file.
//!
//! Only what the IR can say is rewritten here. What is about memory (linears of one input in one pass, residuals
//! accumulated in place, rotation in place, shared cosine tables) is decided when a runtime makes its plan.

mod silu_mul;

use roundhouse_backend::BackendError;
use roundhouse_graph::{Graph, PassReport};

/// A pass.
type Pass = fn(Graph) -> Result<(Graph, PassReport), BackendError>;

/// All passes in their order.
const PASSES: &[Pass] = &[silu_mul::run];

/// Runs all passes.
///
/// # Errors
/// When a pass breaks the graph.
pub(crate) fn fuse(mut graph: Graph) -> Result<(Graph, Vec<PassReport>), BackendError> {
    let mut reports = Vec::new();
    for pass in PASSES {
        let report;
        (graph, report) = pass(graph)?;
        reports.push(report);
    }
    Ok((graph, reports))
}
