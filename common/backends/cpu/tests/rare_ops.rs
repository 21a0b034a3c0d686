//! Forms of ops that the conformance suite's models and graphs have not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

mod compare;
mod support;

use compare::{assert_close, expected};
use roundhouse_backend::LogitsRequest::All;
use roundhouse_backend::{Builder as _, Runtime as _, Sequence};
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng};
use roundhouse_backend_cpu::CpuBuilder;
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, Op, ValueId, WeightExpr};
use support::{build, options, runtime};

const VOCAB_SIZE: usize = 11;
const WIDTH: usize = 8;

/// A graph whose batch is 1, under construction.
struct Form {
    graph: Graph,
    weights: MemoryWeights,
    rng: Rng,
    seq: Dim,
    input_ids: ValueId,
    position_ids: ValueId,
    table: ValueId,
    /// The embedded tokens `[1, seq, WIDTH]`.
    x: ValueId,
}

impl Form {
    fn new() -> Self {
        let mut graph = Graph::new("rare");
        let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
        let shape = vec![Dim::constant(1), seq.clone()];
        let input_ids = graph.add_input("input_ids", DType::I64, shape.clone());
        let position_ids = graph.add_input("position_ids", DType::I64, shape);
        let (weights, rng) = (MemoryWeights::new(), Rng::new(9));
        let mut this =
            Self { graph, weights, rng, seq, input_ids, position_ids, table: input_ids, x: input_ids };
        this.table = this.weight(&[VOCAB_SIZE, WIDTH]);
        this.x = this.node(Op::Embedding, &[input_ids, this.table]);
        this
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add_node(op, inputs).unwrap()
    }

    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let name = format!("weight_{}", self.graph.weights().count());
        self.weights.insert_random(&mut self.rng, &name, shape, 0.0, 1.0);
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(&name, DType::F32, &shape, WeightExpr::tensor(&name))
    }

    fn reshape(&mut self, x: ValueId, shape: Vec<Dim>) -> ValueId {
        self.node(Op::Reshape { shape }, &[x])
    }

    fn slice(&mut self, x: ValueId, axis: usize, start: Dim, end: Dim) -> ValueId {
        self.node(Op::Slice { axis, start, end }, &[x])
    }

    /// `[1, 2, seq, 4]` of rows.
    fn heads(&mut self, x: ValueId) -> ValueId {
        let shape = vec![1_i64.into(), self.seq.clone(), 2_i64.into(), 4_i64.into()];
        let x = self.reshape(x, shape);
        self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x])
    }

    fn rows(&mut self, heads: ValueId) -> ValueId {
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[heads]);
        let shape = vec![1_i64.into(), self.seq.clone(), WIDTH.into()];
        self.reshape(x, shape)
    }
}

/// Runs a form over several lengths and compares.
fn check(form: impl FnOnce(&mut Form) -> ValueId) {
    let mut this = Form::new();
    let y = form(&mut this);
    let head = this.weight(&[VOCAB_SIZE, WIDTH]);
    let logits = this.node(Op::Linear, &[y, head]);
    this.graph.add_output("logits", logits);

    let interpreter = Interpreter::new(&this.graph, &this.weights).unwrap();
    let options = EngineOptions { all_logits: true, ..options(Precision::Fp32, CacheKind::None) };
    let built = build(this.graph, &this.weights, &options);
    let model = runtime().load(&built.files).unwrap();
    for length in [5, 1, 7] {
        let tokens = this.rng.tokens(length, VOCAB_SIZE);
        let (mut cache, mut found) = (model.new_cache(16).unwrap(), Vec::new());
        let sequence = Sequence { cache: &mut *cache, tokens: &tokens, request: All, logits: &mut found };
        model.forward(&mut [sequence]).unwrap();
        assert_close(&format!("{length} tokens"), &found, &expected(&interpreter, &tokens, 0));
    }
}

#[test]
fn integers_are_joined_cut_and_turned() {
    check(|f| {
        let both = f.node(Op::Cat { axis: 0 }, &[f.position_ids, f.input_ids]);
        let turned = f.node(Op::Transpose { permutation: vec![1, 0] }, &[both]);
        let cut = f.slice(turned, 1, 1_i64.into(), 2_i64.into());
        let ids = f.node(Op::Transpose { permutation: vec![1, 0] }, &[cut]);
        f.node(Op::Embedding, &[ids, f.table])
    });
}

#[test]
fn integers_become_floats_and_floats_integers() {
    check(|f| {
        let positions = f.node(Op::Cast { to: DType::F32 }, &[f.position_ids]);
        let halves = f.node(Op::Scale { factor: 0.5 }, &[positions]);
        let ids = f.node(Op::Cast { to: DType::I64 }, &[halves]);
        f.node(Op::Embedding, &[ids, f.table])
    });
}

#[test]
fn truth_values_are_zero_and_one() {
    check(|f| {
        let truth = f.node(Op::Cast { to: DType::Bool }, &[f.position_ids]);
        let numbers = f.node(Op::Cast { to: DType::F32 }, &[truth]);
        let shape = vec![1_i64.into(), f.seq.clone(), 1_i64.into()];
        let numbers = f.reshape(numbers, shape);
        f.node(Op::Mul, &[numbers, f.x])
    });
}

