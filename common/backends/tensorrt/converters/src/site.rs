//! A node as its converter sees it.

use roundhouse_graph::{Dim, Graph, Node, Op, Value, ValueId};

use crate::ConvertError;
use crate::options::Options;
use crate::shapes::smallest;

/// A node with its graph and the engine's options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) node: &'a Node,
    pub(crate) options: &'a Options,
}

impl<'a> Site<'a> {
    pub(crate) fn op(&self) -> &'a Op {
        &self.node.op
    }

    /// The name of the node's output, which is the node's in messages.
    pub(crate) fn name(&self) -> &'a str {
        &self.output().name
    }

    pub(crate) fn output(&self) -> &'a Value {
        self.graph.value(self.node.output)
    }

    /// Which value operand `index` is.
    pub(crate) fn id(&self, index: usize) -> Result<ValueId, ConvertError> {
        let id = self.node.inputs.get(index).copied();
        id.ok_or_else(|| self.internal(format!("operand {index} is missing")))
    }

    /// Operand `index`.
    pub(crate) fn input(&self, index: usize) -> Result<&'a Value, ConvertError> {
        Ok(self.graph.value(self.id(index)?))
    }

    /// Whether operand `index` is there.
    pub(crate) fn has(&self, index: usize) -> bool {
        index < self.node.inputs.len()
    }

    /// Whether a dimension is above zero whatever its symbols are.
    pub(crate) fn is_positive(&self, dim: &Dim) -> bool {
        smallest(dim, self.graph.symbols()) > 0
    }

    /// The error of a converter that was given another op than its own.
    pub(crate) fn wrong_converter(&self) -> ConvertError {
        self.internal(format!("{} came to a converter that is not its own", self.op().name()))
    }

    pub(crate) fn internal(&self, what: String) -> ConvertError {
        ConvertError::Internal { node: self.name().to_owned(), what }
    }
}
