//! A loaded engine of the reference backend: how each cache kind's graph is fed.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use roundhouse_backend::{BackendError, Cache, CacheGrowth, KvBlock, LogitsRequest, Model, Sequence};
use roundhouse_engine::{CacheKind, Manifest, MemoryPlan};

use crate::{Interpreter, ReferenceError, Tensor};

/// Whether an input is a layer's keys or values.
pub(super) fn is_cache(name: &str) -> bool {
    name.starts_with("key_cache_") || name.starts_with("value_cache_")
}

pub(super) fn device(error: ReferenceError) -> BackendError {
    match error {
        ReferenceError::Graph(error) => BackendError::Graph(error),
        ReferenceError::Weight(error) => BackendError::Weight(error),
        other => BackendError::Device { backend: "reference", what: other.to_string() },
    }
}

pub(super) struct ReferenceModel {
    interpreter: Interpreter,
    cache: CacheKind,
    max_seq_len: usize,
    max_batch_size: usize,
    vocab_size: usize,
    memory_plan: MemoryPlan,
    /// The engine's key, of which its caches hold a copy, to be known by.
    identity: Arc<str>,
}

/// The tokens of a sequence, and its keys and values by the name of the graph's input, `[1, heads, max_seq_len,
/// head_dim]`.
struct ReferenceCache {
    tokens: Vec<u32>,
    tensors: BTreeMap<String, Tensor>,
    capacity: usize,
    identity: Arc<str>,
}

impl ReferenceCache {
    /// The number of floats of one position, all tensors together.
    fn floats_per_position(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.around(2)).map(|[heads, _, dim]| heads * dim).sum()
    }
}

