//! The only way in which passes edit a graph.

mod compact;

use std::collections::HashSet;

use crate::infer::infer_node;
use crate::{
    DType, Dim, Graph, GraphError, Node, NodeId, Op, Origin, Shape, SymbolId, Value, ValueId, WeightExpr,
};
use crate::{infer, verify};

/// An edit of a graph.
///
/// A [`NodeId`] stays that node's however many are inserted around it, until [`Rewriter::finish`], which re-infers
/// every type, verifies, and numbers anew. A pass takes a snapshot of the nodes it is about
/// ([`Rewriter::nodes_where`]), edits around each, and finishes:
///
/// ```
/// # use roundhouse_graph::{Graph, GraphError, Op, Rewriter};
/// /// Every attention gets its scale.
/// fn canonicalise(graph: Graph) -> Result<Graph, GraphError> {
///     let mut rewriter = Rewriter::new(graph);
///     for id in rewriter.nodes_where(|node| matches!(node.op, Op::ScaledDotProductAttention(_))) {
///         let node = rewriter.node(id).clone();
///         let head_dim = rewriter.value(node.inputs[0]).shape[3].as_constant();
///         if let (Op::ScaledDotProductAttention(mut attributes), Some(head_dim)) = (node.op, head_dim) {
///             attributes.scale.get_or_insert(1.0 / (head_dim as f32).sqrt());
///             rewriter.set_op(id, Op::ScaledDotProductAttention(attributes))?;
///         }
///     }
///     rewriter.finish()
/// }
/// ```
#[derive(Debug)]
pub struct Rewriter {
    graph: Graph,
    /// The nodes in execution order; `graph.nodes` is in order of creation.
    order: Vec<NodeId>,
    /// Every name that was ever given.
    names: HashSet<String>,
    removed_weights: HashSet<ValueId>,
}

/// How many dead things [`Rewriter::remove_dead`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Nodes that no output needed.
    pub nodes: u64,
    /// Weights that no node read.
    pub weights: u64,
}

impl Rewriter {
    /// Starts an edit.
    #[must_use]
    pub fn new(graph: Graph) -> Self {
        let order = graph.nodes().map(|(id, _)| id).collect();
        let names = graph.values().map(|(_, value)| value.name.clone()).collect();
        Self { graph, order, names, removed_weights: HashSet::new() }
    }

    // Reading.

