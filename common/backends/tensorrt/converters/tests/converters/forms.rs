//! Forms of ops that the suite's graphs do not have: other ranks, broadcasts, symbolic shapes and indices.

use roundhouse_backend_conformance::{Rounding, Tensor};
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_graph::{DType, Dim, ExpertAttributes, Op, RotaryAttributes};

use crate::form::Form;
use crate::support::{close_rounded, coverage_is_full, options};

/// Values of `batch`, `seq` and `past`.
const SIZES: [[usize; 3]; 4] = [[1, 1, 0], [2, 3, 4], [3, 1, 7], [1, 6, 2]];

/// Makes a graph.
type Make = fn(&mut Form);

/// Graphs that mistakes are planted in, too.
pub(crate) const FORMS: &[(&str, Make)] = &[
    ("weights_of_several_ranks", weights_of_several_ranks),
    ("slices_and_cat", slices_and_cat),
    ("end_idx", |form| bound_by_an_expression(form, false)),
    ("left_idx", |form| bound_by_an_expression(form, true)),
    ("truths", truths),
    ("last_tokens", |form| last_tokens(form, "B S 4")),
    ("last_of_five", |form| last_tokens(form, "B 5 4")),
    ("rotary_tables", rotary_tables),
    ("cache_update", |form| cache_update(form, 1)),
    ("experts", |form| experts(form, 2, false)),
    ("experts_normalized", |form| experts(form, 2, true)),
    ("norms", |form| norms(form, "B S 2 8")),
    ("missing_dimensions", |form| broadcast(form, &Op::Add, "B S 8", "S 8")),
    ("moved_dimensions", |form| reshape(form, "B S 8", "8 S B")),
];

/// Makes the graph for several sizes and compares.
#[track_caller]
fn check(make: impl Fn(&mut Form)) {
    check_rounded(Rounding::Weights, make);
}

#[track_caller]
fn check_rounded(rounding: Rounding, make: impl Fn(&mut Form)) {
    for sizes in SIZES {
        let mut form = Form::new(sizes);
        make(&mut form);
        let options = options(Precision::Fp32, CacheKind::InPlace);
        coverage_is_full(&form.graph, &options);
        let case = format!("{sizes:?}");
        close_rounded(&case, rounding, &form.graph, &form.weights, &options, &form.inputs, 1e-5);
    }
}

/// One op of an input of the given shape.
#[track_caller]
fn unary(op: &Op, shape: &str) {
    check(|form| {
        let x = form.float("x", shape);
        let y = form.node(op.clone(), &[x]);
        form.output(y);
    });
}

fn weights_of_several_ranks(form: &mut Form) {
    let table = form.weight("table", &[16, 8]);
    let bias = form.weight("bias", &[16]);
    let ids = form.ints("ids", "B S", 16);
    let rows = form.node(Op::Embedding, &[ids, table]);
    let of_rows = form.node(Op::Linear, &[rows, table]);
    let vector = form.float("vector", "8");
    let of_vector = form.node(Op::Linear, &[vector, table, bias]);
    let matrix = form.float("matrix", "S 8");
    let of_matrix = form.node(Op::Linear, &[matrix, table, bias]);
    let heads = form.float("heads", "B 2 S 8");
    let of_heads = form.node(Op::Linear, &[heads, table, bias]);
    for value in [rows, of_rows, of_vector, of_matrix, of_heads] {
        form.output(value);
    }
}

#[test]
fn a_weight_is_used_at_several_ranks() {
    check(weights_of_several_ranks);
}

#[test]
fn products_of_any_rank() {
    for leading in ["", "B", "B 3", "2 B 3"] {
        for transpose_b in [false, true] {
            check(|form| {
                let a = form.float("a", &format!("{leading} S 8"));
                let b = form.float("b", &format!("{leading} {}", if transpose_b { "5 8" } else { "8 5" }));
                let y = form.node(Op::MatMul { transpose_b }, &[a, b]);
                form.output(y);
            });
        }
    }
}

fn broadcast(form: &mut Form, op: &Op, a: &str, b: &str) {
    let operands = [form.float("a", a), form.float("b", b)];
    let y = form.node(op.clone(), &operands);
    form.output(y);
}

#[test]
fn sums_and_products_broadcast_both_ways() {
    for (a, b) in [
        ("B S 8", "8"),
        ("8", "B S 8"),
        ("B S 8", "S 8"),
        ("S 8", "B S 8"),
        ("B S 8", ""),
        ("", "B S 8"),
        ("B 1 8", "B S 1"),
        ("B S", "3 B S"),
        ("1 S 1", "B 1 8"),
        ("S", "B S"),
    ] {
        check(|form| broadcast(form, &Op::Add, a, b));
        check(|form| broadcast(form, &Op::Mul, a, b));
    }
}

#[test]
fn activations_of_any_rank() {
    for shape in ["", "8", "B S 2 4"] {
        unary(&Op::Silu, shape);
        unary(&Op::Sigmoid, shape);
        unary(&Op::Scale { factor: 0.3 }, shape);
        unary(&Op::SoftCap { cap: 0.7 }, shape);
    }
}