impl Cache for ReferenceCache {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) -> usize {
        self.tokens.truncate(len);
        self.tokens.len()
    }

    fn bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.len() as u64 * 4).sum()
    }

    fn export(&self, positions: Range<usize>) -> Result<KvBlock, BackendError> {
        if positions.is_empty() || positions.end > self.tokens.len() {
            let what = format!("positions {positions:?} of a cache of {} tokens", self.tokens.len());
            return Err(BackendError::InvalidArgument(what));
        }
        let mut bytes: Vec<u8> =
            self.tokens[positions.clone()].iter().flat_map(|token| token.to_le_bytes()).collect();
        for tensor in self.tensors.values() {
            let [_, length, dim] = tensor.around(2);
            for head in tensor.floats().chunks_exact(length * dim) {
                let values = &head[positions.start * dim..positions.end * dim];
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        Ok(KvBlock::new(Arc::clone(&self.identity), positions, bytes))
    }

    fn import(&mut self, block: &KvBlock) -> Result<(), BackendError> {
        let positions = block.positions();
        let expected = positions.len() * (1 + self.floats_per_position()) * 4;
        block.check_follows(&self.identity, self.tokens.len(), self.capacity, expected)?;
        let mut words = block.bytes().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        self.tokens.extend(words.by_ref().take(positions.len()).map(u32::from_le_bytes));
        for tensor in self.tensors.values_mut() {
            let [_, length, dim] = tensor.around(2);
            for head in tensor.floats_mut().chunks_exact_mut(length * dim) {
                let values = &mut head[positions.start * dim..positions.end * dim];
                values
                    .iter_mut()
                    .zip(words.by_ref())
                    .for_each(|(value, word)| *value = f32::from_le_bytes(word));
            }
        }
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// A sequence's part of a step, before it is committed.
struct Step {
    past: Vec<u32>,
    new: Vec<u32>,
    tensors: BTreeMap<String, Tensor>,
    /// Those that the graph gives: of all new tokens or only the last.
    logits: Vec<f32>,
}

impl ReferenceModel {
    pub(super) fn new(interpreter: Interpreter, manifest: &Manifest) -> Self {
        let options = &manifest.options;
        Self {
            interpreter,
            cache: options.cache,
            max_seq_len: options.max_seq_len as usize,
            max_batch_size: options.max_batch_size as usize,
            vocab_size: manifest.info.vocab_size as usize,
            memory_plan: manifest.memory_plan.clone(),
            identity: manifest.key.as_str().into(),
        }
    }

    fn check(&self, sequence: &mut Sequence<'_>) -> Result<Step, BackendError> {
        let invalid = |what: String| Err(BackendError::InvalidArgument(what));
        let Some(cache) = sequence.cache.as_any_mut().downcast_ref::<ReferenceCache>() else {
            return invalid("the cache is another backend's".to_owned());
        };
        if !Arc::ptr_eq(&cache.identity, &self.identity) {
            return invalid("the cache is another model's".to_owned());
        }
        if sequence.tokens.is_empty() {
            return invalid("a sequence has no new tokens".to_owned());
        }
        if let Some(token) = sequence.tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            return invalid(format!("token {token} is outside of a vocabulary of {}", self.vocab_size));
        }
        let (tokens, length, capacity) = (sequence.tokens.len(), cache.tokens.len(), cache.capacity);
        if length + tokens > capacity {
            return Err(BackendError::CacheFull { tokens, length, capacity });
        }
        Ok(Step {
            past: cache.tokens.clone(),
            new: sequence.tokens.to_vec(),
            tensors: cache.tensors.clone(),
            logits: Vec::new(),
        })
    }

    /// Runs the graph and sorts its outputs into the steps. Rows of the logits beyond a step's tokens are padding.
    fn run(&self, inputs: Vec<(&str, Tensor)>, steps: &mut [Step]) -> Result<(), BackendError> {
        let outputs = self.interpreter.run(inputs).map_err(device)?;
        for (name, tensor) in outputs {
            let length = tensor.len() / steps.len();
            let width = tensor.shape.last().copied().unwrap_or(1);
            let rows = tensor.shape.get(1).copied().unwrap_or(1);
            for (step, part) in steps.iter_mut().zip(tensor.floats().chunks_exact(length.max(1))) {
                let cache = name.strip_suffix("_out").unwrap_or(&name);
                if let Some(cache) = step.tensors.get_mut(cache) {
                    *cache = Tensor::float(&cache.shape, part.to_vec());
                } else {
                    let own = match self.cache {
                        CacheKind::None => rows,
                        _ => step.new.len().min(rows),
                    };
                    step.logits = part[..own * width].to_vec();
                }
            }
        }
        Ok(())
    }

    fn run_whole(&self, step: &mut Step) -> Result<(), BackendError> {
        let tokens = [&step.past[..], &step.new[..]].concat();
        let [ids, positions] = token_inputs(&[(0, &tokens)], tokens.len());
        self.run(vec![("input_ids", ids), ("position_ids", positions)], std::slice::from_mut(step))
    }

    fn run_static(&self, step: &mut Step) -> Result<(), BackendError> {
        let (start, end) = (step.past.len(), step.past.len() + step.new.len());
        let [ids, positions] = token_inputs(&[(start, &step.new)], step.new.len());
        let caches = step.tensors.clone();
        let mut inputs = vec![
            ("input_ids", ids),
            ("position_ids", positions),
            ("start_idx", Tensor::int(&[], vec![start as i64])),
            ("end_idx", Tensor::int(&[], vec![end as i64])),
        ];
        inputs.extend(caches.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())));
        self.run(inputs, std::slice::from_mut(step))
    }

    /// Pads the sequences to the longest and runs them as one batch.
    fn run_in_place(&self, steps: &mut [Step]) -> Result<(), BackendError> {
        let seq = steps.iter().map(|step| step.new.len()).max().unwrap_or(0);
        let rows: Vec<(usize, &[u32])> = steps.iter().map(|step| (step.past.len(), &step.new[..])).collect();
        let [ids, positions] = token_inputs(&rows, seq);
        let each = |number: fn(&Step, usize) -> usize| {
            Tensor::int(&[steps.len()], steps.iter().map(|step| number(step, seq) as i64).collect())
        };
        let mut inputs = vec![
            ("input_ids", ids),
            ("position_ids", positions),
            ("write_indices", each(|step, _| step.past.len())),
            ("kv_lengths", each(|step, seq| step.past.len() + seq)),
            ("query_lengths", each(|step, _| step.new.len())),
        ];
        let names: Vec<String> =
            steps.first().map(|step| step.tensors.keys().cloned().collect()).unwrap_or_default();
        for name in &names {
            let mut shape = Vec::new();
            let mut values = Vec::new();
            for tensor in steps.iter().filter_map(|step| step.tensors.get(name)) {
                shape = [&[steps.len()], &tensor.shape[1..]].concat();
                values.extend_from_slice(tensor.floats());
            }
            inputs.push((name, Tensor::float(&shape, values)));
        }
        // An engine without last-token logits has no use for the lengths of the queries.
        inputs.retain(|(name, _)| self.interpreter.graph().find(name).is_some());
        self.run(inputs, steps)
    }
}

