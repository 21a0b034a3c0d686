//! What holds for every graph that leaves a pass.

mod symbols;
mod values;

use std::collections::HashMap;

use crate::infer::infer_node;
use crate::{Graph, GraphError, Op, Origin, ValueId};

/// Checks a graph: names are unique, IDs in range, definitions come before uses, every type is what its node's op
/// makes of its inputs, every symbol gets its value from an input, slices can lie inside what they cut, weights are
/// static and their recipes whole, and what is written in place is not read afterwards.
///
/// # Errors
/// [`GraphError`] says what is wrong and where.
pub fn verify(graph: &Graph) -> Result<(), GraphError> {
    let check = Check { graph };
    check.symbols()?;
    check.values()?;
    check.definitions()?;
    for node in &graph.nodes {
        let (dtype, shape) = infer_node(graph, node)?;
        let value = graph.value(node.output);
        if value.dtype != dtype || value.shape != shape {
            return Err(check.broken(format!(
                "{:?} is stored as {}{} and {} makes {dtype}{}",
                value.name,
                value.dtype,
                check.shape(&value.shape),
                node.op.name(),
                check.shape(&shape)
            )));
        }
    }
    check.slices()?;
    check.bindings()?;
    check.in_place()
}

struct Check<'a> {
    graph: &'a Graph,
}

impl Check<'_> {
    fn broken(&self, what: String) -> GraphError {
        GraphError::Structure { graph: self.graph.name.clone(), what }
    }

    fn name(&self, id: ValueId) -> &str {
        &self.graph.value(id).name
    }

    fn in_range(&self, id: ValueId, what: &str) -> Result<(), GraphError> {
        if (id.0 as usize) < self.graph.values.len() {
            return Ok(());
        }
        Err(self.broken(format!("{what} is value {}, of {} values", id.0, self.graph.values.len())))
    }

    /// Inputs, weights and nodes define each value once, before its uses.
    fn definitions(&self) -> Result<(), GraphError> {
        let graph = self.graph;
        let mut defined: Vec<bool> =
            graph.values.iter().map(|value| matches!(value.origin, Origin::Weight { .. })).collect();
        for &id in &graph.inputs {
            self.in_range(id, "an input")?;
            if !matches!(graph.value(id).origin, Origin::Input { .. }) {
                return Err(self.broken(format!("{:?} is listed as an input and is none", self.name(id))));
            }
            if std::mem::replace(&mut defined[id.0 as usize], true) {
                return Err(self.broken(format!("{:?} is listed twice as an input", self.name(id))));
            }
        }
        for node in &graph.nodes {
            self.in_range(node.output, "a node's output")?;
            let name = self.name(node.output);
            for &input in &node.inputs {
                self.in_range(input, &format!("an input of {name:?}"))?;
                if !defined[input.0 as usize] {
                    return Err(
                        self.broken(format!("{name:?} reads {:?} before it is made", self.name(input)))
                    );
                }
            }
            if graph.value(node.output).origin != Origin::Node {
                return Err(self.broken(format!("a node makes {name:?}, which is an input or a weight")));
            }
            if std::mem::replace(&mut defined[node.output.0 as usize], true) {
                return Err(self.broken(format!("two nodes make {name:?}")));
            }
        }
        if let Some((value, _)) = graph.values.iter().zip(&defined).find(|(_, defined)| !**defined) {
            return Err(self.broken(format!("nothing makes {:?}", value.name)));
        }
        if graph.outputs.is_empty() {
            return Err(self.broken("it has no outputs".to_owned()));
        }
        let mut seen = vec![false; graph.values.len()];
        for &id in &graph.outputs {
            self.in_range(id, "an output")?;
            if graph.value(id).origin != Origin::Node {
                return Err(self.broken(format!("output {:?} is made by no node", self.name(id))));
            }
            if std::mem::replace(&mut seen[id.0 as usize], true) {
                return Err(self.broken(format!("{:?} is listed twice as an output", self.name(id))));
            }
        }
        Ok(())
    }

    /// A cache that a node writes in place is read by nothing later, by nothing else of that node, and is no weight
    /// or output: each of those would see the new contents or the old ones, depending on the backend.
    fn in_place(&self) -> Result<(), GraphError> {
        let mut written: HashMap<ValueId, ValueId> = HashMap::new();
        for node in &self.graph.nodes {
            for input in &node.inputs {
                if let Some(&update) = written.get(input) {
                    let (reader, cache) = (self.name(node.output), self.name(*input));
                    let update = self.name(update);
                    return Err(
                        self.broken(format!("{reader:?} reads {cache:?} after {update:?} changed it"))
                    );
                }
            }
            if let (Op::KvCacheUpdate, Some((&cache, others))) = (&node.op, node.inputs.split_first()) {
                let (update, name) = (self.name(node.output), self.name(cache));
                if matches!(self.graph.value(cache).origin, Origin::Weight { .. }) {
                    return Err(self.broken(format!("{update:?} changes the weight {name:?}")));
                }
                if others.contains(&cache) {
                    return Err(self.broken(format!("{update:?} reads {name:?} and changes it")));
                }
                written.insert(cache, node.output);
            }
        }
        match self.graph.outputs.iter().find(|output| written.contains_key(*output)) {
            Some(&output) => {
                let update = self.name(written[&output]);
                Err(self.broken(format!("{:?} is an output and {update:?} changes it", self.name(output))))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