#[test]
fn gather_takes_rows_of_any_axis() {
    check(|f| {
        // [1, seq, WIDTH] by [1, seq] along the tokens is [1, 1, seq, WIDTH].
        let x = f.node(Op::Gather { axis: 1 }, &[f.x, f.position_ids]);
        let shape = vec![1_i64.into(), f.seq.clone(), WIDTH.into()];
        f.reshape(x, shape)
    });
    check(|f| {
        // Columns by position: [WIDTH, VOCAB_SIZE] along the columns is [WIDTH, 1, seq].
        let table = f.weight(&[WIDTH, VOCAB_SIZE]);
        let x = f.node(Op::Gather { axis: 1 }, &[table, f.position_ids]);
        f.node(Op::Transpose { permutation: vec![1, 2, 0] }, &[x])
    });
}

#[test]
fn softmax_runs_along_any_axis() {
    check(|f| f.node(Op::Softmax { axis: 1 }, &[f.x]));
    check(|f| {
        let heads = f.heads(f.x);
        let x = f.node(Op::Softmax { axis: 1 }, &[heads]);
        let x = f.rows(x);
        f.node(Op::Add, &[x, f.x])
    });
}

#[test]
fn both_operands_may_be_stretched() {
    check(|f| {
        let column = f.slice(f.x, 2, 2_i64.into(), 3_i64.into());
        let row = f.weight(&[1, WIDTH]);
        let outer = f.node(Op::Mul, &[column, row]);
        f.node(Op::Add, &[outer, outer])
    });
}

#[test]
fn the_tokens_themselves_may_be_cut_and_joined() {
    check(|f| {
        let first = f.slice(f.x, 1, 0_i64.into(), 1_i64.into());
        let seq = f.seq.clone();
        let rest = f.slice(f.x, 1, 1_i64.into(), seq);
        f.node(Op::Cat { axis: 1 }, &[rest, first])
    });
}

#[test]
fn each_head_may_have_a_mask_of_its_own() {
    for truth in [false, true] {
        check(|f| {
            let heads = f.heads(f.x);
            let mut mask = f.node(Op::MatMul { transpose_b: true }, &[heads, heads]);
            if truth {
                // Sees the keys whose product with the query's position is not zero: not those of position 0.
                let positions = f.node(Op::Cast { to: DType::F32 }, &[f.position_ids]);
                let shape = vec![1_i64.into(), 1_i64.into(), 1_i64.into(), f.seq.clone()];
                let positions = f.reshape(positions, shape);
                let product = f.node(Op::Mul, &[mask, positions]);
                mask = f.node(Op::Cast { to: DType::Bool }, &[product]);
            }
            let attributes = AttentionAttributes { has_mask: true, ..AttentionAttributes::causal() };
            let op = Op::ScaledDotProductAttention(attributes);
            let x = f.node(op, &[heads, heads, heads, mask]);
            f.rows(x)
        });
    }
}

#[test]
fn keys_may_have_a_length() {
    check(|f| {
        let lengths = f.graph.add_input("kv_lengths", DType::I64, vec![Dim::constant(1)]);
        let heads = f.heads(f.x);
        // Twice as many keys as exist.
        let keys = f.node(Op::Cat { axis: 2 }, &[heads, heads]);
        let attributes = AttentionAttributes { has_kv_lengths: true, ..AttentionAttributes::causal() };
        let x = f.node(Op::ScaledDotProductAttention(attributes), &[heads, keys, keys, lengths]);
        f.rows(x)
    });
}

#[test]
fn positions_beyond_a_table_are_errors_that_change_nothing() {
    let mut f = Form::new();
    let table = f.weight(&[4, WIDTH]);
    let positions = f.node(Op::Embedding, &[f.position_ids, table]);
    let x = f.node(Op::Add, &[f.x, positions]);
    let logits = f.node(Op::Linear, &[x, f.table]);
    f.graph.add_output("logits", logits);
    let built = build(f.graph, &f.weights, &options(Precision::Fp32, CacheKind::None));
    let model = runtime().load(&built.files).unwrap();
    let mut cache = model.new_cache(16).unwrap();
    for (tokens, runs, length) in [(&[1, 2, 3][..], true, 3), (&[1, 2], false, 3), (&[1], true, 4)] {
        let sequence = Sequence { cache: &mut *cache, tokens, request: All, logits: &mut Vec::new() };
        assert_eq!(model.forward(&mut [sequence]).is_ok(), runs);
        assert_eq!(cache.len(), length);
    }
}

#[test]
fn a_graph_that_cannot_run_is_refused_with_the_name_of_its_node() {
    let mut f = Form::new();
    let x = f.node(Op::Linear, &[f.x, f.table]);
    let other = f.node(Op::Gather { axis: 1 }, &[f.input_ids, f.position_ids]);
    let other = f.node(Op::Cast { to: DType::F32 }, &[other]);
    let shape = vec![1_i64.into(), f.seq.clone(), 1_i64.into()];
    let other = f.reshape(other, shape);
    let logits = f.node(Op::Add, &[x, other]);
    f.graph.add_output("logits", logits);
    match CpuBuilder::new().lower(f.graph, &options(Precision::Fp32, CacheKind::None)) {
        Err(error) => assert!(error.to_string().contains("\"gather_2\": gather of integers"), "{error}"),
        Ok(_) => panic!("it was accepted"),
    }
}
