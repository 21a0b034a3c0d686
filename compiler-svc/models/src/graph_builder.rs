//! Building a graph: weights are checked against the checkpoint as they are named.

use std::collections::BTreeSet;
use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};
use roundhouse_graph::{DType, Dim, Graph, GraphError, Op, ValueId, WeightExpr};

use crate::ModelError;

/// Most names of unused tensors in a message.
const MAX_NAMES: usize = 5;

/// A graph under construction: a decoder's, with its inputs `input_ids` and `position_ids`, or another component's.
pub(crate) struct GraphBuilder<'a> {
    graph: Graph,
    weights: &'a dyn WeightSource,
    used: BTreeSet<String>,
    /// The first two dimensions of hidden states: how many sequences, and of how many positions each.
    batch: Dim,
    seq: Dim,
}

impl<'a> GraphBuilder<'a> {
    /// A decoder's empty graph with its inputs `input_ids [batch, seq] i64` and `position_ids [batch, seq] i64`, or
    /// `[batch, axes, seq]` where positions have several; `seq` is at most `max_position_embeddings`.
    pub(crate) fn decoder(
        name: &str,
        max_position_embeddings: u32,
        position_axes: Option<usize>,
        weights: &'a dyn WeightSource,
    ) -> Self {
        let mut graph = Graph::new(name);
        let batch = Dim::symbol(graph.add_symbol("batch", 1, i64::from(u32::MAX)));
        let seq = Dim::symbol(graph.add_symbol("seq", 1, i64::from(max_position_embeddings)));
        graph.add_input("input_ids", DType::I64, vec![batch.clone(), seq.clone()]);
        let axes = position_axes.map(Dim::from);
        let positions = [Some(batch.clone()), axes, Some(seq.clone())];
        graph.add_input("position_ids", DType::I64, positions.into_iter().flatten().collect());
        Self { graph, weights, used: BTreeSet::new(), batch, seq }
    }

    /// A component's graph, which has its inputs, over hidden states `[batch, seq, …]`.
    pub(crate) fn component(graph: Graph, [batch, seq]: [Dim; 2], weights: &'a dyn WeightSource) -> Self {
        Self { graph, weights, used: BTreeSet::new(), batch, seq }
    }

    /// An input of the graph.
    pub(crate) fn input(&self, name: &str) -> Result<ValueId, ModelError> {
        let missing = || GraphError::Structure {
            graph: self.graph.name.clone(),
            what: format!("it has no input {name:?}"),
        };
        Ok(self.graph.find(name).ok_or_else(missing)?)
    }

    /// A decoder's inputs for the images among its tokens: `image_features [image_rows, width] f32` and `image_indices
    /// [batch, seq] i64`.
    pub(crate) fn image_inputs(&mut self, width: u32) -> [ValueId; 2] {
        let most = i64::from(u32::MAX);
        let rows = Dim::symbol(self.graph.add_symbol("image_rows", 0, most));
        let features = self.graph.add_input("image_features", DType::F32, vec![rows, constant(width)]);
        let shape = vec![self.batch.clone(), self.seq.clone()];
        [features, self.graph.add_input("image_indices", DType::I64, shape)]
    }

    /// The checkpoint's tensor of this name, once it is known to have this shape.
    pub(crate) fn weight(&mut self, name: &str, shape: &[u32]) -> Result<ValueId, ModelError> {
        self.derived(name, name, shape, shape, |tensor| tensor)
    }

