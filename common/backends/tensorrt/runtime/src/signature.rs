//! What an engine takes and gives: its network's inputs, outputs and profiles, read as a decoder's.

use std::ops::RangeInclusive;

use roundhouse_engine::CacheKind;
use roundhouse_graph::{Graph, Op};
use roundhouse_tensorrt_network::{DYNAMIC, DataType, InputRange, Network, Profile, Tensor};

use crate::device::ALIGNMENT;

/// `input_ids [B, S]`.
pub(crate) const INPUT_IDS: &str = "input_ids";
/// `position_ids [B, S]`.
pub(crate) const POSITION_IDS: &str = "position_ids";
/// `write_indices [B]`: tokens of each row in its cache.
pub(crate) const WRITE_INDICES: &str = "write_indices";
/// `kv_lengths [B]`: tokens of each row in its cache after the step.
pub(crate) const KV_LENGTHS: &str = "kv_lengths";
/// `query_lengths [B]`: new tokens of each row.
pub(crate) const QUERY_LENGTHS: &str = "query_lengths";
/// `start_idx []`, a shape tensor: tokens in the cache.
pub(crate) const START: &str = "start_idx";
/// `end_idx []`, a shape tensor: tokens in the cache after the step.
pub(crate) const END: &str = "end_idx";
/// `logits [B, S or 1, V]`.
pub(crate) const LOGITS: &str = "logits";

/// A key or value tensor of a layer, `[B, heads, length, head_dim]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheTensor {
    /// The input.
    pub(crate) input: String,
    /// The output that is the tensor after the step.
    pub(crate) output: String,
    /// `[heads, length, head_dim]`.
    pub(crate) row_dims: [i64; 3],
    /// Bytes of one row (one sequence's).
    pub(crate) row_bytes: usize,
}

/// What sizes of a step a profile takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepSizes {
    /// Rows.
    pub(crate) batch: RangeInclusive<usize>,
    /// New tokens of each row.
    pub(crate) seq: RangeInclusive<usize>,
}

/// What an engine takes and gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// How keys and values are kept.
    pub(crate) cache: CacheKind,
    /// The longest sequence.
    pub(crate) max_seq_len: usize,
    /// Columns of the logits.
    pub(crate) vocab_size: usize,
    /// Token IDs are below this.
    pub(crate) input_vocab_size: usize,
    /// Element type of the logits.
    pub(crate) logits: DataType,
    /// Whether every new token has logits, not only the last one.
    pub(crate) all_logits: bool,
    /// The inputs with an element for each row, of those that there are.
    pub(crate) row_inputs: Vec<&'static str>,
    /// The inputs with an element for each token, of those that there are.
    pub(crate) token_inputs: Vec<&'static str>,
    /// The shape tensors, of those that there are.
    pub(crate) index_inputs: Vec<&'static str>,
    /// Key and value tensors in the order of the inputs.
    pub(crate) caches: Vec<CacheTensor>,
    /// The profiles in order.
    pub(crate) profiles: Vec<StepSizes>,
}

