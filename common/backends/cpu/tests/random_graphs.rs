//! Random graphs, whose values are read again and again in any order, against the interpreter: what the plan does in
//! place, as a view or in shared memory must not show.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

mod compare;
mod support;

use compare::{assert_close, expected};
use roundhouse_backend::LogitsRequest::{All, Last};
use roundhouse_backend::{Runtime as _, Sequence};
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, GeluApproximation, Graph, Op, RotaryAttributes, ValueId, WeightExpr,
};
use support::{build, options, runtime};

const VOCAB_SIZE: usize = 13;
const WIDTH: usize = 12;
const HEADS: usize = 3;
const HEAD_DIM: usize = 4;

/// A graph under construction.
struct Random {
    graph: Graph,
    weights: MemoryWeights,
    rng: Rng,
    batch: Dim,
    seq: Dim,
    position_ids: ValueId,
    /// Values `[batch, seq, WIDTH]`.
    rows: Vec<ValueId>,
    /// Values `[batch, HEADS, seq, HEAD_DIM]`.
    heads: Vec<ValueId>,
}

impl Random {
    /// A graph of `nodes` random groups of nodes; `packed` without what looks at several tokens.
    fn graph(seed: u64, nodes: usize, packed: bool) -> (Graph, MemoryWeights) {
        let mut graph = Graph::new("random");
        let batch = Dim::symbol(graph.add_symbol("batch", 1, 8));
        let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
        let shape = vec![batch.clone(), seq.clone()];
        let ids = graph.add_input("input_ids", DType::I64, shape.clone());
        let position_ids = graph.add_input("position_ids", DType::I64, shape);
        if packed {
            graph.add_input("write_indices", DType::I64, vec![batch.clone()]);
        }
        let (weights, rng) = (MemoryWeights::new(), Rng::new(seed));
        let mut this =
            Self { graph, weights, rng, batch, seq, position_ids, rows: Vec::new(), heads: Vec::new() };
        let table = this.weight(&[VOCAB_SIZE, WIDTH], 1.0);
        let x = this.node(Op::Embedding, &[ids, table]);
        this.rows.push(x);
        this.split(x);
        for _ in 0..nodes {
            this.step(packed);
        }
        // Some values are read once more at the very end.
        let (a, b) = (this.any_row(), this.rows[this.rows.len() - 1]);
        let x = this.node(Op::Add, &[a, b]);
        let heads = this.any_heads();
        let merged = this.merge(heads);
        let mut x = this.node(Op::Add, &[x, merged]);
        if this.rng.below(2) == 0 {
            x = this.node(Op::LastToken, &[x]);
        }
        let norm = this.weight(&[WIDTH], 1.0);
        let x = this.node(Op::RmsNorm { epsilon: 1e-3, unit_offset: false }, &[x, norm]);
        let head = this.weight(&[VOCAB_SIZE, WIDTH], 0.5);
        let logits = this.node(Op::Linear, &[x, head]);
        this.graph.add_output("logits", logits);
        (this.graph, this.weights)
    }

    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add_node(op, inputs).unwrap()
    }

    fn weight(&mut self, shape: &[usize], scale: f32) -> ValueId {
        let name = format!("weight_{}", self.graph.weights().count());
        self.weights.insert_random(&mut self.rng, &name, shape, 0.0, scale);
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(&name, DType::F32, &shape, WeightExpr::tensor(&name))
    }

    /// The latest values most of the time.
    fn any(&mut self, count: usize) -> usize {
        let back = if self.rng.below(3) == 0 { count } else { count.min(2) };
        count - 1 - self.rng.below(back)
    }

    fn any_row(&mut self) -> ValueId {
        let index = self.any(self.rows.len());
        self.rows[index]
    }

    fn any_heads(&mut self) -> ValueId {
        let index = self.any(self.heads.len());
        self.heads[index]
    }

    fn split(&mut self, rows: ValueId) {
        let shape = vec![self.batch.clone(), self.seq.clone(), HEADS.into(), HEAD_DIM.into()];
        let x = self.node(Op::Reshape { shape }, &[rows]);
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x]);
        self.heads.push(x);
    }

    fn merge(&mut self, heads: ValueId) -> ValueId {
        let x = self.node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[heads]);
        let shape = vec![self.batch.clone(), self.seq.clone(), WIDTH.into()];
        self.node(Op::Reshape { shape }, &[x])
    }

    fn linear(&mut self, x: ValueId, width: usize) -> ValueId {
        let mut inputs = vec![x, self.weight(&[width, WIDTH], 0.4)];
        if self.rng.below(4) == 0 {
            inputs.push(self.weight(&[width], 0.4));
        }
        self.node(Op::Linear, &inputs)
    }

    /// One value more of either kind.
    fn step(&mut self, packed: bool) {
        let x = self.any_row();
        let row = match self.rng.below(18) {
            0 | 1 => {
                let y = self.any_row();
                self.node(Op::Add, &[x, y])
            }
            2 => {
                let y = self.any_row();
                self.node(Op::Mul, &[x, y])
            }
            3 => self.node(Op::Silu, &[x]),
            4 => self.node(Op::Gelu { approximation: GeluApproximation::Tanh }, &[x]),
            5 => self.node(Op::Scale { factor: -0.7 }, &[x]),
            6 | 7 => self.linear(x, WIDTH),
            8 | 9 => {
                let (y, projected) = (self.any_row(), self.linear(x, WIDTH));
                let inputs = if self.rng.below(2) == 0 { [y, projected] } else { [projected, y] };
                self.node(Op::Add, &inputs)
            }
            10 => {
                let (gate, up) = (self.linear(x, WIDTH), self.linear(x, WIDTH));
                let gate = self.node(Op::Silu, &[gate]);
                self.node(Op::Mul, &[up, gate])
            }
            11 => {
                let weight = self.weight(&[WIDTH], 1.0);
                self.node(Op::LayerNorm { epsilon: 1e-2 }, &[x, weight])
            }
            12 => {
                let bias = self.weight(&[WIDTH], 1.0);
                self.node(Op::Add, &[bias, x])
            }
            13 => {
                let wide = self.linear(x, 3 * WIDTH);
                let third = self.rng.below(3) * WIDTH;
                let op = Op::Slice { axis: 2, start: third.into(), end: (third + WIDTH).into() };
                self.node(op, &[wide])
            }
            14 => {
                let y = self.any_row();
                let wide = self.node(Op::Cat { axis: 2 }, &[x, y]);
                self.node(Op::Slice { axis: 2, start: 5_i64.into(), end: (5 + WIDTH).into() }, &[wide])
            }
            15 => self.node(Op::Softmax { axis: 2 }, &[x]),
            16 => {
                let heads = self.any_heads();
                self.merge(heads)
            }
            _ => return self.split(x),
        };
        self.rows.push(row);
        if self.rng.below(3) == 0 {
            let heads = self.heads_step(packed);
            self.heads.push(heads);
        }
    }

    fn heads_step(&mut self, packed: bool) -> ValueId {
        let x = self.any_heads();
        match self.rng.below(if packed { 4 } else { 6 }) {
            0 | 1 => {
                let attributes = RotaryAttributes {
                    inv_freq: vec![1.0],
                    attention_factor: 1.0,
                    interleaved: false,
                    sections: Vec::new(),
                };
                self.node(Op::RotaryEmbedding(attributes), &[x, self.position_ids])
            }
            2 => {
                let weight = self.weight(&[HEAD_DIM], 1.0);
                self.node(Op::RmsNorm { epsilon: 1e-2, unit_offset: true }, &[x, weight])
            }
            3 => {
                let y = self.any_heads();
                self.node(Op::Add, &[x, y])
            }
            4 => self.node(Op::Softmax { axis: 2 }, &[x]),
            _ => {
                let inputs = [x, self.any_heads(), self.any_heads()];
                self.node(Op::ScaledDotProductAttention(AttentionAttributes::causal()), &inputs)
            }
        }
    }
}

