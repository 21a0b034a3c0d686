//! The plan itself.

use roundhouse_backend::BackendError;
use roundhouse_engine::{CacheKind, EngineOptions, MemoryPlan};
use roundhouse_graph::{DType, Graph};
use serde::{Deserialize, Serialize};

use crate::cache::CacheLayout;
use crate::limits::StepLimits;
use crate::step::Step;

/// Which buffer of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BufferId(pub usize);

/// Which weight of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WeightId(pub usize);

/// Which constant of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConstantId(pub usize);

/// What the rows of a buffer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// The new tokens.
    Tokens,
    /// The tokens whose logits are wanted.
    Selected,
}

/// Memory for rows of activations. Those that are not alive at the same time share a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// What its rows are.
    pub rows: Rows,
    /// Elements from one row to the next, a multiple of 16 bytes.
    pub stride: usize,
    /// The element type.
    pub dtype: DType,
    /// Which slot it is in.
    pub slot: usize,
}

/// Weights that lie one after the other on the device, their rows those of one matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceWeight {
    /// Their names in the weights file.
    pub parts: Vec<String>,
    /// Rows of all parts together; 1 for a vector.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// The element type.
    pub dtype: DType,
}

/// What a graph becomes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The element type of activations and caches.
    pub dtype: DType,
    /// How keys and values are kept.
    pub cache_kind: CacheKind,
    /// Columns of the logits.
    pub vocab_size: usize,
    /// Rows of the embedding table.
    pub input_vocab_size: usize,
    /// By [`BufferId`].
    pub buffers: Vec<Buffer>,
    /// Slots that the buffers share.
    pub slots: usize,
    /// By [`WeightId`].
    pub weights: Vec<DeviceWeight>,
    /// By [`ConstantId`]: angles of rotary embeddings.
    pub constants: Vec<Vec<f32>>,
    /// The memory of a sequence.
    pub cache: CacheLayout,
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// The logits, fp32.
    pub logits: BufferId,
    /// The largest step.
    pub limits: StepLimits,
}

impl Plan {
    /// Compiles a lowered graph.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] names the first node that the backend cannot run.
    pub fn new(graph: &Graph, options: &EngineOptions) -> Result<Self, BackendError> {
        crate::compile::compile(graph, options)
    }

    /// A buffer.
    ///
    /// # Panics
    /// If the ID is another plan's.
    #[must_use]
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }

    /// A weight.
    ///
    /// # Panics
    /// If the ID is another plan's.
    #[must_use]
    pub fn weight(&self, id: WeightId) -> &DeviceWeight {
        &self.weights[id.0]
    }

    /// Most rows of a buffer.
    #[must_use]
    pub const fn most_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.limits.tokens,
            Rows::Selected => self.limits.rows,
        }
    }

    /// Bytes of each slot.
    #[must_use]
    pub fn slot_bytes(&self) -> Vec<usize> {
        let mut slots = vec![0; self.slots];
        for buffer in &self.buffers {
            let bytes = self.most_rows(buffer.rows) * buffer.stride * buffer.dtype.size();
            if let Some(slot) = slots.get_mut(buffer.slot) {
                *slot = bytes.max(*slot);
            }
        }
        slots
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|weight| weight.bytes() as u64).sum()
    }

    /// Bytes of the weights that every step reads whole: all but tables of which it reads a row a token. Of a mixture's
    /// experts all are counted.
    #[must_use]
    pub fn step_weight_bytes(&self) -> u64 {
        let tables: Vec<WeightId> = self
            .steps
            .iter()
            .filter_map(|step| if let Step::Embed(embed) = step { Some(embed.table) } else { None })
            .collect();
        let multiplied =
            |id| self.steps.iter().any(|step| matches!(step, Step::Linear(linear) if linear.weight == id));
        let whole = (0..self.weights.len()).map(WeightId);
        let whole = whole.filter(|id| multiplied(*id) || !tables.contains(id));
        whole.map(|id| self.weight(id).bytes() as u64).sum()
    }

    /// The memory of a process that runs it. `scratch_bytes` is what kernels need beside the buffers.
    #[must_use]
    pub fn memory(&self, scratch_bytes: u64) -> MemoryPlan {
        let slots: usize = self.slot_bytes().iter().sum();
        let (mut workspace_bytes, mut kv_bytes_per_token) =
            (slots as u64 + scratch_bytes, self.cache.bytes_per_token());
        if self.cache_kind == CacheKind::None {
            // A sequence is its tokens; all use one scratch cache.
            workspace_bytes += self.cache.bytes(self.limits.sequence) as u64;
            kv_bytes_per_token = size_of::<u32>() as u64;
        }
        let kv_rings = if self.cache_kind == CacheKind::None { Vec::new() } else { self.cache.rings() };
        MemoryPlan { weight_bytes: self.weight_bytes(), kv_bytes_per_token, kv_rings, workspace_bytes }
    }
}

impl DeviceWeight {
    /// Bytes of all parts together.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.rows * self.columns * self.dtype.size()
    }
}
