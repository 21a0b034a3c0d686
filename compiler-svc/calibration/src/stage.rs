//! Cuts a graph where one value is all that goes on: the residual, after each half of a layer.

use std::collections::{HashMap, HashSet};

use roundhouse_graph::{DType, Graph, GraphError, NodeId, Op, Rewriter, ValueId, WeightExpr};

/// The weight that holds what the stages before gave, a row a token.
pub(crate) const HIDDEN_STATES: &str = "hidden_states";

/// Nodes in a row that see nothing of those before them but one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    /// `[batch, seq, width]`; the first stage begins with the tokens instead.
    pub(crate) entry: Option<ValueId>,
    /// What the next stage begins with; the last one has none.
    pub(crate) exit: Option<ValueId>,
    /// The products to calibrate, at least one.
    pub(crate) products: Vec<NodeId>,
}

/// The stages up to the last product of which `wanted` holds, each as short as can be.
pub(crate) fn stages(graph: &Graph, wanted: impl Fn(NodeId) -> bool) -> Vec<Stage> {
    let mut last_use = HashMap::new();
    for (id, node) in graph.nodes() {
        last_use.extend(node.inputs.iter().map(|&input| (input, Some(id))));
    }
    last_use.extend(graph.outputs().iter().map(|&output| (output, None)));
    let tokens = graph.find("input_ids").map(|ids| &graph.value(ids).shape[..]);
    let (mut stages, mut alive) = (Vec::new(), HashSet::new());
    let (mut entry, mut products) = (None, Vec::new());
    for (id, node) in graph.nodes() {
        if wanted(id) {
            products.push(id);
        }
        alive.retain(|value| last_use.get(value) != Some(&Some(id)));
        if last_use.contains_key(&node.output) {
            alive.insert(node.output);
        }
        let Some(&only) = alive.iter().next().filter(|_| alive.len() == 1) else { continue };
        let value = graph.value(only);
        let is_hidden_state = value.dtype == DType::F32
            && value.shape.len() == 3
            && value.shape.get(..2) == tokens
            && value.shape[2].as_constant().is_some();
        if is_hidden_state && !products.is_empty() {
            stages.push(Stage { entry, exit: Some(only), products: std::mem::take(&mut products) });
            entry = Some(only);
        }
    }
    if !products.is_empty() {
        stages.push(Stage { entry, exit: None, products });
    }
    if let Some(last) = stages.last_mut() {
        last.exit = None;
    }
    stages
}

impl Stage {
    /// A graph of this stage alone that gives `outputs`, each `[batch, seq, width]`, joined along their last axis. Its tokens
    /// are rows of [`HIDDEN_STATES`], of which there are `rows`. Weights come from where `weights` says instead.
    pub(crate) fn graph(
        &self,
        graph: &Graph,
        outputs: &[ValueId],
        rows: usize,
        weights: &[(ValueId, WeightExpr)],
    ) -> Result<Graph, GraphError> {
        let mut rewriter = Rewriter::new(graph.clone());
        for (weight, expr) in weights {
            rewriter.set_weight_expr(*weight, expr.clone())?;
        }
        let mut outputs = outputs.to_vec();
        if let Some(entry) = self.entry
            && let (Some(made), Some(ids)) = (rewriter.producer(entry), rewriter.find("input_ids"))
            && let Some(width) =
                rewriter.value(entry).shape.last().and_then(roundhouse_graph::Dim::as_constant)
        {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            let expr = WeightExpr::tensor(HIDDEN_STATES);
            let table = rewriter.add_weight(HIDDEN_STATES, DType::F32, &[rows, width], expr);
            let read = rewriter.insert_after(made, "entry", Op::Embedding, &[ids, table])?;
            if let Some(reader) = rewriter.producer(read) {
                rewriter.replace_uses_after(reader, entry, read)?;
            }
            outputs.iter_mut().filter(|output| **output == entry).for_each(|output| *output = read);
        }
        let joined = match outputs[..] {
            [output] => output,
            _ => rewriter.append("joined", Op::Cat { axis: 2 }, &outputs)?,
        };
        for output in rewriter.graph().outputs().to_vec() {
            rewriter.remove_output(output);
        }
        rewriter.add_output("stage", joined)?;
        rewriter.remove_dead();
        rewriter.finish()
    }
}
