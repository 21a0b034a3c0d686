//! Attention in any form becomes the op, and computes the same.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use std::collections::BTreeMap;

use roundhouse_backend_conformance::{Rng, Tensor};
use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, Op, Shape, ValueId, WeightExpr};
use support::{assert_close, ops, run, run_pass};

const HEADS: usize = 4;
const HEAD_DIM: usize = 6;
const SEQ: usize = 5;
const BATCH: usize = 2;

/// A graph under construction over `query`, `key` and `value`.
struct Fixture {
    graph: Graph,
    batch: Dim,
    seq: Dim,
    query: ValueId,
    key: ValueId,
    value: ValueId,
    key_value_heads: usize,
}

impl Fixture {
    /// With `batch` and `seq` symbols, or constants if `fixed`.
    fn new(fixed: bool, key_value_heads: usize) -> Self {
        let mut graph = Graph::new("attention");
        let [batch, seq] = if fixed {
            [Dim::from(BATCH), Dim::from(SEQ)]
        } else {
            [graph.add_symbol("batch", 1, 8), graph.add_symbol("seq", 1, 64)].map(Dim::symbol)
        };
        let mut input = |name: &str, heads: usize| {
            let shape = vec![batch.clone(), Dim::from(heads), seq.clone(), Dim::from(HEAD_DIM)];
            graph.add_input(name, DType::F32, shape)
        };
        let query = input("query", HEADS);
        let key = input("key", key_value_heads);
        let value = input("value", key_value_heads);
        Self { graph, batch, seq, query, key, value, key_value_heads }
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add_node(op, inputs).unwrap()
    }

    fn scale(&mut self, factor: f32, x: ValueId) -> ValueId {
        self.node(Op::Scale { factor }, &[x])
    }

    fn scores(&mut self) -> ValueId {
        self.node(Op::MatMul { transpose_b: true }, &[self.query, self.key])
    }

