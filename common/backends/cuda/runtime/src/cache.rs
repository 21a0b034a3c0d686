//! What a sequence keeps between steps.

use std::any::Any;
use std::sync::Arc;

use roundhouse_backend::{BackendError, Cache, CacheGrowth};
use roundhouse_cuda_device::{Device, DeviceError};
use roundhouse_cuda_plan::CacheLayout;

use crate::pool::{Pool, Pooled};

/// The keys and values of a sequence, or its tokens where the engine has no cache.
pub(crate) struct CudaCache {
    /// The model that it is of.
    model: u64,
    /// Tokens in it.
    len: usize,
    /// Positions that were written since it was empty, counted from the first.
    written: usize,
    capacity: usize,
    layout: Arc<CacheLayout>,
    state: CacheState,
}

enum CacheState {
    Tokens(Vec<u32>),
    /// Memory on the device for so many positions; it grows with the sequence.
    Memory {
        memory: Option<Pooled>,
        positions: usize,
        growth: CacheGrowth,
        pool: Arc<Pool>,
    },
}

impl CudaCache {
    /// An empty cache of keys and values.
    pub(crate) fn new(
        model: u64,
        capacity: usize,
        layout: Arc<CacheLayout>,
        growth: CacheGrowth,
        pool: Arc<Pool>,
    ) -> Self {
        let state = CacheState::Memory { memory: None, positions: 0, growth, pool };
        Self { model, len: 0, written: 0, capacity, layout, state }
    }

    /// An empty cache of tokens.
    pub(crate) fn of_tokens(model: u64, capacity: usize, layout: Arc<CacheLayout>) -> Self {
        let state = CacheState::Tokens(Vec::with_capacity(capacity));
        Self { model, len: 0, written: 0, capacity, layout, state }
    }

    /// The cache as that of the model with this ID.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] when it is another's.
    pub(crate) fn of(model: u64, cache: &mut dyn Cache) -> Result<&mut Self, BackendError> {
        let own = cache.as_any_mut().downcast_mut::<Self>().filter(|cache| cache.model == model);
        own.ok_or_else(|| BackendError::InvalidArgument("the cache is another model's".to_owned()))
    }

    /// All tokens so far, where the engine has no cache.
    pub(crate) fn tokens(&self) -> &[u32] {
        match &self.state {
            CacheState::Tokens(tokens) => tokens,
            CacheState::Memory { .. } => &[],
        }
    }

    /// Where its memory is, and for how many positions.
    pub(crate) fn memory(&self) -> (u64, usize) {
        match &self.state {
            CacheState::Memory { memory: Some(memory), positions, .. } => (memory.address(), *positions),
            _ => (0, 0),
        }
    }

    /// Prepares for new tokens; how many they follow.
    pub(crate) fn begin(&mut self) -> usize {
        self.truncate(self.len)
    }

    /// How many tokens those of the call that runs follow.
    pub(crate) fn committed(&self) -> usize {
        self.len
    }

    /// Makes room for `positions` positions: copies what it holds to more memory where there is not enough.
    pub(crate) fn reserve(&mut self, device: &dyn Device, positions: usize) -> Result<(), DeviceError> {
        let len = self.len;
        let CacheState::Memory { memory, positions: have, growth, pool } = &mut self.state else {
            return Ok(());
        };
        if positions <= *have {
            return Ok(());
        }
        // Not bounded by its own capacity: others could not use such a size again.
        let wanted = growth.positions(positions);
        let larger = pool.take(self.layout.bytes(wanted).max(1))?;
        if let Some(old) = memory.as_ref().filter(|_| len > 0) {
            move_rows(device, &self.layout, (old.address(), *have), (larger.address(), wanted), len)?;
            // The old memory may be another sequence's next.
            device.synchronize(device.stream())?;
        }
        (*memory, *have) = (Some(larger), wanted);
        Ok(())
    }

    /// Notes that a step writes the positions up to `end`, before it does: should it fail, what it has written over is
    /// gone.
    pub(crate) fn writes(&mut self, end: usize) {
        self.written = self.written.max(end);
    }

    /// Appends tokens that are computed.
    pub(crate) fn commit(&mut self, new: &[u32]) {
        self.len += new.len();
        if let CacheState::Tokens(tokens) = &mut self.state {
            tokens.extend_from_slice(new);
        }
    }

    /// Appends so many tokens that are computed, where it has keys and values.
    pub(crate) fn extend(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Whether it can go on from its first `len` tokens.
    fn holds(&self, len: usize) -> bool {
        matches!(self.state, CacheState::Tokens(_)) || self.layout.holds(len, self.written)
    }
}

/// Copies the first `len` positions of all tensors. Rings that are as long as they get are copied whole.
fn move_rows(
    device: &dyn Device,
    layout: &CacheLayout,
    (from, old): (u64, usize),
    (to, new): (u64, usize),
    len: usize,
) -> Result<(), DeviceError> {
    let size = layout.dtype.size();
    for (index, tensor) in layout.tensors.iter().enumerate() {
        let offset = layout.offset(index);
        let start = |capacity: usize| offset.full * capacity + offset.ring * capacity.min(layout.ring_rows);
        let (old_rows, new_rows) = (layout.rows(tensor, old), layout.rows(tensor, new));
        let rows = len.min(old_rows);
        for head in 0..tensor.heads {
            let at = |base: u64, capacity: usize, rows: usize| {
                base + ((start(capacity) + head * rows * tensor.head_dim) * size) as u64
            };
            let bytes = rows * tensor.head_dim * size;
            device.copy_within(device.stream(), at(to, new, new_rows), at(from, old, old_rows), bytes)?;
        }
    }
    Ok(())
}

impl Cache for CudaCache {
    fn len(&self) -> usize {
        if self.holds(self.len) { self.len } else { 0 }
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) -> usize {
        let len = self.len.min(len);
        self.len = if self.holds(len) { len } else { 0 };
        if self.len == 0 {
            self.written = 0;
        }
        if let CacheState::Tokens(tokens) = &mut self.state {
            tokens.truncate(self.len);
        }
        self.len
    }

    fn bytes(&self) -> u64 {
        match &self.state {
            CacheState::Tokens(tokens) => (tokens.capacity() * size_of::<u32>()) as u64,
            CacheState::Memory { .. } => self.layout.bytes(self.capacity) as u64,
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