fn norms(form: &mut Form, shape: &str) {
    let (x, weight, bias) = (form.float("x", shape), form.weight("weight", &[8]), form.weight("bias", &[8]));
    let rms = form.node(Op::RmsNorm { epsilon: 1e-2, unit_offset: true }, &[x, weight]);
    let layer = form.node(Op::LayerNorm { epsilon: 1e-2 }, &[x, weight, bias]);
    form.output(rms);
    form.output(layer);
}

#[test]
fn norms_of_any_rank() {
    for shape in ["8", "S 8", "B S 2 8"] {
        check(|form| norms(form, shape));
    }
}

#[test]
fn softmax_along_any_axis() {
    for (axis, shape) in [(0, "S"), (1, "B S 4"), (0, "B S 4"), (2, "B S 4")] {
        unary(&Op::Softmax { axis }, shape);
    }
}

fn reshape(form: &mut Form, from: &str, to: &str) {
    let x = form.float("x", from);
    let shape = form.shape(to);
    let y = form.node(Op::Reshape { shape }, &[x]);
    form.output(y);
}

#[test]
fn reshapes_copy_infer_or_compute_dimensions() {
    for (from, to) in [
        ("B S 8", "B S 2 4"),
        ("B S 2 4", "B S 8"),
        ("B 4 S 2", "B 8 S"),
        ("B S 8", "1 B S 8"),
        ("B S 8", "8 S B"),
        ("S 6", "2 S 3"),
        ("6 4", "8 3"),
        ("B S", "B 1 S 1"),
        ("1", ""),
        ("", "1 1"),
    ] {
        check(|form| reshape(form, from, to));
    }
}

#[test]
fn transposes() {
    unary(&Op::Transpose { permutation: vec![1, 2, 0] }, "B S 4");
    unary(&Op::Transpose { permutation: vec![3, 0, 2, 1] }, "B S 4 2");
}

fn slices_and_cat(form: &mut Form) {
    form.past();
    let [_, seq, past] = form.dims.clone();
    let cache = form.float("cache", "B 2 20 3");
    let new = form.float("new", "B 2 S 3");
    let mut cut = |start: Dim, end: Dim| {
        let part = form.node(Op::Slice { axis: 2, start, end }, &[cache]);
        form.output(part);
        part
    };
    let end = past.clone() + seq.clone();
    let before = cut(0_i64.into(), past.clone());
    let after = cut(end.clone(), 20_i64.into());
    cut(past.clone(), end.clone());
    cut(past.times(2), past.times(2) + 3_i64.into());
    cut(Dim::constant(19) - end, 20_i64.into());
    let whole = form.node(Op::Cat { axis: 2 }, &[before, new, after]);
    form.output(whole);
}

#[test]
fn slices_with_symbolic_bounds_and_their_cat() {
    check(slices_and_cat);
}

#[test]
fn slices_of_other_axes() {
    unary(&Op::Slice { axis: 0, start: 1_i64.into(), end: 4_i64.into() }, "5 S");
    unary(&Op::Slice { axis: 3, start: 2_i64.into(), end: 4_i64.into() }, "B S 2 4");
}

fn bound_by_an_expression(form: &mut Form, negative: bool) {
    let [_, seq, past] = form.dims.clone();
    let value = form.sizes[2];
    if negative {
        form.index("left_idx", Dim::constant(20) - past.clone(), 20 - value);
    } else {
        let end = value + form.sizes[1];
        form.index("end_idx", past.clone() + seq, end);
    }
    let cache = form.float("cache", "B 20 3");
    let tokens = form.float("tokens", "B S 3");
    let cut = form.node(Op::Slice { axis: 1, start: past, end: 20_i64.into() }, &[cache]);
    let both = form.node(Op::Cat { axis: 1 }, &[cut, tokens]);
    form.output(both);
}

#[test]
fn symbols_that_only_an_expression_binds() {
    check(|form| bound_by_an_expression(form, false));
    check(|form| bound_by_an_expression(form, true));
}

#[test]
fn cats_of_one_and_of_more() {
    check(|form| {
        let (x, y) = (form.float("x", "B S 4"), form.float("y", "B 5 4"));
        let one = form.node(Op::Cat { axis: 1 }, &[x]);
        let more = form.node(Op::Cat { axis: 1 }, &[y, x, y, x]);
        let ints = form.ints("ints", "B S", 9);
        let of_ints = form.node(Op::Cat { axis: 0 }, &[ints, ints]);
        for value in [one, more, of_ints] {
            form.output(value);
        }
    });
}

#[test]
fn gathers_along_any_axis() {
    for (axis, shape, bound) in [(0, "6 S", 6), (1, "B 6 4", 6), (2, "B S 5", 5)] {
        for indices in ["", "3", "B 2"] {
            check(|form| {
                let (x, indices) = (form.float("x", shape), form.ints("indices", indices, bound));
                let y = form.node(Op::Gather { axis }, &[x, indices]);
                form.output(y);
            });
        }
    }
}

