//! Tiny models of every family, and what Transformers computes with them.

use std::collections::BTreeMap;

use anyhow::ensure;
use roundhouse_backend::{Builder, LogitsRequest, Model, Runtime, Sequence};
use roundhouse_backend_conformance::{MemoryWeights, Rng};
use roundhouse_engine::{CacheKind, Precision};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::engine::{build, options};

/// As long as the goldens' sequences, and between the two contexts from which their `longrope` configs take long factors.
const MAX_SEQ_LEN: u32 = 12;

/// A tiny model and what Transformers computes with it.
#[derive(Debug, Deserialize)]
pub(crate) struct Golden {
    /// For messages.
    pub(crate) name: String,
    config: Value,
    /// Shapes by name.
    tensors: BTreeMap<String, Vec<usize>>,
    /// `[batch, seq]`.
    input_ids: Vec<Vec<u32>>,
    /// `[batch, seq, vocab_size]`.
    logits: Vec<f32>,
}

impl Golden {
    fn weights(&self) -> MemoryWeights {
        let mut weights = MemoryWeights::new();
        for (name, shape) in &self.tensors {
            weights.insert(name.clone(), shape, numbers(name, shape.iter().product()));
        }
        weights
    }

    /// An engine of it, and the folder that it may have mapped.
    pub(crate) fn engine(
        &self,
        builder: &dyn Builder,
        runtime: &dyn Runtime,
        precision: Precision,
        cache: CacheKind,
        max_seq_len: u32,
    ) -> anyhow::Result<(Box<dyn Model>, TempDir)> {
        let folder = tempfile::tempdir()?;
        let options = options(precision, cache, max_seq_len, 4);
        let files = build(builder, &self.name, &self.config, &self.weights(), &options, folder.path())?;
        Ok((runtime.load(&files)?, folder))
    }

    /// Runs its sequences through an engine, first their prompts together and then a token at a time; how far logits are
    /// from Transformers' at the most, as a part of the largest.
    pub(crate) fn difference(
        &self,
        builder: &dyn Builder,
        runtime: &dyn Runtime,
        precision: Precision,
        cache: CacheKind,
    ) -> anyhow::Result<f32> {
        let (model, _files) = self.engine(builder, runtime, precision, cache, MAX_SEQ_LEN)?;
        let (length, prompt) = (self.input_ids[0].len(), self.input_ids[0].len() / 2);
        let mut caches =
            self.input_ids.iter().map(|_| model.new_cache(length)).collect::<Result<Vec<_>, _>>()?;
        let mut found = vec![Vec::new(); self.input_ids.len()];
        for tokens in std::iter::once(0..prompt).chain((prompt..length).map(|at| at..at + 1)) {
            let mut logits = vec![Vec::new(); caches.len()];
            let parts = caches.iter_mut().zip(&self.input_ids).zip(&mut logits);
            let mut batch: Vec<Sequence<'_>> = parts
                .map(|((cache, ids), logits)| Sequence {
                    cache: &mut **cache,
                    tokens: &ids[tokens.clone()],
                    request: LogitsRequest::All,
                    logits,
                })
                .collect();
            model.forward(&mut batch)?;
            drop(batch);
            found.iter_mut().zip(logits).for_each(|(found, logits)| found.extend(logits));
        }
        let found = found.concat();
        ensure!(found.len() == self.logits.len(), "{} logits, expected {}", found.len(), self.logits.len());
        let largest = self.logits.iter().fold(1.0_f32, |largest, logit| largest.max(logit.abs()));
        let differences = found.iter().zip(&self.logits).map(|(a, b)| (a - b).abs());
        let worst =
            differences.fold(0.0, |worst: f32, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
        Ok(worst / largest)
    }
}

/// The elements of a tensor, as `make_families.py` makes them.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let fnv1a = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a);
    let center = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
    Rng::new(seed).uniform_vec(count, center, 0.5)
}
