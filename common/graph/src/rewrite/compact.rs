//! Leaving out what was removed.

use std::collections::HashMap;

use super::Rewriter;
use crate::{Graph, GraphError, Node, ValueId};

impl Rewriter {
    /// The graph with nodes in execution order and values in the order of a dump.
    pub(super) fn compact(mut self) -> Result<Graph, GraphError> {
        let weights = self.graph.weights().map(|(id, ..)| id).filter(|id| !self.removed_weights.contains(id));
        let outputs = self.order.iter().map(|&id| self.graph.node(id).output);
        let kept: Vec<ValueId> = self.graph.inputs.iter().copied().chain(weights).chain(outputs).collect();
        let renumbered: HashMap<ValueId, ValueId> = kept.iter().copied().zip((0..).map(ValueId)).collect();
        let broken = |id: ValueId| {
            let what = format!("{:?} was removed and is still used", self.graph.value(id).name);
            GraphError::Structure { graph: self.graph.name.clone(), what }
        };
        let new_id = |id: ValueId| renumbered.get(&id).copied().ok_or_else(|| broken(id));
        let mut nodes = Vec::with_capacity(self.order.len());
        for &id in &self.order {
            let node = self.graph.node(id);
            let inputs = node.inputs.iter().map(|&input| new_id(input)).collect::<Result<_, _>>()?;
            nodes.push(Node { op: node.op.clone(), inputs, output: new_id(node.output)? });
        }
        let inputs = self.graph.inputs.iter().map(|&id| new_id(id)).collect::<Result<_, _>>()?;
        let outputs = self.graph.outputs.iter().map(|&id| new_id(id)).collect::<Result<_, _>>()?;
        self.graph.values = kept.iter().map(|&id| self.graph.value(id).clone()).collect();
        Ok(Graph { nodes, inputs, outputs, ..self.graph })
    }
}