    /// A node; its output.
    pub(crate) fn node(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, ModelError> {
        Ok(self.graph.add_node(op, inputs)?)
    }

    /// `x […, inputs] → […, outputs]` by `{prefix}.weight`, and `{prefix}.bias` if `bias`.
    pub(crate) fn linear(
        &mut self,
        prefix: &str,
        x: ValueId,
        [inputs, outputs]: [u32; 2],
        bias: bool,
    ) -> Result<ValueId, ModelError> {
        let weight = self.weight(&format!("{prefix}.weight"), &[outputs, inputs])?;
        if bias {
            let bias = self.weight(&format!("{prefix}.bias"), &[outputs])?;
            self.node(Op::Linear, &[x, weight, bias])
        } else {
            self.node(Op::Linear, &[x, weight])
        }
    }

    /// `x […, inputs] → […, rows]` by some rows of `{prefix}.weight [outputs, inputs]`, which holds several projections.
    /// `part` names what they are.
    pub(crate) fn linear_rows(
        &mut self,
        prefix: &str,
        x: ValueId,
        [inputs, outputs]: [u32; 2],
        (part, rows): (&str, Range<u32>),
    ) -> Result<ValueId, ModelError> {
        let tensor = format!("{prefix}.weight");
        let shape = [rows.end - rows.start, inputs];
        let weight =
            self.derived(&format!("{tensor}.{part}"), &tensor, &[outputs, inputs], &shape, |whole| {
                rows_of(whole, &rows)
            })?;
        self.node(Op::Linear, &[x, weight])
    }

    /// As [`linear_rows`](Self::linear_rows), with the same rows of `{prefix}.bias [outputs]`.
    pub(crate) fn linear_rows_and_bias(
        &mut self,
        prefix: &str,
        x: ValueId,
        [inputs, outputs]: [u32; 2],
        (part, rows): (&str, Range<u32>),
    ) -> Result<ValueId, ModelError> {
        let count = rows.end - rows.start;
        let (weight, bias) = (format!("{prefix}.weight"), format!("{prefix}.bias"));
        let cut = |whole| rows_of(whole, &rows);
        let named = |tensor: &str| format!("{tensor}.{part}");
        let weights = self.derived(&named(&weight), &weight, &[outputs, inputs], &[count, inputs], cut)?;
        let biases = self.derived(&named(&bias), &bias, &[outputs], &[count], cut)?;
        self.node(Op::Linear, &[x, weights, biases])
    }

    /// A weight `name` of this shape, made by `recipe` of the checkpoint's tensor `tensor`, once that is known to have
    /// `tensor_shape`.
    pub(crate) fn derived(
        &mut self,
        name: &str,
        tensor: &str,
        tensor_shape: &[u32],
        shape: &[u32],
        recipe: impl FnOnce(WeightExpr) -> WeightExpr,
    ) -> Result<ValueId, ModelError> {
        self.check(tensor, tensor_shape)?;
        Ok(self.add_weight(name, shape, recipe(WeightExpr::tensor(tensor))))
    }

    /// A weight `name` of this shape, joined of the checkpoint's tensors `tensors`, once each is known to have
    /// `tensor_shape`.
    pub(crate) fn joined(
        &mut self,
        name: &str,
        tensors: &[String],
        tensor_shape: &[u32],
        shape: &[u32],
    ) -> Result<ValueId, ModelError> {
        tensors.iter().try_for_each(|tensor| self.check(tensor, tensor_shape))?;
        let parts = tensors.iter().map(WeightExpr::tensor).collect();
        Ok(self.add_weight(name, shape, WeightExpr::Concat { parts }))
    }

    fn add_weight(&mut self, name: &str, shape: &[u32], expr: WeightExpr) -> ValueId {
        let shape: Vec<i64> = shape.iter().map(|&dim| i64::from(dim)).collect();
        self.graph.add_weight(name, DType::F32, &shape, expr)
    }

    /// `x [batch, seq, heads · head_dim] → [batch, heads, seq, head_dim]`.
    pub(crate) fn split_heads(
        &mut self,
        x: ValueId,
        heads: u32,
        head_dim: u32,
    ) -> Result<ValueId, ModelError> {
        let shape = vec![self.batch.clone(), self.seq.clone(), constant(heads), constant(head_dim)];
        let x = self.node(Op::Reshape { shape }, &[x])?;
        self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])
    }

    /// `x [batch, heads, seq, head_dim] → [batch, seq, heads · head_dim]`; `width` is that product.
    pub(crate) fn merge_heads(&mut self, x: ValueId, width: u32) -> Result<ValueId, ModelError> {
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])?;
        let shape = vec![self.batch.clone(), self.seq.clone(), constant(width)];
        self.node(Op::Reshape { shape }, &[x])
    }

    /// Checks the shape of a tensor of the checkpoint and remembers that it is used.
    fn check(&mut self, name: &str, shape: &[u32]) -> Result<(), ModelError> {
        let found = self.weights.shape(name)?;
        let expected: Vec<u64> = shape.iter().map(|&dim| u64::from(dim)).collect();
        if found != expected {
            return Err(WeightError::Shape { name: name.to_owned(), expected, found }.into());
        }
        self.used.insert(name.to_owned());
        Ok(())
    }

    /// The checkpoint.
    pub(crate) fn checkpoint(&self) -> &'a dyn WeightSource {
        self.weights
    }

    /// The graph with `logits` as its output. `ignored` says which tensors a checkpoint may hold beside those used.
    ///
    /// # Errors
    /// [`ModelError::UnusedTensors`] when it holds others: a bias or a norm that the config does not mention.
    pub(crate) fn finish(
        self,
        logits: ValueId,
        architecture: &'static str,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Graph, ModelError> {
        self.finish_as("logits", logits, architecture, ignored)
    }

    /// As [`finish`](Self::finish), with an output of this name.
    pub(crate) fn finish_as(
        mut self,
        name: &str,
        output: ValueId,
        architecture: &'static str,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Graph, ModelError> {
        let mut names = self.weights.names();
        names.retain(|name| !self.used.contains(name) && !ignored(name));
        if !names.is_empty() {
            names.sort();
            let count = names.len();
            names.truncate(MAX_NAMES);
            let more = if count > names.len() { ", …" } else { "" };
            let names = format!("{}{more}", names.join(", "));
            return Err(ModelError::UnusedTensors { architecture, count, names });
        }
        self.graph.add_output(name, output);
        roundhouse_graph::verify(&self.graph)?;
        Ok(self.graph)
    }
}

/// These rows of a tensor.
pub(crate) fn rows_of(tensor: WeightExpr, rows: &Range<u32>) -> WeightExpr {
    WeightExpr::Rows { of: Box::new(tensor), start: u64::from(rows.start), end: u64::from(rows.end) }
}

pub(crate) fn constant(value: u32) -> Dim {
    Dim::constant(i64::from(value))
}
