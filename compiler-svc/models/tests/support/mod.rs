//! Checkpoints whose weights follow from their tensors' names, as in `golden/make_llama.py`.
#![expect(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;

use roundhouse_backend_conformance::{MemoryWeights, Rng};
use serde::Deserialize;
use serde_json::Value;

/// A tiny model and what Transformers computes with it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) config: Value,
    /// Shapes by name.
    pub(crate) tensors: BTreeMap<String, Vec<usize>>,
    /// `[batch, seq]`.
    pub(crate) input_ids: Vec<Vec<i64>>,
    /// `[batch, seq, vocab_size]`.
    pub(crate) logits: Vec<f32>,
}

impl Golden {
    /// All Llamas.
    pub(crate) fn all() -> Vec<Self> {
        serde_json::from_str(include_str!("../golden/llama.json")).unwrap()
    }

    /// Those of every family, as in `golden/make_families.py`.
    pub(crate) fn families() -> Vec<Self> {
        serde_json::from_str(include_str!("../golden/families.json")).unwrap()
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Self {
        Self::all().into_iter().find(|golden| golden.name == name).unwrap()
    }

    /// Its checkpoint.
    pub(crate) fn weights(&self) -> MemoryWeights {
        let mut weights = MemoryWeights::new();
        for (name, shape) in &self.tensors {
            weights.insert(name.clone(), shape, numbers(name, shape.iter().product()));
        }
        weights
    }
}

/// The elements of a tensor.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let fnv1a = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a);
    let center = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
    Rng::new(seed).uniform_vec(count, center, 0.5)
}

/// The largest absolute difference; NaN if there is one.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences
        .fold(0.0, |largest: f32, next| if largest >= next || largest.is_nan() { largest } else { next })
}
