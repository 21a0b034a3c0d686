//! Which nodes run as one step.
//!
//! Linears of one input share a pass over it, whatever their weights are; a SwiGLU's two linears and their product are one step; a linear that is
//! added to something accumulates into it. Casts between float types are no steps at all, since activations are fp32.

use std::collections::{HashMap, HashSet};

use roundhouse_graph::{Graph, Node, NodeId, Op, Origin, ValueId};

/// Nodes that run as one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    /// A node by itself.
    One(NodeId),
    /// Linears of the same input.
    Linears(Vec<NodeId>),
    /// `silu(gate(x)) · up(x)`.
    LinearSiluMul { gate: NodeId, up: NodeId, mul: NodeId },
    /// `residual + linear(x)`.
    LinearAdd { linear: NodeId, residual: ValueId, add: NodeId },
}

/// The groups of a graph in an order in which they can run, and when each value is read for the last time.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) groups: Vec<Group>,
    /// What a value is a cast of, for each float cast.
    casts: HashMap<ValueId, ValueId>,
    /// The last group that reads a value.
    last_use: HashMap<ValueId, usize>,
    outputs: HashSet<ValueId>,
}

impl Groups {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut casts: HashMap<ValueId, ValueId> = HashMap::new();
        for (_, node) in graph.nodes() {
            let input = node.inputs.first().copied();
            if let (Op::Cast { to }, Some(input)) = (&node.op, input)
                && to.is_float()
                && graph.value(input).dtype.is_float()
            {
                casts.insert(node.output, casts.get(&input).copied().unwrap_or(input));
            }
        }
        let resolve = |id: ValueId| casts.get(&id).copied().unwrap_or(id);
        let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for (id, node) in graph.nodes().filter(|(_, node)| !casts.contains_key(&node.output)) {
            for &input in &node.inputs {
                users.entry(resolve(input)).or_default().push(id);
            }
        }
        let outputs: HashSet<ValueId> = graph.outputs().iter().map(|&id| resolve(id)).collect();
        let producers: HashMap<ValueId, NodeId> = graph.nodes().map(|(id, node)| (node.output, id)).collect();

        // A linear on weights whose result only one node reads.
        let private_linear = |value: ValueId| {
            let id = *producers.get(&resolve(value))?;
            let node = graph.node(id);
            let private =
                !outputs.contains(&node.output) && users.get(&node.output).is_some_and(|u| u.len() == 1);
            (private && is_linear(&node.op)).then_some(id)
        };
        let x = |id: NodeId| resolve(graph.node(id).inputs[0]);
        let has_bias = |id: NodeId| bias(graph.node(id)).is_some();

        let mut taken: HashSet<NodeId> = HashSet::new();
        let mut placed: Vec<(NodeId, Group)> = Vec::new();
        for (id, node) in graph.nodes() {
            match node.op {
                Op::SiluMul => {
                    if let (Some(gate), Some(up)) =
                        (private_linear(node.inputs[0]), private_linear(node.inputs[1]))
                        && gate != up
                        && x(gate) == x(up)
                        && !has_bias(gate)
                        && !has_bias(up)
                    {
                        taken.extend([gate, up, id]);
                        placed.push((id, Group::LinearSiluMul { gate, up, mul: id }));
                    }
                }
                Op::Add => {
                    // The later operand is the one that was just computed.
                    for (linear, residual) in [(1, 0), (0, 1)] {
                        let residual = resolve(node.inputs[residual]);
                        if let Some(linear) = private_linear(node.inputs[linear])
                            && !taken.contains(&linear)
                            && graph.value(residual).shape == graph.value(graph.node(linear).output).shape
                            && !matches!(graph.value(residual).origin, Origin::Weight { .. })
                        {
                            taken.extend([linear, id]);
                            placed.push((id, Group::LinearAdd { linear, residual, add: id }));
                            break;
                        }
                    }
                }
                _ => {}
            }
        }
        let mut shared: HashMap<ValueId, usize> = HashMap::new();
        for (id, node) in graph.nodes().filter(|(_, node)| !casts.contains_key(&node.output)) {
            if taken.contains(&id) {
                continue;
            }
            if !is_linear(&node.op) {
                placed.push((id, Group::One(id)));
            } else if let Some(&place) = shared.get(&x(id))
                && let (_, Group::Linears(linears)) = &mut placed[place]
            {
                linears.push(id);
            } else {
                shared.insert(x(id), placed.len());
                placed.push((id, Group::Linears(vec![id])));
            }
        }
        placed.sort_by_key(|(id, _)| *id);
        let groups: Vec<Group> = placed.into_iter().map(|(_, group)| group).collect();

        let mut last_use = HashMap::new();
        for (place, group) in groups.iter().enumerate() {
            for id in group.nodes() {
                for &input in &graph.node(id).inputs {
                    last_use.insert(resolve(input), place);
                }
            }
        }
        Self { groups, casts, last_use, outputs }
    }

    /// The value itself, or what it is a cast of.
    pub(super) fn resolve(&self, id: ValueId) -> ValueId {
        self.casts.get(&id).copied().unwrap_or(id)
    }

    /// Whether no group after `place` reads a value, nor the caller.
    pub(super) fn is_dead_after(&self, id: ValueId, place: usize) -> bool {
        !self.outputs.contains(&id) && self.last_use.get(&id).is_none_or(|&last| last <= place)
    }
}

/// Whether an op is a product with a weight, quantised or not.
const fn is_linear(op: &Op) -> bool {
    matches!(op, Op::Linear | Op::QuantizedLinear(_))
}

/// The bias of a product with a weight.
pub(super) fn bias(node: &Node) -> Option<ValueId> {
    let place = match node.op {
        Op::QuantizedLinear(attributes) if attributes.has_offsets => 4,
        Op::QuantizedLinear(_) => 3,
        _ => 2,
    };
    node.inputs.get(place).copied()
}

impl Group {
    /// Its nodes.
    fn nodes(&self) -> Vec<NodeId> {
        match self {
            Self::One(id) => vec![*id],
            Self::Linears(ids) => ids.clone(),
            Self::LinearSiluMul { gate, up, mul } => vec![*gate, *up, *mul],
            Self::LinearAdd { linear, add, .. } => vec![*linear, *add],
        }
    }

    /// The node that its errors name.
    pub(super) fn node(&self) -> Option<NodeId> {
        match self {
            Self::Linears(ids) => ids.first().copied(),
            Self::One(id) | Self::LinearSiluMul { mul: id, .. } | Self::LinearAdd { add: id, .. } => {
                Some(*id)
            }
        }
    }
}