/// Runs a graph's two sequences, in one call and then another after it.
fn check(seed: u64, cache: CacheKind) {
    let packed = cache == CacheKind::InPlace;
    let case = format!("seed {seed} {cache}");
    let (graph, weights) = Random::graph(seed, 8 + seed as usize % 12, packed);
    let selects = graph.nodes().any(|(_, node)| matches!(node.op, Op::LastToken));
    let interpreter = Interpreter::new(&graph, &weights).unwrap();
    let options = EngineOptions { all_logits: !selects, ..options(Precision::Fp32, cache) };
    let built = build(graph, &weights, &options);
    let model = runtime().load(&built.files).unwrap();

    let mut rng = Rng::new(seed + 1000);
    let tokens = [5, 3].map(|count| rng.tokens(count, VOCAB_SIZE));
    let mut caches = [(); 2].map(|()| model.new_cache(16).unwrap());
    let mut logits = [Vec::new(), Vec::new()];
    let request = if selects { Last } else { All };
    let batch = tokens.iter().zip(caches.iter_mut().zip(&mut logits));
    let mut batch: Vec<Sequence<'_>> = batch
        .map(|(tokens, (cache, logits))| Sequence { cache: &mut **cache, tokens, request, logits })
        .collect();
    model.forward(&mut batch).unwrap();
    for (tokens, logits) in tokens.iter().zip(&logits) {
        assert_close(&case, logits, &expected(&interpreter, tokens, 0));
    }

    let (next, past) = (rng.tokens(2, VOCAB_SIZE), tokens[0].len());
    let mut found = Vec::new();
    let sequence = Sequence { cache: &mut *caches[0], tokens: &next, request: Last, logits: &mut found };
    model.forward(&mut [sequence]).unwrap();
    let all = match packed {
        true => expected(&interpreter, &next, past),
        false => expected(&interpreter, &[&tokens[0][..], &next].concat(), 0),
    };
    assert_close(&case, &found, &all[all.len() - VOCAB_SIZE..]);
}

#[test]
fn random_graphs_compute_what_the_interpreter_does() {
    (0..200).for_each(|seed| check(seed, CacheKind::None));
}

#[test]
fn random_graphs_compute_the_same_packed() {
    (0..200).for_each(|seed| check(seed, CacheKind::InPlace));
}
