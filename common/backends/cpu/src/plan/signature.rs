//! What a graph takes and gives: which input plays which role, by the names that the cache passes give them.

use std::collections::BTreeMap;

use roundhouse_backend::{BackendError, POSITION_AXES};
use roundhouse_engine::{CacheKind, KvRing};
use roundhouse_graph::{DType, Dim, Graph, Origin, SymbolId, Value, ValueId};

use super::Ring;
use crate::error::unsupported;

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `input_ids [B, S]`.
    InputIds,
    /// `position_ids [B, S]`, or `[B, 3, S]` along time, height and width.
    PositionIds,
    /// `image_features [N, H]`: rows that stand for embeddings, which caches hold.
    ImageFeatures,
    /// `image_indices [B, S]`: which row of them a token has.
    ImageIndices,
    /// The tensor of this number that a component is given.
    Tensor(usize),
    /// `key_cache_i` or `value_cache_i`: the tensor of this number in a [`crate::cache::CpuCache`].
    CacheTensor(usize),
    /// `write_indices [B]`: where each sequence's new keys and values go.
    WriteIndices,
    /// `kv_lengths [B]`: past and new tokens of each sequence.
    KvLengths,
    /// `query_lengths [B]`: new tokens of each sequence.
    QueryLengths,
    /// `start_idx`: tokens in the cache.
    Start,
    /// `end_idx`: tokens in the cache after the step.
    End,
}

/// A tensor of a cache, `[heads, length, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheShape {
    pub(crate) dtype: DType,
    pub(crate) heads: usize,
    /// The longest it can be.
    pub(crate) length: usize,
    pub(crate) head_dim: usize,
    /// Where it holds only the last positions. Known once the graph is compiled.
    pub(crate) ring: Option<Ring>,
}

/// What a graph takes and gives.
#[derive(Debug)]
pub(crate) struct Signature {
    /// `InPlace`, `None`, or `StaticV2` for both static forms, which are called alike.
    pub(crate) mode: CacheKind,
    /// The inputs in order.
    pub(crate) inputs: Vec<(ValueId, Role)>,
    /// The symbol of the batch, where it is one; always 1 here.
    pub(crate) batch: Option<SymbolId>,
    /// The symbol of the sequence length; a component has none.
    pub(crate) seq: Option<SymbolId>,
    /// What the index inputs equal.
    pub(crate) indices: Vec<(Role, Dim)>,
    /// Key and value tensors in the order of the inputs.
    pub(crate) cache: Vec<CacheShape>,
    /// `logits [B, S or 1, V]`.
    pub(crate) logits: ValueId,
    /// The updated cache tensors, in the order of the inputs.
    pub(crate) cache_outputs: Vec<ValueId>,
    /// Columns of the logits.
    pub(crate) vocab_size: usize,
    /// How many axes positions have, of [`roundhouse_backend::POSITION_AXES`].
    pub(crate) position_axes: usize,
    /// Columns of the image features, where the model takes images.
    pub(crate) image_width: Option<usize>,
}

impl Signature {
    /// Reads the signature of a graph.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] names the input or output that fits no cache kind.
    pub(crate) fn new(graph: &Graph) -> Result<Self, BackendError> {
        let mut inputs = Vec::new();
        let mut indices = Vec::new();
        let mut cache = Vec::new();
        for &id in graph.inputs() {
            let value = graph.value(id);
            let role = match value.name.as_str() {
                "input_ids" => Role::InputIds,
                "position_ids" => Role::PositionIds,
                "image_features" => Role::ImageFeatures,
                "image_indices" => Role::ImageIndices,
                "write_indices" => Role::WriteIndices,
                "kv_lengths" => Role::KvLengths,
                "query_lengths" => Role::QueryLengths,
                "start_idx" => Role::Start,
                "end_idx" => Role::End,
                name if name.starts_with("key_cache_") || name.starts_with("value_cache_") => {
                    cache.push(cache_shape(value)?);
                    Role::CacheTensor(cache.len() - 1)
                }
                name => return Err(unsupported(format!("the input {name:?}"))),
            };
            if let Origin::Input { equals: Some(dim) } = &value.origin {
                indices.push((role, dim.clone()));
            }
            inputs.push((id, role));
        }
        let has = |role: Role| inputs.iter().any(|(_, found)| *found == role);
        let mode = match (has(Role::WriteIndices), cache.is_empty()) {
            (true, _) => CacheKind::InPlace,
            (false, false) => CacheKind::StaticV2,
            (false, true) => CacheKind::None,
        };
        let ids = inputs.iter().find(|(_, role)| *role == Role::InputIds).map(|(id, _)| graph.value(*id));
        let (batch, seq) = match ids.map(|value| &value.shape[..]) {
            Some([batch, seq]) if batch.as_symbol().is_some() || batch.as_constant() == Some(1) => {
                let seq = seq.as_symbol().ok_or_else(|| unsupported("input_ids with a fixed length"))?;
                (batch.as_symbol(), seq)
            }
            _ => return Err(unsupported("a graph without an input input_ids [batch, seq]")),
        };
        let Some((&logits, cache_outputs)) = graph.outputs().split_first() else {
            return Err(unsupported("a graph without outputs"));
        };
        // A cache that is updated in place need not be an output.
        if cache_outputs.len() != cache.len() && !(mode == CacheKind::InPlace && cache_outputs.is_empty()) {
            let (found, expected) = (cache_outputs.len(), cache.len());
            return Err(unsupported(format!("{found} cache outputs for {expected} cache inputs")));
        }
        let columns = graph.value(logits).shape.last().and_then(Dim::as_constant);
        let vocab_size = columns.and_then(|columns| usize::try_from(columns).ok());
        let vocab_size = vocab_size.ok_or_else(|| unsupported("logits without a fixed number of columns"))?;
        let cache_outputs = cache_outputs.to_vec();
        let features = inputs.iter().find(|(_, role)| *role == Role::ImageFeatures);
        let image_width = features.map(|&(id, _)| match &graph.value(id).shape[..] {
            [rows, width] if rows.as_symbol().is_some() => {
                width.as_constant().and_then(|width| usize::try_from(width).ok())
            }
            _ => None,
        });
        let image_width = match image_width {
            Some(None) => return Err(unsupported("image_features that are not [rows, a fixed width]")),
            width => width.flatten(),
        };
        let positions = inputs.iter().find(|(_, role)| *role == Role::PositionIds);
        let position_axes = match positions.map(|&(id, _)| &graph.value(id).shape[..]) {
            Some([_, axes, _]) if axes.as_constant() == i64::try_from(POSITION_AXES).ok() => POSITION_AXES,
            Some([_, _]) | None => 1,
            Some(_) => return Err(unsupported("position_ids that are not [batch, seq] or [batch, 3, seq]")),
        };
        let signature = Self {
            mode,
            inputs,
            batch,
            seq: Some(seq),
            indices,
            cache,
            logits,
            cache_outputs,
            vocab_size,
            position_axes,
            image_width,
        };
        signature.check_symbols(graph)?;
        Ok(signature)
    }

