//! Tiny models of every family, and what Transformers computes with them.

use std::collections::BTreeMap;

use anyhow::ensure;
use roundhouse_backend::{Builder, LogitsRequest, Model, Runtime, Sequence};
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng, Tensor};
use roundhouse_engine::{CacheKind, EngineOptions, Precision, WeightQuantization};
use roundhouse_graph::{Quantization, QuantizedLinearAttributes, WeightFormat};
use roundhouse_models::build_graph;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::engine::{build, lowered, options};

/// As long as the goldens' sequences, and between the two contexts from which their `longrope` configs take long factors.
const MAX_SEQ_LEN: u32 = 12;

/// How weights are quantised that are compared with the interpreter's: groups of as many columns as divide those of tiny models.
pub(crate) const QUANTIZATIONS: [WeightQuantization; 4] = [
    quantization(WeightFormat::Int8, false),
    quantization(WeightFormat::Int4, false),
    quantization(WeightFormat::Int4, true),
    quantization(WeightFormat::Fp8, false),
];

const fn quantization(format: WeightFormat, has_offsets: bool) -> WeightQuantization {
    let quantization = Quantization { format, group_size: 8 };
    WeightQuantization::Compiler(QuantizedLinearAttributes { quantization, has_offsets })
}

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

    /// The options of an engine that is compared.
    pub(crate) fn options(
        precision: Precision,
        cache: CacheKind,
        quantization: WeightQuantization,
    ) -> EngineOptions {
        options(precision, cache, MAX_SEQ_LEN, 4, quantization)
    }

    /// An engine of it, and the folder that it may have mapped.
    pub(crate) fn engine(
        &self,
        builder: &dyn Builder,
        runtime: &dyn Runtime,
        options: &EngineOptions,
    ) -> anyhow::Result<(Box<dyn Model>, TempDir)> {
        let folder = tempfile::tempdir()?;
        let files = build(builder, &self.name, &self.config, &self.weights(), options, folder.path())?;
        Ok((runtime.load(&files)?, folder))
    }

    /// What an engine of these weights should compute: what Transformers does with plain ones, the interpreter in fp32 with
    /// quantised ones.
    fn expected(&self, builder: &dyn Builder, engine: &EngineOptions) -> anyhow::Result<Vec<f32>> {
        if engine.quantization.is_none() {
            return Ok(self.logits.clone());
        }
        let options =
            EngineOptions { precision: Precision::Fp32, cache: CacheKind::None, all_logits: true, ..*engine };
        let weights = self.weights();
        let model = build_graph(&self.name, &self.config, &weights, options.max_seq_len)?;
        let (graph, _) = lowered(model.graph, &weights, builder, &options)?;
        let shape = [self.input_ids.len(), self.input_ids[0].len()];
        let ids = self.input_ids.iter().flatten().map(|&id| i64::from(id)).collect();
        let positions = self.input_ids.iter().flat_map(|ids| 0..ids.len() as i64).collect();
        let inputs =
            [("input_ids", Tensor::int(&shape, ids)), ("position_ids", Tensor::int(&shape, positions))];
        let outputs = Interpreter::new(&graph, &weights)?.run(inputs)?;
        Ok(outputs.get("logits").map(|logits| logits.floats().to_vec()).unwrap_or_default())
    }

    /// Runs its sequences through an engine, first their prompts together and then a token at a time; how far logits are
    /// from those expected at the most, as a part of the largest.
    pub(crate) fn difference(
        &self,
        builder: &dyn Builder,
        runtime: &dyn Runtime,
        options: &EngineOptions,
    ) -> anyhow::Result<f32> {
        let (model, _files) = self.engine(builder, runtime, options)?;
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
        let expected = self.expected(builder, options)?;
        ensure!(found.len() == expected.len(), "{} logits, expected {}", found.len(), expected.len());
        let largest = expected.iter().fold(1.0_f32, |largest, logit| largest.max(logit.abs()));
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
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
