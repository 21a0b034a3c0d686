//! The text that matrices see: the model's own.

use roundhouse_backend::{LogitsRequest, Sequence, WeightSource};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::Graph;
use roundhouse_sampling::{Restriction, Sampler, SamplingParams};

use crate::CalibrationError;
use crate::engine::{Engines, options};

/// How much text.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    /// Sequences.
    pub sequences: u32,
    /// Tokens of each, the first included.
    pub tokens: u32,
    /// The first token of each.
    pub first: u32,
}

/// Sequences that a model writes at temperature 1 after a first token, the same each time. `graph` is the model's own.
pub(crate) fn sample(
    engines: &Engines<'_>,
    graph: &Graph,
    source: &dyn WeightSource,
    text: Text,
) -> Result<Vec<Vec<u32>>, CalibrationError> {
    let options = EngineOptions {
        max_batch_size: text.sequences,
        ..options(Precision::Fp16, CacheKind::InPlace, text.tokens)
    };
    let (graph, _) = roundhouse_lowering::lower(graph.clone(), &options)?;
    let engine = engines.load(graph, &options, source)?;
    let sampler = |seed: u32| {
        let seed = Some(u64::from(seed));
        Sampler::new(SamplingParams { temperature: Some(1.0), seed, ..SamplingParams::default() })
    };
    let mut samplers = (0..text.sequences).map(sampler).collect::<Result<Vec<_>, _>>()?;
    let length = text.tokens as usize;
    let new_cache = |_: &Sampler| engine.model.new_cache(length);
    let mut caches = samplers.iter().map(new_cache).collect::<Result<Vec<_>, _>>()?;
    let mut sequences = vec![vec![text.first]; samplers.len()];
    let mut logits = vec![Vec::new(); samplers.len()];
    for position in 1..length {
        engines.check()?;
        let parts = caches.iter_mut().zip(&sequences).zip(&mut logits);
        let mut batch: Vec<_> = parts
            .map(|((cache, tokens), logits)| Sequence {
                cache: cache.as_mut(),
                tokens: &tokens[position - 1..],
                request: LogitsRequest::Last,
                logits,
            })
            .collect();
        engine.model.forward(&mut batch)?;
        for ((sampler, logits), tokens) in samplers.iter_mut().zip(&mut logits).zip(&mut sequences) {
            tokens.push(sampler.sample(logits, Restriction::without(&[]), None)?.token);
        }
    }
    Ok(sequences)
}
