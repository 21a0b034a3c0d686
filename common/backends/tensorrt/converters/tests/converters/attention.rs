//! Attention in every combination of its rules, in both forms, over keys that are more than the queries.

use roundhouse_backend_conformance::{MemoryWeights, Rng, Tensor};
use roundhouse_engine::{AttentionForm, CacheKind, EngineOptions, Precision, TensorRtOptions};
use roundhouse_graph::{AttentionAttributes, DType, Dim, Graph, Op};
use roundhouse_tensorrt_converters::coverage;

use crate::support::{Inputs, close, options, random};

/// What a mask operand is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mask {
    None,
    Bool,
    Float,
}

/// Keys: as many as the queries, more by a symbolic number, or a cache of a fixed length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Keys {
    Same,
    Past,
    Cache,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) attention: AttentionForm,
    pub(crate) keys: Keys,
    pub(crate) mask: Mask,
    pub(crate) mask_batch: bool,
    pub(crate) mask_heads: bool,
    pub(crate) causal: bool,
    pub(crate) window: Option<u32>,
    pub(crate) scale: Option<f32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) key_heads: usize,
    pub(crate) value_dim: usize,
}

const HEADS: usize = 4;
const HEAD_DIM: usize = 6;
const CACHE: usize = 9;

/// The graph, with inputs for `batch` sequences of `seq` new tokens after `past`; with a cache, later sequences have one
/// token less before.
pub(crate) fn graph(case: &Case, [batch, seq, past]: [usize; 3]) -> (Graph, Inputs) {
    let mut graph = Graph::new("attention");
    let mut inputs = Inputs::new();
    let mut rng = Rng::new(11);
    let symbols = [("batch", 1, 4), ("seq", 1, 8), ("past", 0, 8)];
    let [b, s, p] = symbols.map(|(name, min, max)| Dim::symbol(graph.add_symbol(name, min, max)));
    let (length, rows) = match case.keys {
        Keys::Same => (s.clone(), seq),
        Keys::Past => (p.clone() + s.clone(), past + seq),
        Keys::Cache => (CACHE.into(), CACHE),
    };
    let mut float = |graph: &mut Graph, name: &str, dims: [(Dim, usize); 4], scale: f32| {
        let sizes = dims.each_ref().map(|(_, size)| *size);
        let mut tensor = random(&mut rng, &sizes);
        tensor = Tensor::float(&sizes, tensor.floats().iter().map(|x| x * scale).collect());
        inputs.push((name.to_owned(), tensor));
        graph.add_input(name, DType::F32, dims.map(|(dim, _)| dim).to_vec())
    };
    let fixed = |size: usize| (Dim::from(size), size);
    let (b, s, l) = ((b, batch), (s, seq), (length, rows));
    let q = float(&mut graph, "q", [b.clone(), fixed(HEADS), s.clone(), fixed(HEAD_DIM)], 1.5);
    let k = float(&mut graph, "k", [b.clone(), fixed(case.key_heads), l.clone(), fixed(HEAD_DIM)], 1.5);
    let v = float(&mut graph, "v", [b.clone(), fixed(case.key_heads), l.clone(), fixed(case.value_dim)], 1.0);
    let mut operands = vec![q, k, v];
    if case.mask != Mask::None {
        let heads = if case.mask_heads { fixed(HEADS) } else { fixed(1) };
        let mask_batch = if case.mask_batch { b.clone() } else { fixed(1) };
        let mask = float(&mut graph, "mask", [mask_batch, heads, s.clone(), l.clone()], 1.0);
        let (_, tensor) = inputs.last_mut().unwrap();
        // The mask hides everything from the first and the last query of the first head; of the others, from the second
        // all up to its own place and from the third all but what a window of 3 hides, too; and a third of the rest.
        let hidden = |at: usize, value: f32| {
            let (query, key) = (at / rows, at % rows);
            let place = past + query % seq;
            let by_rule = match query % seq {
                _ if query == 0 || query + 1 == seq => true,
                1 => key <= place,
                2 => key + 3 > place,
                _ => false,
            };
            by_rule || value > 0.4
        };
        let numbers = tensor.floats().iter().enumerate();
        let numbers = numbers.map(|(at, &value)| match (case.mask, hidden(at, value)) {
            (Mask::Float, true) => f32::NEG_INFINITY,
            (Mask::Float, false) => value - 0.5,
            (_, hidden) => f32::from(u8::from(!hidden)),
        });
        *tensor = Tensor::float(&tensor.shape, numbers.collect());
        operands.push(match case.mask {
            Mask::Bool => graph.add_node(Op::Cast { to: DType::Bool }, &[mask]).unwrap(),
            _ => mask,
        });
    }
    if case.keys == Keys::Cache {
        let lengths = (0..batch).map(|b| (past.saturating_sub(b) + seq).min(CACHE) as i64).collect();
        inputs.push(("kv_lengths".to_owned(), Tensor::int(&[batch], lengths)));
        operands.push(graph.add_input("kv_lengths", DType::I64, vec![b.0]));
    }
    if case.keys == Keys::Past {
        inputs.push(("start_idx".to_owned(), Tensor::int(&[], vec![past as i64])));
        graph.add_index_input("start_idx", p);
    }
    let attributes = AttentionAttributes {
        causal: case.causal,
        window: case.window,
        scale: case.scale,
        soft_cap: case.soft_cap,
        has_mask: case.mask != Mask::None,
        has_kv_lengths: case.keys == Keys::Cache,
        has_segment_ids: false,
    };
    let out = graph.add_node(Op::ScaledDotProductAttention(attributes), &operands).unwrap();
    graph.add_output("out", out);
    (graph, inputs)
}