    fn literal(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> ValueId {
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(name, DType::F32, &shape, WeightExpr::Literal { values })
    }

    /// `[SEQ, SEQ]` of 0 where visible and -1e9 elsewhere.
    fn mask(&mut self, shape: &[usize], visible: impl Fn(usize, usize) -> bool) -> ValueId {
        let cells = (0..SEQ).flat_map(|row| (0..SEQ).map(move |column| (row, column)));
        let values = cells.map(|(row, column)| if visible(row, column) { 0.0 } else { -1e9 }).collect();
        self.literal("mask", shape, values)
    }

    /// Softmax of the scores times the values, as the output.
    fn finish(mut self, scores: ValueId, value: ValueId) -> Graph {
        let probabilities = self.node(Op::Softmax { axis: 3 }, &[scores]);
        let attended = self.node(Op::MatMul { transpose_b: false }, &[probabilities, value]);
        self.graph.add_output("attended", attended);
        self.graph
    }

    /// `[B, N, S, D]` with every head repeated to make `HEADS`.
    fn repeat(&mut self, x: ValueId, by_cat: bool) -> ValueId {
        let times = HEADS / self.key_value_heads;
        let heads = Dim::from(self.key_value_heads);
        let shape: Shape =
            vec![self.batch.clone(), heads, Dim::constant(1), self.seq.clone(), Dim::from(HEAD_DIM)];
        let single = self.node(Op::Reshape { shape }, &[x]);
        let repeated = if by_cat {
            self.node(Op::Cat { axis: 2 }, &vec![single; times])
        } else {
            let ones = self.literal("ones", &[times, 1, 1], vec![1.0; times]);
            self.node(Op::Mul, &[single, ones])
        };
        let shape = vec![self.batch.clone(), Dim::from(HEADS), self.seq.clone(), Dim::from(HEAD_DIM)];
        self.node(Op::Reshape { shape }, &[repeated])
    }
}

/// Random inputs of a graph, by name.
fn inputs(graph: &Graph) -> Vec<(&str, Tensor)> {
    let mut rng = Rng::new(11);
    let symbols = ["batch", "seq"].into_iter().zip([BATCH, SEQ]).collect::<BTreeMap<_, _>>();
    let size = |dim: &Dim| {
        let size = dim.evaluate(|id| Some(symbols[graph.symbols()[id.0 as usize].name.as_str()] as i64));
        usize::try_from(size.unwrap()).unwrap()
    };
    let tensors = graph.inputs().iter().map(|&id| {
        let value = graph.value(id);
        let shape: Vec<usize> = value.shape.iter().map(size).collect();
        let numbers = rng.uniform_vec(shape.iter().product(), 0.0, 2.0);
        (value.name.as_str(), Tensor::float(&shape, numbers))
    });
    tensors.collect()
}

/// Canonicalises, checks that it computes the same, and returns the only attention with what it reads, and the counts.
fn canonicalise(graph: Graph) -> (AttentionAttributes, Vec<String>, BTreeMap<String, u64>) {
    let (canonical, counts) = run_pass("sdpa", graph.clone());
    let inputs = inputs(&graph);
    let [before, after] = [&graph, &canonical].map(|graph| run(graph, &inputs));
    assert_close(after["attended"].floats(), before["attended"].floats(), "attended");
    let (clean, _) = run_pass("dead_code", canonical);
    assert_eq!(ops(&clean), ["scaled_dot_product_attention"], "nothing else is left");
    let (_, node) = clean.nodes().next().unwrap();
    let Op::ScaledDotProductAttention(attributes) = &node.op else { unreachable!() };
    let reads = node.inputs.iter().map(|&id| clean.value(id).name.clone()).collect();
    (attributes.clone(), reads, counts)
}

/// Asserts that the pass leaves a graph as it is.
fn assert_untouched(graph: Graph) {
    let (after, counts) = run_pass("sdpa", graph.clone());
    assert_eq!(ops(&after), ops(&graph));
    assert!(counts.values().all(|&count| count == 0), "{counts:?}");
}

#[test]
fn a_missing_scale_is_filled_in() {
    let mut fixture = Fixture::new(false, HEADS);
    let attention = Op::ScaledDotProductAttention(AttentionAttributes::causal());
    let attended = fixture.node(attention, &[fixture.query, fixture.key, fixture.value]);
    fixture.graph.add_output("attended", attended);
    let (attributes, _, counts) = canonicalise(fixture.graph);
    assert_eq!(attributes, AttentionAttributes { scale: Some(0.408_248_3), ..AttentionAttributes::causal() });
    assert_eq!((counts["filled_scales"], counts["attention_nodes"]), (1, 1));
}

#[test]
fn written_out_attention_becomes_the_op() {
    let mut fixture = Fixture::new(false, HEADS);
    let scores = fixture.scores();
    let scores = fixture.scale(0.5, scores);
    let value = fixture.value;
    let (attributes, reads, counts) = canonicalise(fixture.finish(scores, value));
    assert!(!attributes.causal && attributes.scale == Some(0.5) && attributes.soft_cap.is_none());
    assert_eq!(reads, ["query", "key", "value"]);
    assert_eq!((counts["composed_patterns"], counts["filled_scales"]), (1, 0));
}

#[test]
fn scales_on_queries_keys_and_scores_are_one() {
    let mut fixture = Fixture::new(false, HEADS);
    let query = fixture.scale(2.0, fixture.query);
    let key = fixture.scale(0.5, fixture.key);
    let key = fixture.node(Op::Transpose { permutation: vec![0, 1, 3, 2] }, &[key]);
    let key = fixture.scale(0.75, key);
    let scores = fixture.node(Op::MatMul { transpose_b: false }, &[query, key]);
    let scores = fixture.scale(0.25, scores);
    let scores = fixture.node(Op::SoftCap { cap: 1.5 }, &[scores]);
    let value = fixture.value;
    let (attributes, reads, _) = canonicalise(fixture.finish(scores, value));
    assert_eq!((attributes.scale, attributes.soft_cap), (Some(0.1875), Some(1.5)));
    assert_eq!(reads, ["query", "key", "value"]);
}

#[test]
fn attention_without_any_scale_has_the_scale_one() {
    let mut fixture = Fixture::new(false, HEADS);
    let scores = fixture.scores();
    let value = fixture.value;
    let (attributes, ..) = canonicalise(fixture.finish(scores, value));
    assert_eq!(attributes.scale, Some(1.0));
}

#[test]
fn a_mask_that_is_an_input_stays_one() {
    let mut fixture = Fixture::new(false, HEADS);
    let shape = vec![fixture.batch.clone(), Dim::constant(1), fixture.seq.clone(), fixture.seq.clone()];
    let mask = fixture.graph.add_input("mask", DType::F32, shape);
    let scores = fixture.scores();
    let scores = fixture.node(Op::Add, &[mask, scores]);
    let value = fixture.value;
    let (attributes, reads, counts) = canonicalise(fixture.finish(scores, value));
    assert!(attributes.has_mask && !attributes.causal);
    assert_eq!(reads, ["query", "key", "value", "mask"]);
    assert_eq!(counts["dropped_masks"], 0);
}

#[test]
fn a_causal_mask_becomes_the_attribute() {
    for shape in [&[1, 1, SEQ, SEQ][..], &[SEQ, SEQ]] {
        let mut fixture = Fixture::new(true, HEADS);
        let scores = fixture.scores();
        let scores = fixture.scale(0.3, scores);
        let mask = fixture.mask(shape, |row, column| column <= row);
        let scores = fixture.node(Op::Add, &[scores, mask]);
        let value = fixture.value;
        let (attributes, reads, _) = canonicalise(fixture.finish(scores, value));
        assert_eq!(attributes, AttentionAttributes { scale: Some(0.3), ..AttentionAttributes::causal() });
        assert_eq!(reads, ["query", "key", "value"]);
    }
}

#[test]
fn a_mask_of_the_op_goes_where_attributes_say_the_same() {
    type Visible = fn(usize, usize) -> bool;
    let causal: Visible = |row, column| column <= row;
    let everything: Visible = |_, _| true;
    let window: Visible = |row, column| column <= row && row - column < 2;
    let arbitrary: Visible = |row, column| (row + column) % 2 == 0;
    let cases = [
        (causal, true, Some((true, None))),
        (causal, false, Some((true, None))),
        (everything, true, Some((true, None))),
        (everything, false, Some((false, None))),
        (window, false, Some((true, Some(2)))),
        (arbitrary, true, None),
    ];
    for (visible, is_causal, expected) in cases {
        let mut fixture = Fixture::new(true, HEADS);
        let mask = fixture.mask(&[1, 1, SEQ, SEQ], visible);
        let attributes =
            AttentionAttributes { causal: is_causal, has_mask: true, ..AttentionAttributes::causal() };
        let inputs = [fixture.query, fixture.key, fixture.value, mask];
        let attended = fixture.node(Op::ScaledDotProductAttention(attributes), &inputs);
        fixture.graph.add_output("attended", attended);
        let (attributes, reads, counts) = canonicalise(fixture.graph);
        let (causal, window) = expected.unwrap_or((is_causal, None));
        assert_eq!((attributes.causal, attributes.window), (causal, window));
        assert_eq!(attributes.has_mask, expected.is_none());
        assert_eq!(reads.len(), if expected.is_none() { 4 } else { 3 });
        assert_eq!(counts["dropped_masks"], u64::from(expected.is_some()));
    }
}

#[test]
fn repeated_key_and_value_heads_are_read_once() {
    for (key_value_heads, by_cat) in [(2, true), (2, false), (1, true), (1, false)] {
        let mut fixture = Fixture::new(false, key_value_heads);
        let key = fixture.repeat(fixture.key, by_cat);
        let value = fixture.repeat(fixture.value, by_cat);
        let scores = fixture.node(Op::MatMul { transpose_b: true }, &[fixture.query, key]);
        let (_, reads, counts) = canonicalise(fixture.finish(scores, value));
        assert_eq!(reads, ["query", "key", "value"]);
        assert_eq!(counts["folded_repetitions"], 1);
    }
}

#[test]
fn heads_that_are_joined_but_not_repeated_stay() {
    let mut fixture = Fixture::new(false, HEADS / 2);
    let key = fixture.node(Op::Cat { axis: 1 }, &[fixture.key, fixture.key]);
    let value = fixture.node(Op::Cat { axis: 1 }, &[fixture.value, fixture.value]);
    let attention = Op::ScaledDotProductAttention(AttentionAttributes::causal());
    let attended = fixture.node(attention, &[fixture.query, key, value]);
    fixture.graph.add_output("attended", attended);
    // Heads 0 1 0 1, where grouped-query attention reads 0 0 1 1.
    let (after, counts) = run_pass("sdpa", fixture.graph.clone());
    assert_eq!(counts["folded_repetitions"], 0);
    assert_eq!(ops(&after), ops(&fixture.graph));
}

#[test]
fn what_only_looks_like_attention_is_left_alone() {
    let mut fixture = Fixture::new(true, HEADS);
    let scores = fixture.scores();
    let transposed = fixture.node(Op::Softmax { axis: 2 }, &[scores]);
    let attended = fixture.node(Op::MatMul { transpose_b: false }, &[transposed, fixture.value]);
    fixture.graph.add_output("attended", attended);
    assert_untouched(fixture.graph);

    let mut fixture = Fixture::new(true, HEADS);
    let scores = fixture.scores();
    let mask = fixture.mask(&[1, 1, SEQ, SEQ], |row, column| column <= row);
    let scores = fixture.node(Op::Add, &[scores, mask]);
    let scores = fixture.scale(0.5, scores);
    let value = fixture.value;
    assert_untouched(fixture.finish(scores, value));

    let mut fixture = Fixture::new(true, HEADS);
    let scores = fixture.scores();
    let bias = fixture.literal("bias", &[1, 1, 1, SEQ], vec![0.5, 0.25, 0.0, 1.0, 2.0]);
    let scores = fixture.node(Op::Add, &[scores, bias]);
    let value = fixture.value;
    assert_untouched(fixture.finish(scores, value));
}