    /// The graph as edited so far: for its symbols, inputs, outputs, weights and values. Its nodes are in order of
    /// creation, and types downstream of a change are as of the last [`Rewriter::reinfer`].
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The nodes in execution order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.graph.node(id)))
    }

    /// The nodes of which `wanted` holds, in execution order: a snapshot to edit around.
    pub fn nodes_where(&self, wanted: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        self.nodes().filter(|(_, node)| wanted(node)).map(|(id, _)| id).collect()
    }

    /// A node.
    ///
    /// # Panics
    /// If the ID is another graph's.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.graph.node(id)
    }

    /// A value.
    ///
    /// # Panics
    /// If the ID is another graph's.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        self.graph.value(id)
    }

    /// The value of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.graph.find(name)
    }

    /// The node that makes a value; `None` for inputs and weights.
    #[must_use]
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        self.nodes().find(|(_, node)| node.output == value).map(|(id, _)| id)
    }

    /// The nodes that read a value, in execution order.
    #[must_use]
    pub fn users(&self, value: ValueId) -> Vec<NodeId> {
        self.nodes_where(|node| node.inputs.contains(&value))
    }

    /// The only reader of a value that is no output; `None` where there are more or none. What a fusion asks before
    /// it swallows a value.
    #[must_use]
    pub fn only_user(&self, value: ValueId) -> Option<NodeId> {
        match self.users(value)[..] {
            [user] if !self.graph.outputs.contains(&value) => Some(user),
            _ => None,
        }
    }

    // Nodes.

    /// A new node right before `at`. Its output is named `name`, with a number after it if that is taken.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn insert_before(
        &mut self,
        at: NodeId,
        name: &str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, GraphError> {
        let place = self.place(at)?;
        self.insert_at(place, name, op, inputs)
    }

    /// A new node right after `at`. Of several calls with one `at`, the last comes first: pass the ID of the node
    /// inserted before ([`Rewriter::producer`]) where order matters.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn insert_after(
        &mut self,
        at: NodeId,
        name: &str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, GraphError> {
        let place = self.place(at)?;
        self.insert_at(place + 1, name, op, inputs)
    }

    /// A new node after all others.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn append(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        self.insert_at(self.order.len(), name, op, inputs)
    }

    /// Gives a node another op over the same inputs, and re-infers its output.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn set_op(&mut self, id: NodeId, op: Op) -> Result<(), GraphError> {
        let inputs = self.node(id).inputs.clone();
        self.set_node(id, op, &inputs)
    }

    /// Gives a node other inputs, and re-infers its output.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn set_inputs(&mut self, id: NodeId, inputs: &[ValueId]) -> Result<(), GraphError> {
        let op = self.node(id).op.clone();
        self.set_node(id, op, inputs)
    }

    /// Gives a node another op and other inputs, and re-infers its output.
    ///
    /// # Errors
    /// When the inputs do not fit the op.
    pub fn set_node(&mut self, id: NodeId, op: Op, inputs: &[ValueId]) -> Result<(), GraphError> {
        let (dtype, shape) = self.infer(&op, inputs)?;
        let node = &mut self.graph.nodes[id.0 as usize];
        node.op = op;
        node.inputs = inputs.to_vec();
        let output = node.output;
        let value = self.value_mut(output);
        value.dtype = dtype;
        value.shape = shape;
        Ok(())
    }

    /// Makes every reader of `of`, and the outputs, take `with` instead. An output keeps its name: it moves to `with`.
    ///
    /// # Errors
    /// When an output would become an input or a weight, whose name is not free to change.
    pub fn replace_uses(&mut self, of: ValueId, with: ValueId) -> Result<(), GraphError> {
        self.replace_uses_from(0, of, with)
    }

    /// Makes every reader of `of` that runs after `after`, and the outputs, take `with` instead.
    ///
    /// # Errors
    /// When an output would become an input or a weight, whose name is not free to change.
    pub fn replace_uses_after(
        &mut self,
        after: NodeId,
        of: ValueId,
        with: ValueId,
    ) -> Result<(), GraphError> {
        let first = self.place(after)? + 1;
        self.replace_uses_from(first, of, with)
    }

    /// Removes a node whose output nothing reads.
    ///
    /// # Errors
    /// When something still reads it.
    pub fn remove_node(&mut self, id: NodeId) -> Result<(), GraphError> {
        let output = self.node(id).output;
        if let Some(&user) = self.users(output).first() {
            let user = &self.value(self.node(user).output).name;
            return Err(self.broken(format!("{:?} cannot go: {user:?} reads it", self.value(output).name)));
        }
        if self.graph.outputs.contains(&output) {
            return Err(self.broken(format!("{:?} cannot go: it is an output", self.value(output).name)));
        }
        let place = self.place(id)?;
        self.order.remove(place);
        Ok(())
    }

    /// Removes all nodes that no output needs, and all weights that no node reads. Inputs stay.
    pub fn remove_dead(&mut self) -> Removed {
        let mut needed: HashSet<ValueId> = self.graph.outputs.iter().copied().collect();
        let before = self.order.len();
        let mut kept = Vec::with_capacity(before);
        for &id in self.order.iter().rev() {
            let node = self.graph.node(id);
            if needed.contains(&node.output) {
                needed.extend(&node.inputs);
                kept.push(id);
            }
        }
        kept.reverse();
        self.order = kept;
        let unread = self.graph.weights().map(|(id, ..)| id).filter(|id| !needed.contains(id));
        let unread: HashSet<ValueId> = unread.filter(|id| !self.removed_weights.contains(id)).collect();
        self.removed_weights.extend(&unread);
        Removed { nodes: (before - self.order.len()) as u64, weights: unread.len() as u64 }
    }

    // Types.

    /// Changes the dtype of an input or weight. Readers keep theirs until [`Rewriter::reinfer`] or
    /// [`Rewriter::finish`].
    ///
    /// # Errors
    /// When a node makes the value: its dtype follows from its inputs.
    pub fn set_dtype(&mut self, value: ValueId, dtype: DType) -> Result<(), GraphError> {
        if self.value(value).origin == Origin::Node {
            return Err(
                self.broken(format!("the dtype of {:?} follows from its node", self.value(value).name))
            );
        }
        self.value_mut(value).dtype = dtype;
        Ok(())
    }

    /// Changes the shape of an input. As for [`Rewriter::set_dtype`], readers follow later.
    ///
    /// # Errors
    /// When the value is no input.
    pub fn set_input_shape(&mut self, value: ValueId, shape: Shape) -> Result<(), GraphError> {
        if !self.graph.inputs.contains(&value) {
            return Err(self.broken(format!("{:?} is no input", self.value(value).name)));
        }
        self.value_mut(value).shape = shape;
        Ok(())
    }

    /// Infers the types of all nodes' outputs anew, in execution order.
    ///
    /// # Errors
    /// When an op's inputs no longer fit it; the message names the node's output.
    pub fn reinfer(&mut self) -> Result<(), GraphError> {
        for index in 0..self.order.len() {
            let node = self.graph.node(self.order[index]);
            let output = node.output;
            let (dtype, shape) = infer_node(&self.graph, node)?;
            let value = self.value_mut(output);
            value.dtype = dtype;
            value.shape = shape;
        }
        Ok(())
    }

    // Inputs, weights, outputs and symbols.

    /// A new symbol.
    pub fn add_symbol(&mut self, name: &str, min: i64, max: i64) -> SymbolId {
        self.graph.add_symbol(name, min, max)
    }

    /// Changes a symbol's range.
    ///
    /// # Panics
    /// If the ID is another graph's.
    pub fn set_symbol_range(&mut self, id: SymbolId, min: i64, max: i64) {
        let symbol = &mut self.graph.symbols[id.0 as usize];
        (symbol.min, symbol.max) = (min, max);
    }

    /// A new input, last in order.
    pub fn add_input(&mut self, name: &str, dtype: DType, shape: Shape) -> ValueId {
        self.names.insert(name.to_owned());
        self.graph.add_input(name, dtype, shape)
    }

    /// A new scalar `i64` input whose number is the dimension `equals`, last in order.
    pub fn add_index_input(&mut self, name: &str, equals: Dim) -> ValueId {
        self.names.insert(name.to_owned());
        self.graph.add_index_input(name, equals)
    }

    /// Removes an input that no node reads.
    ///
    /// # Errors
    /// When it is no input, or something still reads it.
    pub fn remove_input(&mut self, input: ValueId) -> Result<(), GraphError> {
        let name = self.value(input).name.clone();
        let Some(place) = self.graph.inputs.iter().position(|&id| id == input) else {
            return Err(self.broken(format!("{name:?} is no input")));
        };
        if let Some(&user) = self.users(input).first() {
            let user = &self.value(self.node(user).output).name;
            return Err(self.broken(format!("input {name:?} cannot go: {user:?} reads it")));
        }
        self.graph.inputs.remove(place);
        self.names.remove(&name);
        Ok(())
    }

    /// A new weight, or the one of this name if there is one.
    pub fn add_weight(&mut self, name: &str, dtype: DType, shape: &[i64], expr: WeightExpr) -> ValueId {
        self.names.insert(name.to_owned());
        let id = self.graph.add_weight(name, dtype, shape, expr);
        self.removed_weights.remove(&id);
        id
    }

    /// Changes the recipe of a weight, e.g. to one whose rows come in another order.
    ///
    /// # Errors
    /// When the value is no weight.
    pub fn set_weight_expr(&mut self, weight: ValueId, expr: WeightExpr) -> Result<(), GraphError> {
        if !matches!(self.value(weight).origin, Origin::Weight { .. }) {
            return Err(self.broken(format!("{:?} is no weight", self.value(weight).name)));
        }
        self.value_mut(weight).origin = Origin::Weight { expr };
        Ok(())
    }

    /// Makes a value that a node makes an output, last in order, under this name.
    ///
    /// # Errors
    /// When the value is an input, a weight or an output already, or the name is another value's.
    pub fn add_output(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        let current = self.value(value);
        if current.origin != Origin::Node || self.graph.outputs.contains(&value) {
            return Err(self.broken(format!("{:?} cannot become output {name:?}", current.name)));
        }
        self.rename(value, name)?;
        self.graph.outputs.push(value);
        Ok(())
    }

    /// Makes output number `place` another value, under the same name. The nodes that read the old value still do.
    ///
    /// # Errors
    /// When there is no such output, or the value is an input, a weight or an output already.
    pub fn set_output(&mut self, place: usize, value: ValueId) -> Result<(), GraphError> {
        let Some(&of) = self.graph.outputs.get(place) else {
            return Err(self.broken(format!("there is no output {place}")));
        };
        self.replace_uses_from(self.order.len(), of, value)
    }

    /// Makes a value no longer an output. What made it stays until [`Rewriter::remove_dead`].
    pub fn remove_output(&mut self, value: ValueId) {
        self.graph.outputs.retain(|&output| output != value);
    }

    /// Gives a value that a node makes another name.
    ///
    /// # Errors
    /// When the name is another value's.
    pub fn rename(&mut self, value: ValueId, name: &str) -> Result<(), GraphError> {
        let current = self.value(value).name.clone();
        if current != name {
            if !self.names.insert(name.to_owned()) {
                return Err(self.broken(format!("{current:?} cannot be named {name:?}: the name is taken")));
            }
            self.names.remove(&current);
            self.value_mut(value).name = name.to_owned();
        }
        Ok(())
    }

    /// Re-infers, verifies, and returns the graph with all that was removed gone, and values numbered as a dump lists
    /// them: inputs, weights, then the nodes' outputs in execution order.
    ///
    /// # Errors
    /// What [`crate::verify`] finds.
    pub fn finish(mut self) -> Result<Graph, GraphError> {
        self.reinfer()?;
        let graph = self.compact()?;
        verify(&graph)?;
        Ok(graph)
    }

    fn place(&self, id: NodeId) -> Result<usize, GraphError> {
        self.order
            .iter()
            .position(|&other| other == id)
            .ok_or_else(|| self.broken(format!("node {} was removed or is another graph's", id.0)))
    }

    fn insert_at(
        &mut self,
        place: usize,
        name: &str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, GraphError> {
        let name = self.free_name(name);
        let id = NodeId(u32::try_from(self.graph.nodes.len()).unwrap_or(u32::MAX));
        let output = self.graph.add_node(op, inputs)?;
        self.value_mut(output).name = name.clone();
        self.names.insert(name);
        self.order.insert(place, id);
        Ok(output)
    }

    /// `name`, or the first of `name_1`, `name_2`, … that is free.
    fn free_name(&self, name: &str) -> String {
        let numbered = (1..=self.names.len()).map(|number| format!("{name}_{number}"));
        let mut candidates = std::iter::once(name.to_owned()).chain(numbered);
        candidates.find(|candidate| !self.names.contains(candidate)).unwrap_or_else(|| name.to_owned())
    }

    fn infer(&self, op: &Op, inputs: &[ValueId]) -> Result<(DType, Shape), GraphError> {
        let types: Vec<&Value> = inputs.iter().map(|&id| self.graph.value(id)).collect();
        infer(op, &types)
    }

    fn replace_uses_from(&mut self, first: usize, of: ValueId, with: ValueId) -> Result<(), GraphError> {
        for &id in &self.order[first..] {
            let node = &mut self.graph.nodes[id.0 as usize];
            node.inputs.iter_mut().filter(|input| **input == of).for_each(|input| *input = with);
        }
        let Some(place) = self.graph.outputs.iter().position(|&output| output == of) else { return Ok(()) };
        if self.value(with).origin != Origin::Node || self.graph.outputs.contains(&with) {
            let (of, with) = (&self.value(of).name, &self.value(with).name);
            return Err(self.broken(format!("output {of:?} cannot become {with:?}")));
        }
        self.graph.outputs[place] = with;
        let name = std::mem::take(&mut self.value_mut(of).name);
        let other = std::mem::replace(&mut self.value_mut(with).name, name);
        self.value_mut(of).name = other;
        Ok(())
    }

    fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.graph.values[id.0 as usize]
    }

    fn broken(&self, what: String) -> GraphError {
        GraphError::Structure { graph: self.graph.name.clone(), what }
    }
}

#[cfg(test)]
mod tests;