    /// The signature of a component's graph, whose inputs may be anything.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for other than one output.
    pub(crate) fn of_component(graph: &Graph) -> Result<Self, BackendError> {
        let &[output] = graph.outputs() else {
            return Err(unsupported("a component with several outputs"));
        };
        let inputs = graph.inputs().iter().enumerate();
        Ok(Self {
            mode: CacheKind::None,
            inputs: inputs.map(|(index, &id)| (id, Role::Tensor(index))).collect(),
            batch: None,
            seq: None,
            indices: Vec::new(),
            cache: Vec::new(),
            logits: output,
            cache_outputs: Vec::new(),
            vocab_size: 0,
            position_axes: 1,
            image_width: None,
        })
    }

    /// Every symbol must have a value in every step.
    fn check_symbols(&self, graph: &Graph) -> Result<(), BackendError> {
        for (index, symbol) in graph.symbols().iter().enumerate() {
            let id = SymbolId(u32::try_from(index).unwrap_or(u32::MAX));
            let bound = Some(id) == self.batch
                || Some(id) == self.seq
                || self.is_image_rows(graph, id)
                || self.indices.iter().any(|(_, dim)| dim.as_symbol() == Some(id));
            let used = graph
                .values()
                .any(|(_, value)| value.shape.iter().any(|dim| dim.parts().1.contains_key(&id)));
            if used && !bound {
                return Err(unsupported(format!("the symbol {:?}, which no input gives", symbol.name)));
            }
        }
        Ok(())
    }

    /// Whether a symbol is the number of image features and nothing else: it has a value in no step.
    fn is_image_rows(&self, graph: &Graph, symbol: SymbolId) -> bool {
        let features = self.inputs.iter().find(|(_, role)| *role == Role::ImageFeatures).map(|(id, _)| *id);
        let mut users = graph
            .values()
            .filter(|(_, value)| value.shape.iter().any(|dim| dim.parts().1.contains_key(&symbol)));
        features.is_some() && users.next().map(|(id, _)| id) == features && users.next().is_none()
    }

    /// Bytes of all cache tensors that one token takes; without a cache, those of the token itself.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        if self.mode == CacheKind::None {
            return size_of::<u32>() as u64;
        }
        self.cache.iter().map(|shape| shape.row_bytes() as u64).sum()
    }

    /// The tensors that stop growing, those of equally many rows together.
    pub(crate) fn kv_rings(&self) -> Vec<KvRing> {
        let mut rings = BTreeMap::new();
        for shape in &self.cache {
            if let Some(ring) = shape.ring {
                *rings.entry(ring.rows as u64).or_default() += shape.row_bytes() as u64;
            }
        }
        rings.into_iter().map(|(tokens, bytes_per_token)| KvRing { tokens, bytes_per_token }).collect()
    }
}

fn cache_shape(value: &Value) -> Result<CacheShape, BackendError> {
    let fixed = |dim: &Dim| dim.as_constant().and_then(|dim| usize::try_from(dim).ok());
    let [_, heads, length, head_dim] = &value.shape[..] else {
        return Err(unsupported(format!(
            "the cache {:?}: not of shape [batch, heads, length, head_dim]",
            value.name
        )));
    };
    match (fixed(heads), fixed(length), fixed(head_dim)) {
        (Some(heads), Some(length), Some(head_dim)) if value.dtype.is_float() => {
            Ok(CacheShape { dtype: value.dtype, heads, length, head_dim, ring: None })
        }
        _ => Err(unsupported(format!("the cache {:?}: no float tensor of fixed size", value.name))),
    }
}