/// Truth values of numbers of which some are zero, and numbers of truth values.
fn truths(form: &mut Form) {
    let x = form.float("x", "B S 8");
    form.last_input(|at, value| if at % 3 == 0 { 0.0 } else { 3.0 * value });
    let truth = form.node(Op::Cast { to: DType::Bool }, &[x]);
    let number = form.node(Op::Cast { to: DType::F32 }, &[truth]);
    let whole = form.node(Op::Cast { to: DType::I64 }, &[x]);
    for value in [truth, number, whole] {
        form.output(value);
    }
}

#[test]
fn truth_values_are_of_what_is_not_zero() {
    check(truths);
}

fn casts(form: &mut Form) {
    let x = form.float("x", "B S 8");
    form.last_input(|at, value| if at % 3 == 0 { 0.0 } else { 3.0 * value });
    let zeros = form.node(Op::Cast { to: DType::I64 }, &[x]);
    form.output(zeros);
    let ints = form.ints("ints", "B S", 3);
    for source in [x, zeros, ints] {
        let truth = form.node(Op::Cast { to: DType::Bool }, &[source]);
        for to in [DType::Bool, DType::F32, DType::F16, DType::Bf16, DType::I64] {
            let of_truth = form.node(Op::Cast { to }, &[truth]);
            form.output(of_truth);
        }
        for to in [DType::F32, DType::F16, DType::Bf16, DType::I64] {
            let direct = form.node(Op::Cast { to }, &[source]);
            form.output(direct);
            let back = form.node(Op::Cast { to: DType::F32 }, &[direct]);
            let half_truth = form.node(Op::Cast { to: DType::Bool }, &[back]);
            form.output(half_truth);
        }
    }
}

#[test]
fn casts_between_all_dtypes() {
    // A cast rounds, to the graph's interpreter; to the network's, storing does.
    check_rounded(Rounding::Stored, casts);
}

fn last_tokens(form: &mut Form, shape: &str) {
    let x = form.float("x", shape);
    let last = form.node(Op::LastToken, &[x]);
    form.output(last);
    let [batch, seq, _] = form.sizes_of(shape)[..] else { panic!("three dimensions") };
    let lengths = (0..batch).map(|b| 1 + (b * 2 + 1) as i64 % seq as i64).collect();
    form.inputs.push(("query_lengths".to_owned(), Tensor::int(&[batch], lengths)));
    let dims = form.shape(shape)[..1].to_vec();
    let lengths = form.graph.add_input("query_lengths", DType::I64, dims);
    let own = form.node(Op::LastToken, &[x, lengths]);
    form.output(own);
}

#[test]
fn last_tokens_of_all_and_of_each() {
    for shape in ["B S 4", "B 5 4", "3 S 4"] {
        check(|form| last_tokens(form, shape));
    }
}

fn rotary_tables(form: &mut Form) {
    let (x, positions) = (form.float("x", "B 2 S 8"), form.ints("position_ids", "B S", 40));
    for (inv_freq, attention_factor, interleaved) in [
        (vec![1.0, 0.3, 0.1, 0.02], 1.0, false),
        (vec![1.0, 0.3], 1.2, true),
        (vec![1.0, 0.3], 1.0, false),
        (vec![1.0, 0.3], 1.2, false),
    ] {
        let op = Op::RotaryEmbedding(RotaryAttributes {
            inv_freq,
            attention_factor,
            interleaved,
            sections: Vec::new(),
        });
        let y = form.node(op, &[x, positions]);
        form.output(y);
    }
}

#[test]
fn rotary_tables_of_different_frequencies() {
    check(rotary_tables);
}

fn cache_update(form: &mut Form, first: i64) {
    let cache = form.float("key_cache_0", "B 2 8 4");
    let update = form.float("update", "B 2 S 4");
    let batch = form.sizes[0];
    let indices = (0..batch as i64).map(|b| b + first).collect();
    form.inputs.push(("write_indices".to_owned(), Tensor::int(&[batch], indices)));
    let batch = form.shape("B");
    let indices = form.graph.add_input("write_indices", DType::I64, batch);
    let written = form.node(Op::KvCacheUpdate, &[cache, update, indices]);
    let sum = form.node(Op::Silu, &[written]);
    form.output(sum);
}

#[test]
fn caches_are_written_where_the_indices_say_and_not_past_their_end() {
    check(|form| cache_update(form, 0));
    check(|form| cache_update(form, 5));
}

fn experts(form: &mut Form, top_k: u32, normalize: bool) {
    let (x, router) = (form.float("x", "B S 6"), form.float("router_logits", "B S 5"));
    // The first token's logits are equal: then the lower index goes first.
    form.last_input(|at, value| if at < 5 { 0.25 } else { value });
    let (gate_up, down) = (form.weight("gate_up", &[5 * 2 * 3, 6]), form.weight("down", &[5 * 6, 3]));
    let op = Op::MixtureOfExperts(ExpertAttributes { top_k, normalize });
    let y = form.node(op, &[x, router, gate_up, down]);
    form.output(y);
}

#[test]
fn mixtures_of_experts() {
    for (top_k, normalize) in [(1, false), (2, false), (2, true), (5, true)] {
        check(|form| experts(form, top_k, normalize));
    }
}