impl Signature {
    /// Reads the signature of a network, and that it is of `graph` and of this cache kind.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn new(network: &Network, graph: &Graph, cache: CacheKind) -> Result<Self, String> {
        let profiles = step_sizes(network)?;
        let (logits, all_logits, vocab_size) = logits(network)?;
        let mut signature = Self {
            cache,
            max_seq_len: profiles.iter().map(|sizes| *sizes.seq.end()).max().unwrap_or(0),
            vocab_size,
            input_vocab_size: input_vocab_size(graph).unwrap_or(vocab_size),
            logits,
            all_logits,
            row_inputs: Vec::new(),
            token_inputs: Vec::new(),
            index_inputs: Vec::new(),
            caches: Vec::new(),
            profiles,
        };
        for &id in network.inputs() {
            signature.add_input(network, network.tensor(id))?;
        }
        if !signature.caches.is_empty() {
            let lengths =
                signature.caches.iter().map(|cache| usize::try_from(cache.row_dims[1]).unwrap_or(0));
            signature.max_seq_len = lengths.min().unwrap_or(0);
        }
        signature.check(network, graph)?;
        Ok(signature)
    }

    fn add_input(&mut self, network: &Network, tensor: &Tensor) -> Result<(), String> {
        let name = tensor.name.as_str();
        let known = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
        let expect = |dims: &[i64]| {
            if tensor.dtype == DataType::Int64 && tensor.dims == dims {
                return Ok(());
            }
            let (dtype, found) = (tensor.dtype, &tensor.dims);
            Err(format!("input {name:?} is {dtype} {found:?}, expected {} {dims:?}", DataType::Int64))
        };
        if let Some(name) = known(&[INPUT_IDS, POSITION_IDS]) {
            self.token_inputs.push(name);
            expect(&[DYNAMIC, DYNAMIC])
        } else if let Some(name) = known(&[WRITE_INDICES, KV_LENGTHS, QUERY_LENGTHS]) {
            self.row_inputs.push(name);
            expect(&[DYNAMIC])
        } else if let Some(name) = known(&[START, END]) {
            self.index_inputs.push(name);
            expect(&[])
        } else if name.starts_with("key_cache_") || name.starts_with("value_cache_") {
            self.caches.push(cache_tensor(network, tensor)?);
            Ok(())
        } else {
            Err(format!("input {name:?} is none of a decoder's"))
        }
    }

    /// Whether the parts go together, and with the graph.
    fn check(&self, network: &Network, graph: &Graph) -> Result<(), String> {
        let is_static = matches!(self.cache, CacheKind::StaticV1 | CacheKind::StaticV2);
        let expected = [
            ("input_ids", self.token_inputs.contains(&INPUT_IDS), true),
            ("write_indices", self.row_inputs.contains(&WRITE_INDICES), self.cache == CacheKind::InPlace),
            ("kv_lengths", self.row_inputs.contains(&KV_LENGTHS), self.cache == CacheKind::InPlace),
            ("start_idx", self.index_inputs.contains(&START), is_static),
            ("end_idx", self.index_inputs.contains(&END), is_static),
            ("key and value caches", !self.caches.is_empty(), self.cache != CacheKind::None),
        ];
        if let Some((what, found, _)) = expected.iter().find(|(_, found, expected)| found != expected) {
            let has = if *found { "has" } else { "lacks" };
            return Err(format!("the network {has} {what}, its cache is {}", self.cache));
        }
        let names = graph.inputs().iter().map(|&id| &graph.value(id).name);
        if !names.eq(network.inputs().iter().map(|&id| &network.tensor(id).name)) {
            return Err("the inputs of network and graph differ".to_owned());
        }
        for cache in &self.caches {
            let output =
                network.outputs().iter().find(|output| network.tensor(output.tensor).name == cache.output);
            let output = output.ok_or_else(|| format!("there is no output {:?}", cache.output))?;
            let aliased = output.aliases.as_deref() == Some(cache.input.as_str());
            if aliased != (self.cache == CacheKind::InPlace) {
                let aliases = output.aliases.as_deref().unwrap_or("nothing");
                return Err(format!(
                    "output {:?} aliases {aliases}, its cache is {}",
                    cache.output, self.cache
                ));
            }
        }
        if self.decode().is_none() {
            return Err("no profile takes one token of one sequence".to_owned());
        }
        Ok(())
    }

    /// The profile for one new token a row.
    pub(crate) fn decode(&self) -> Option<usize> {
        self.profiles.iter().position(|sizes| sizes.seq.contains(&1) && sizes.batch.contains(&1))
    }

    /// The profile for the most new tokens a row.
    pub(crate) fn prefill(&self) -> usize {
        let last = self.profiles.iter().enumerate().max_by_key(|(_, sizes)| *sizes.seq.end());
        last.map_or(0, |(index, _)| index)
    }

    /// Rows of a step at most.
    pub(crate) fn max_rows(&self) -> usize {
        let chosen = self.decode().into_iter().chain([self.prefill()]);
        chosen.map(|profile| *self.profiles[profile].batch.end()).min().unwrap_or(1)
    }

    /// New tokens of a row at most.
    pub(crate) fn max_seq(&self) -> usize {
        *self.profiles[self.prefill()].seq.end()
    }

    /// Rows of cache that lie in one buffer. Any of them can be the first of a step only if all begin at an aligned
    /// address; else each row has a buffer of its own.
    pub(crate) fn rows_per_slab(&self) -> usize {
        let aligned = self.caches.iter().all(|cache| cache.row_bytes.is_multiple_of(ALIGNMENT));
        if self.cache == CacheKind::InPlace && aligned { self.max_rows().max(1) } else { 1 }
    }

    /// Bytes of all cache tensors of one sequence.
    pub(crate) fn row_bytes(&self) -> usize {
        self.caches.iter().map(|cache| cache.row_bytes).sum()
    }

    /// Bytes of all cache tensors that one token takes; without a cache, those of the token itself.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        if self.cache == CacheKind::None {
            return size_of::<u32>() as u64;
        }
        (self.row_bytes() / self.max_seq_len.max(1)) as u64
    }
}

