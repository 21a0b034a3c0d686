//! Which nodes run as one step.
//!
//! Linears of one input are one product with their matrices one below the other; an activation, a gate, a residual or a
//! soft cap is what is done with a product before it is stored; a norm that only one product reads is done while it is
//! read; norms and rotations of queries and keys belong to the attention that they are for.

use std::collections::{HashMap, HashSet};

use roundhouse_graph::{
    AttentionAttributes, DType, GeluApproximation, Graph, Node, NodeId, Op, Origin, RotaryAttributes, ValueId,
};

use super::product::Product;
use crate::step::Activation;

/// Nodes that run as one step.
#[derive(Debug, Clone)]
pub(super) enum Fused {
    /// Linears of one input, with biases or without.
    Linears { nodes: Vec<NodeId>, norm: Option<NodeId> },
    /// A linear and what is done with it.
    Linear { node: NodeId, norm: Option<NodeId>, epilogue: Then, output: ValueId },
    /// `activation(gate(x)) · up(x)`.
    Gated { gate: NodeId, up: NodeId, norm: Option<NodeId>, activation: Activation, output: ValueId },
    /// An embedding times a factor.
    Embed { node: NodeId, factor: f32, output: ValueId },
    /// `residual + norm(x)`.
    NormAdd { norm: NodeId, residual: ValueId, output: ValueId },
    /// Attention with what is done to its queries and keys first.
    Attention(Site),
}

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Then {
    Store,
    Add(ValueId),
    Map(Activation),
    SoftCap(f32),
}

/// An attention.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) attributes: AttentionAttributes,
    pub(super) query: Heads,
    pub(super) key: Heads,
    pub(super) value: ValueId,
    pub(super) rotary: Option<RotaryAttributes>,
    pub(super) output: ValueId,
}

/// Queries or keys, before their norm and rotation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) base: ValueId,
    pub(super) norm: Option<NodeId>,
    /// Whether nothing else reads the memory that they are in.
    pub(super) private: bool,
}

/// The fused steps of a graph.
#[derive(Debug, Default)]
pub(super) struct Fusions {
    /// By the node in whose place they run.
    pub(super) at: HashMap<NodeId, Fused>,
    /// Nodes that run as a part of others, or need not run.
    pub(super) absorbed: HashSet<NodeId>,
}

struct Uses<'a> {
    graph: &'a Graph,
    users: HashMap<ValueId, Vec<NodeId>>,
    producers: HashMap<ValueId, NodeId>,
}

impl Uses<'_> {
    fn node(&self, id: NodeId) -> &Node {
        self.graph.node(id)
    }

    fn producer(&self, value: ValueId) -> Option<(NodeId, &Node)> {
        let id = *self.producers.get(&value)?;
        Some((id, self.node(id)))
    }

    /// The one node that reads a value, which is no output.
    fn only_user(&self, value: ValueId) -> Option<NodeId> {
        match self.users.get(&value).map(Vec::as_slice) {
            Some([user]) if !self.graph.outputs().contains(&value) => Some(*user),
            _ => None,
        }
    }

    fn is_weight(&self, value: ValueId) -> bool {
        matches!(self.graph.value(value).origin, Origin::Weight { .. })
    }

    /// A product with weights, quantised or not.
    fn is_linear(&self, node: &Node) -> bool {
        matches!(node.op, Op::Linear | Op::QuantizedLinear(_))
            && node.inputs[1..].iter().all(|&weight| self.is_weight(weight))
    }

    /// Whether nothing else reads a product's weights.
    fn has_own_weights(&self, node: &Node) -> bool {
        node.inputs[1..].iter().all(|&weight| self.only_user(weight).is_some())
    }

    /// Whether two nodes are a gate and what it gates: products of one input, their matrices alike.
    fn are_gated(&self, [gate, up]: [NodeId; 2]) -> bool {
        let (a, b) = (self.node(gate), self.node(up));
        let (Some(of_gate), Some(of_up)) = (Product::of(a), Product::of(b)) else { return false };
        let shape = |product: Product| &self.graph.value(product.weight).shape;
        gate != up
            && of_gate.x == of_up.x
            && of_gate.bias.is_none()
            && of_up.bias.is_none()
            && shape(of_gate) == shape(of_up)
            && of_gate.is_stored_like(&of_up, self.graph)
            && [a, b].iter().all(|node| self.has_own_weights(node))
    }

    /// The linear that computes a value which only one node reads.
    fn private_linear(&self, value: ValueId) -> Option<NodeId> {
        let (id, node) = self.producer(value)?;
        (self.is_linear(node) && self.only_user(value).is_some()).then_some(id)
    }

    /// Whether a value and all that it is a view of are read by one node.
    fn is_private(&self, value: ValueId) -> bool {
        let only = self.only_user(value).is_some();
        let view = self.producer(value).filter(|(_, node)| {
            matches!(node.op, Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. })
        });
        only && view.is_none_or(|(_, node)| self.is_private(node.inputs[0]))
    }
}