pub(crate) fn engine_options(case: &Case, precision: Precision) -> EngineOptions {
    let tensorrt = TensorRtOptions { attention: case.attention, ..TensorRtOptions::default() };
    EngineOptions { tensorrt: Some(tensorrt), ..options(precision, CacheKind::InPlace) }
}

fn check(case: &Case) {
    for sizes in [[1, 1, 0], [2, 3, 4], [3, 1, 6], [1, 5, 0], [2, 4, 2]] {
        let (graph, inputs) = graph(case, sizes);
        let options = engine_options(case, Precision::Fp32);
        close(&format!("{case:?} {sizes:?}"), &graph, &MemoryWeights::new(), &options, &inputs, 2e-6);
    }
}

pub(crate) const PLAIN: Case = Case {
    attention: AttentionForm::Decomposed,
    keys: Keys::Same,
    mask: Mask::None,
    mask_batch: true,
    mask_heads: false,
    causal: true,
    window: None,
    scale: None,
    soft_cap: None,
    key_heads: 2,
    value_dim: HEAD_DIM,
};

#[test]
fn every_rule_with_every_other() {
    for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
        for keys in [Keys::Same, Keys::Past, Keys::Cache] {
            for mask in [Mask::None, Mask::Bool, Mask::Float] {
                for causal in [true, false] {
                    for window in [None, Some(1), Some(3)] {
                        check(&Case { attention, keys, mask, causal, window, ..PLAIN });
                    }
                }
            }
        }
    }
}

#[test]
fn heads_in_groups_of_any_size() {
    for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
        for keys in [Keys::Same, Keys::Past, Keys::Cache] {
            for key_heads in [1, 2, 4] {
                check(&Case { attention, keys, key_heads, ..PLAIN });
            }
        }
    }
}

#[test]
fn masks_of_each_head_and_of_all_sequences() {
    for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
        for mask in [Mask::Bool, Mask::Float] {
            for (mask_batch, mask_heads) in [(true, true), (false, true), (false, false)] {
                check(&Case { attention, mask, mask_batch, mask_heads, keys: Keys::Cache, ..PLAIN });
                check(&Case { attention, mask, mask_batch, mask_heads, causal: false, ..PLAIN });
            }
        }
    }
}

#[test]
fn scales_and_soft_caps() {
    for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
        for scale in [Some(1.0), Some(0.2)] {
            check(&Case { attention, scale, keys: Keys::Past, ..PLAIN });
        }
    }
    for keys in [Keys::Same, Keys::Past, Keys::Cache] {
        check(&Case { soft_cap: Some(0.4), keys, ..PLAIN });
        check(&Case { soft_cap: Some(0.4), scale: Some(0.9), mask: Mask::Float, keys, ..PLAIN });
    }
}

#[test]
fn values_of_another_width() {
    for keys in [Keys::Same, Keys::Past, Keys::Cache] {
        check(&Case { value_dim: 5, keys, ..PLAIN });
        check(&Case { value_dim: 5, keys, attention: AttentionForm::Auto, ..PLAIN });
    }
}

#[test]
fn the_fused_form_refuses_what_it_cannot_express() {
    for (case, reason) in [
        (Case { soft_cap: Some(1.0), ..PLAIN }, "no soft cap"),
        (Case { value_dim: 5, ..PLAIN }, "one head dimension, not 6 and 5"),
    ] {
        let case = Case { attention: AttentionForm::Fused, ..case };
        let (graph, _) = graph(&case, [1, 1, 0]);
        let uncovered = coverage(&graph, &engine_options(&case, Precision::Fp16));
        assert_eq!(uncovered.len(), 1);
        assert!(uncovered[0].reason.contains(reason), "{}", uncovered[0].reason);
    }
}

/// Queries that may outnumber the keys: some see none, and give zeros.
#[test]
fn queries_before_all_keys_give_zeros() {
    let mut graph = Graph::new("short");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 4));
    let heads = |rows: i64| vec![batch.clone(), 2_i64.into(), rows.into(), 4_i64.into()];
    let q = graph.add_input("q", DType::F32, heads(5));
    let k = graph.add_input("k", DType::F32, heads(3));
    let attention = Op::ScaledDotProductAttention(AttentionAttributes::causal());
    let out = graph.add_node(attention, &[q, k, k]).unwrap();
    graph.add_output("out", out);
    let mut rng = Rng::new(1);
    let inputs = vec![
        ("q".to_owned(), random(&mut rng, &[2, 2, 5, 4])),
        ("k".to_owned(), random(&mut rng, &[2, 2, 3, 4])),
    ];
    let options = engine_options(&Case { attention: AttentionForm::Auto, ..PLAIN }, Precision::Fp16);
    close("short", &graph, &MemoryWeights::new(), &options, &inputs, 2e-6);
    let fused = engine_options(&Case { attention: AttentionForm::Fused, ..PLAIN }, Precision::Fp16);
    assert!(coverage(&graph, &fused)[0].reason.contains("fewer keys than queries"));
}