/// The sizes of `input_ids` in each profile.
fn step_sizes(network: &Network) -> Result<Vec<StepSizes>, String> {
    let sizes = |profile: &Profile| match profile.inputs.get(INPUT_IDS) {
        Some(InputRange::Dimensions { min, max, .. }) => {
            let range = |axis: usize| {
                Some(usize::try_from(*min.get(axis)?).ok()?..=usize::try_from(*max.get(axis)?).ok()?)
            };
            Some(StepSizes { batch: range(0)?, seq: range(1)? })
        }
        _ => None,
    };
    let all: Option<Vec<StepSizes>> = network.profiles.iter().map(sizes).collect();
    all.filter(|profiles| !profiles.is_empty())
        .ok_or_else(|| "a profile has no range for input_ids".to_owned())
}

/// Element type of the logits, whether every token has some, and their columns.
fn logits(network: &Network) -> Result<(DataType, bool, usize), String> {
    let outputs = network.outputs().iter().map(|output| network.tensor(output.tensor));
    let logits =
        outputs.clone().find(|tensor| tensor.name == LOGITS).ok_or("there is no output \"logits\"")?;
    match logits.dims[..] {
        [_, seq, columns] if logits.dtype.is_float() && columns > 0 && (seq == 1 || seq == DYNAMIC) => {
            Ok((logits.dtype, seq != 1, usize::try_from(columns).unwrap_or(0)))
        }
        _ => {
            let (dtype, dims) = (logits.dtype, &logits.dims);
            Err(format!("the logits are {dtype} {dims:?}, expected floats [-1, 1 or -1, columns]"))
        }
    }
}

/// Rows of the smallest table that `input_ids` are looked up in.
fn input_vocab_size(graph: &Graph) -> Option<usize> {
    let ids = graph.find(INPUT_IDS)?;
    let lookups = graph
        .nodes()
        .filter(|(_, node)| matches!(node.op, Op::Embedding) && node.inputs.first() == Some(&ids));
    let tables = lookups.filter_map(|(_, node)| node.inputs.get(1));
    let rows = tables.filter_map(|&table| graph.value(table).shape.first()?.as_constant());
    rows.filter_map(|rows| usize::try_from(rows).ok()).min()
}

fn cache_tensor(network: &Network, tensor: &Tensor) -> Result<CacheTensor, String> {
    let name = &tensor.name;
    let wrong = || {
        let (dtype, dims) = (tensor.dtype, &tensor.dims);
        format!("cache {name:?} is {dtype} {dims:?}, expected [-1, heads, length, head_dim]")
    };
    let [DYNAMIC, heads, length, head_dim] = tensor.dims[..] else { return Err(wrong()) };
    let row_dims = [heads, length, head_dim];
    let row_bytes = row_dims.iter().try_fold(tensor.dtype.size(), |bytes, &dim| {
        usize::try_from(dim).ok().filter(|&dim| dim > 0).and_then(|dim| bytes.checked_mul(dim))
    });
    let row_bytes = row_bytes.ok_or_else(wrong)?;
    let output = format!("{name}_out");
    let made = network.outputs().iter().map(|output| network.tensor(output.tensor));
    if !made.clone().any(|made| made.name == output && made.dtype == tensor.dtype) {
        return Err(format!("there is no output {output:?} of {}", tensor.dtype));
    }
    Ok(CacheTensor { input: name.clone(), output, row_dims, row_bytes })
}