impl Fusions {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        let mut producers = HashMap::new();
        for (id, node) in graph.nodes() {
            producers.insert(node.output, id);
            for &input in &node.inputs {
                let users = users.entry(input).or_default();
                if users.last() != Some(&id) {
                    users.push(id);
                }
            }
        }
        let uses = Uses { graph, users, producers };
        let mut fusions = Self::default();
        fusions.attentions(&uses);
        fusions.gates(&uses);
        fusions.epilogues(&uses);
        fusions.groups(&uses);
        fusions.norms(&uses);
        fusions.embeddings(&uses);
        fusions
    }

    fn insert(&mut self, at: NodeId, parts: &[NodeId], fused: Fused) {
        self.absorbed.extend(parts);
        self.at.insert(at, fused);
    }

    fn is_free(&self, id: NodeId) -> bool {
        !self.absorbed.contains(&id) && !self.at.contains_key(&id)
    }

    /// Attentions. What copies caches need not run: keys and values are written in place.
    fn attentions(&mut self, uses: &Uses<'_>) {
        let graph = uses.graph;
        let is_cache = |id: &&ValueId| {
            let name = &graph.value(**id).name;
            name.starts_with("key_cache_") || name.starts_with("value_cache_")
        };
        let mut caches: HashSet<ValueId> = graph.inputs().iter().filter(is_cache).copied().collect();
        for (id, node) in graph.nodes() {
            let copies = matches!(node.op, Op::KvCacheUpdate | Op::Slice { .. } | Op::Cat { .. });
            if copies && node.inputs.iter().any(|input| caches.contains(input)) {
                caches.insert(node.output);
                self.absorbed.insert(id);
            }
        }
        for (id, node) in graph.nodes() {
            let Op::ScaledDotProductAttention(attributes) = &node.op else { continue };
            let new = |mut value: ValueId| {
                while caches.contains(&value) {
                    let (_, node) = uses.producer(value)?;
                    let old_and_new = node.inputs.iter().copied();
                    value = match node.op {
                        Op::Slice { .. } => node.inputs[0],
                        Op::KvCacheUpdate => node.inputs[1],
                        // A visible cache may itself be a part of the returned one; the new rows are what is no cache.
                        _ => old_and_new
                            .clone()
                            .find(|input| !caches.contains(input))
                            .or(node.inputs.first().copied())?,
                    };
                }
                Some(value)
            };
            let (Some(key), Some(value)) = (new(node.inputs[1]), new(node.inputs[2])) else { continue };
            let (query, query_rotary) = self.heads(uses, node.inputs[0]);
            let (key_heads, key_rotary) = self.heads(uses, key);
            // One step norms and rotates both.
            let op = |heads: &Heads| heads.norm.map(|id| &uses.node(id).op);
            let same =
                query_rotary.map(|(_, a)| a) == key_rotary.map(|(_, a)| a) && op(&query) == op(&key_heads);
            let (query, key, rotary) = if same {
                let norms = [query.norm, key_heads.norm].into_iter().flatten();
                let rotaries = [query_rotary, key_rotary].into_iter().flatten().map(|(id, _)| id);
                self.absorbed.extend(norms.chain(rotaries));
                (query, key_heads, query_rotary.map(|(_, attributes)| attributes.clone()))
            } else {
                let plain = |base| Heads { base, norm: None, private: uses.is_private(base) };
                (plain(node.inputs[0]), plain(key), None)
            };
            let site =
                Site { attributes: attributes.clone(), query, key, value, rotary, output: node.output };
            self.insert(id, &[], Fused::Attention(site));
        }
    }

    /// Goes back over the rotation and the norm of queries or keys.
    fn heads<'a>(
        &self,
        uses: &'a Uses<'_>,
        value: ValueId,
    ) -> (Heads, Option<(NodeId, &'a RotaryAttributes)>) {
        let mut base = value;
        let mut rotary = None;
        if let Some((id, node)) = uses.producer(base)
            && let Op::RotaryEmbedding(attributes) = &node.op
            && uses.only_user(base).is_some()
        {
            rotary = Some((id, attributes));
            base = node.inputs[0];
        }
        let mut norm = None;
        if let Some((id, node)) = uses.producer(base)
            && matches!(node.op, Op::RmsNorm { .. })
            && uses.only_user(base).is_some()
            && uses.graph.value(base).shape.len() == 4
        {
            norm = Some(id);
            base = node.inputs[0];
        }
        (Heads { base, norm, private: uses.is_private(base) }, rotary)
    }

    fn gates(&mut self, uses: &Uses<'_>) {
        for (id, node) in uses.graph.nodes() {
            let (gates, others) = match node.op {
                Op::SiluMul => (vec![(node.inputs[0], Activation::Silu, None)], vec![node.inputs[1]]),
                Op::Mul => {
                    let activated = |value: ValueId| {
                        let (id, node) = uses.producer(value)?;
                        uses.only_user(value)?;
                        Some((node.inputs[0], activation(&node.op)?, Some(id)))
                    };
                    let both = [(0, 1), (1, 0)].into_iter();
                    let found =
                        both.filter_map(|(gate, up)| Some((activated(node.inputs[gate])?, node.inputs[up])));
                    found.unzip()
                }
                _ => continue,
            };
            for ((gate, activation, by), up) in gates.into_iter().zip(others) {
                let (Some(gate), Some(up)) = (uses.private_linear(gate), uses.private_linear(up)) else {
                    continue;
                };
                if uses.are_gated([gate, up]) && self.is_free(gate) && self.is_free(up) {
                    let parts: Vec<NodeId> = [gate, up, id].into_iter().chain(by).collect();
                    let fused = Fused::Gated { gate, up, norm: None, activation, output: node.output };
                    self.insert(gate.min(up), &parts, fused);
                    break;
                }
            }
        }
    }

    fn epilogues(&mut self, uses: &Uses<'_>) {
        for (id, node) in uses.graph.nodes() {
            if !uses.is_linear(node) || !self.is_free(id) {
                continue;
            }
            let mut output = node.output;
            let mut epilogue = Then::Store;
            let mut parts = vec![id];
            let mut at = id;
            if let Some(user) = uses.only_user(output).filter(|&user| self.is_free(user)) {
                let then = uses.node(user);
                let other = then.inputs.iter().copied().find(|&input| input != output);
                let found = match then.op {
                    Op::Add => other
                        .filter(|&other| uses.graph.value(other).shape == uses.graph.value(output).shape)
                        .filter(|&other| !uses.is_weight(other))
                        .map(Then::Add),
                    Op::SoftCap { cap } => Some(Then::SoftCap(cap)),
                    ref op => activation(op).map(Then::Map),
                };
                if let Some(found) = found {
                    (epilogue, output) = (found, then.output);
                    parts.push(user);
                    if matches!(found, Then::Add(_)) {
                        at = user;
                    }
                }
            }
            // Logits are rounded to no half type on their way to fp32.
            if matches!(epilogue, Then::Store | Then::SoftCap(_))
                && let Some(user) = uses.only_user(output)
                && uses.node(user).op == (Op::Cast { to: DType::F32 })
            {
                output = uses.node(user).output;
                parts.push(user);
            }
            if parts.len() > 1 {
                self.insert(at, &parts, Fused::Linear { node: id, norm: None, epilogue, output });
            }
        }
    }

    /// The linears that are left, those of one input together, in whatever format their weights are.
    fn groups(&mut self, uses: &Uses<'_>) {
        let mut groups: Vec<((ValueId, bool), Vec<NodeId>)> = Vec::new();
        for (id, node) in uses.graph.nodes() {
            let Some(product) = Product::of(node).filter(|_| uses.is_linear(node) && self.is_free(id)) else {
                continue;
            };
            let key = (product.x, product.bias.is_some());
            let once = uses.has_own_weights(node);
            match groups.iter_mut().find(|(other, _)| once && *other == key) {
                Some((_, nodes)) => nodes.push(id),
                // What shares its weights with something else stays alone: no later linear finds it.
                None if !once => groups.push(((node.output, false), vec![id])),
                None => groups.push((key, vec![id])),
            }
        }
        for (_, nodes) in groups {
            self.insert(nodes[0], &nodes.clone(), Fused::Linears { nodes, norm: None });
        }
    }

    /// Norms that only one product reads, and those that are added to something.
    fn norms(&mut self, uses: &Uses<'_>) {
        for (id, node) in uses.graph.nodes() {
            if !matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. }) || !self.is_free(id) {
                continue;
            }
            let readers = uses.users.get(&node.output).map_or(&[][..], Vec::as_slice);
            let is_output = uses.graph.outputs().contains(&node.output);
            let mut reading = self.at.values_mut().filter_map(|fused| match fused {
                Fused::Linears { nodes, norm } => Some((nodes.clone(), norm)),
                Fused::Linear { node, norm, .. } => Some((vec![*node], norm)),
                Fused::Gated { gate, up, norm, .. } => Some((vec![*gate, *up], norm)),
                _ => None,
            });
            let one = reading.find(|(nodes, _)| {
                !readers.is_empty() && readers.iter().all(|reader| nodes.contains(reader))
            });
            if let Some((_, norm)) = one.filter(|_| !is_output) {
                *norm = Some(id);
                self.absorbed.insert(id);
                continue;
            }
            if let Some(user) = uses.only_user(node.output).filter(|&user| self.is_free(user))
                && uses.node(user).op == Op::Add
                && let Some(residual) =
                    uses.node(user).inputs.iter().copied().find(|&input| input != node.output)
                && uses.graph.value(residual).shape == uses.graph.value(node.output).shape
                && !uses.is_weight(residual)
            {
                let output = uses.node(user).output;
                self.insert(user, &[id, user], Fused::NormAdd { norm: id, residual, output });
            }
        }
    }

    fn embeddings(&mut self, uses: &Uses<'_>) {
        for (id, node) in uses.graph.nodes() {
            if node.op == Op::Embedding
                && let Some(user) = uses.only_user(node.output)
                && let Op::Scale { factor } = uses.node(user).op
            {
                let output = uses.node(user).output;
                self.insert(id, &[id, user], Fused::Embed { node: id, factor, output });
            }
        }
    }
}

/// The op as a function that a product can be followed by.
pub(super) fn activation(op: &Op) -> Option<Activation> {
    match op {
        Op::Silu => Some(Activation::Silu),
        Op::Gelu { approximation: GeluApproximation::None } => Some(Activation::Gelu),
        Op::Gelu { approximation: GeluApproximation::Tanh } => Some(Activation::GeluTanh),
        _ => None,
    }
}