impl Model for ReferenceModel {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn memory_plan(&self) -> MemoryPlan {
        self.memory_plan.clone()
    }

    fn cache_growth(&self) -> CacheGrowth {
        CacheGrowth::Whole(self.max_seq_len)
    }

    fn new_cache(&self, max_seq_len: usize) -> Result<Box<dyn Cache>, BackendError> {
        if max_seq_len > self.max_seq_len {
            let what =
                format!("a cache of {max_seq_len} tokens: the engine's max_seq_len is {}", self.max_seq_len);
            return Err(BackendError::InvalidArgument(what));
        }
        let graph = self.interpreter.graph();
        let caches = graph.inputs().iter().map(|&id| graph.value(id)).filter(|value| is_cache(&value.name));
        let tensors = caches.map(|value| {
            let dim = |axis: usize| super::constant(value, axis) as usize;
            (value.name.clone(), Tensor::zeros(&[1, dim(1), dim(2), dim(3)]))
        });
        Ok(Box::new(ReferenceCache {
            tokens: Vec::new(),
            tensors: tensors.collect(),
            capacity: max_seq_len,
            identity: Arc::clone(&self.identity),
        }))
    }

    fn forward(&self, batch: &mut [Sequence<'_>]) -> Result<(), BackendError> {
        let mut steps = batch.iter_mut().map(|one| self.check(one)).collect::<Result<Vec<_>, _>>()?;
        match self.cache {
            CacheKind::None => steps.iter_mut().try_for_each(|step| self.run_whole(step))?,
            CacheKind::StaticV1 | CacheKind::StaticV2 => {
                steps.iter_mut().try_for_each(|step| self.run_static(step))?;
            }
            CacheKind::InPlace => {
                steps
                    .chunks_mut(self.max_batch_size.max(1))
                    .try_for_each(|steps| self.run_in_place(steps))?;
            }
        }
        for (sequence, step) in batch.iter().zip(&steps) {
            if sequence.request == LogitsRequest::All && step.logits.len() < step.new.len() * self.vocab_size
            {
                let what = "all logits: the engine computes only the last token's".to_owned();
                return Err(BackendError::InvalidArgument(what));
            }
        }
        for (sequence, step) in batch.iter_mut().zip(steps) {
            let wanted = match sequence.request {
                LogitsRequest::None => 0,
                LogitsRequest::Last => 1,
                LogitsRequest::All => step.new.len(),
            };
            let first = step.logits.len() - wanted * self.vocab_size;
            sequence.logits.clear();
            sequence.logits.extend_from_slice(&step.logits[first..]);
            if let Some(cache) = sequence.cache.as_any_mut().downcast_mut::<ReferenceCache>() {
                cache.tokens.extend_from_slice(&step.new);
                cache.tensors = step.tensors;
            }
        }
        Ok(())
    }
}

/// `input_ids` and `position_ids [batch, seq]` of sequences given as their first position and tokens.
fn token_inputs(rows: &[(usize, &[u32])], seq: usize) -> [Tensor; 2] {
    let shape = [rows.len(), seq];
    let cells = || rows.iter().flat_map(|row| (0..seq).map(move |s| (row, s)));
    let ids = cells().map(|((_, tokens), s)| tokens.get(s).map_or(0, |&token| i64::from(token)));
    let positions = cells().map(|((first, _), s)| (first + s) as i64);
    [Tensor::int(&shape, ids.collect()), Tensor::int(&shape, positions.collect())]
}
