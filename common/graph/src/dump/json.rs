//! JSON: how a graph travels in an engine.

use crate::{Graph, GraphError, verify};

/// The longest JSON that is read. Graphs have a few hundred kilobytes: weights are not in them.
const MAX_BYTES: usize = 32 << 20;

impl Graph {
    /// As JSON, one line. Floats keep all their digits.
    ///
    /// # Errors
    /// Never for a graph that verifies.
    pub fn to_json(&self) -> Result<String, GraphError> {
        serde_json::to_string(self).map_err(|error| GraphError::Json(error.to_string()))
    }

    /// Reads what [`Graph::to_json`] wrote, and verifies it. Anything may be given: memory stays within a small
    /// multiple of the text's length.
    ///
    /// # Errors
    /// [`GraphError::Json`] for text that is no graph, and what [`verify`] finds in one that is.
    pub fn from_json(text: &str) -> Result<Self, GraphError> {
        if text.len() > MAX_BYTES {
            return Err(GraphError::Json(format!("{} bytes, at most {MAX_BYTES} are read", text.len())));
        }
        let graph: Self = serde_json::from_str(text).map_err(|error| GraphError::Json(error.to_string()))?;
        verify(&graph)?;
        Ok(graph)
    }
}
