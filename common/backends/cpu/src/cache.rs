//! What a sequence keeps between steps.

use std::any::Any;

use half::{bf16, f16};
use roundhouse_backend::Cache;
use roundhouse_cpu_kernels::{Elements, ElementsMut};
use roundhouse_graph::DType;

use crate::plan::{CacheShape, Ring};

/// What a sequence keeps between steps: its keys and values, or its tokens where the engine has no cache.
pub(crate) struct CpuCache {
    /// The model that it is of.
    pub(crate) model: u64,
    /// Tokens in it, if its rings hold what the next one sees.
    len: usize,
    /// The most tokens that were written into it since it was empty.
    written: usize,
    /// Tokens that it can hold.
    pub(crate) capacity: usize,
    state: CacheState,
}

pub(crate) enum CacheState {
    /// All tokens so far.
    Tokens(Vec<u32>),
    /// Key and value tensors, two a layer.
    Tensors(Vec<CacheTensor>),
}

/// `[heads, rows, head_dim]`, zero at first: the system gives memory to a page when it is first written, so the part
/// that a sequence never reaches costs nothing. Position `p` is row `p % rows`.
pub(crate) struct CacheTensor {
    pub(crate) heads: usize,
    pub(crate) rows: usize,
    pub(crate) head_dim: usize,
    /// Where it has fewer rows than the sequence may have positions.
    ring: Option<Ring>,
    storage: Storage,
}

/// Half floats are kept as their bits: only for plain integers does the standard library ask the system for zeroed
/// memory instead of writing it.
enum Storage {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl CacheTensor {
    /// A tensor of zeros for sequences of at most `length` positions.
    pub(crate) fn new(shape: CacheShape, length: usize) -> Self {
        let rows = shape.rows(length);
        let ring = shape.ring.filter(|_| rows < length);
        let elements = shape.heads * rows * shape.head_dim;
        let storage = match shape.dtype {
            DType::F16 => Storage::F16(vec![0; elements]),
            DType::Bf16 => Storage::Bf16(vec![0; elements]),
            DType::F32 | DType::I64 | DType::Bool | DType::U8 => Storage::F32(vec![0.0; elements]),
        };
        Self { heads: shape.heads, rows, head_dim: shape.head_dim, ring, storage }
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        match &self.storage {
            Storage::F32(values) => Elements::F32(values),
            Storage::F16(bits) => Elements::F16(bytemuck::cast_slice::<u16, f16>(bits)),
            Storage::Bf16(bits) => Elements::Bf16(bytemuck::cast_slice::<u16, bf16>(bits)),
        }
    }

    pub(crate) fn elements_mut(&mut self) -> ElementsMut<'_> {
        match &mut self.storage {
            Storage::F32(values) => ElementsMut::F32(values),
            Storage::F16(bits) => ElementsMut::F16(bytemuck::cast_slice_mut::<u16, f16>(bits)),
            Storage::Bf16(bits) => ElementsMut::Bf16(bytemuck::cast_slice_mut::<u16, bf16>(bits)),
        }
    }

    fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(values) => size_of_val(&values[..]),
            Storage::F16(bits) | Storage::Bf16(bits) => size_of_val(&bits[..]),
        }
    }
}

impl CpuCache {
    /// An empty cache of a model.
    pub(crate) fn new(model: u64, capacity: usize, state: CacheState) -> Self {
        Self { model, len: 0, written: 0, capacity, state }
    }

    /// Prepares for new tokens; how many they follow.
    pub(crate) fn begin(&mut self) -> usize {
        self.truncate(self.len)
    }

    /// How many tokens those of the call that runs follow.
    pub(crate) fn committed(&self) -> usize {
        self.len
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

    /// Whether it can go on from its first `len` tokens.
    fn holds(&self, len: usize) -> bool {
        self.tensors().iter().all(|tensor| tensor.ring.is_none_or(|ring| ring.holds(len, self.written)))
    }

    /// All tokens so far, where the engine has no cache.
    pub(crate) fn tokens(&self) -> &[u32] {
        match &self.state {
            CacheState::Tokens(tokens) => tokens,
            CacheState::Tensors(_) => &[],
        }
    }

    /// The key and value tensors; none where the engine has no cache.
    pub(crate) fn tensors(&self) -> &[CacheTensor] {
        match &self.state {
            CacheState::Tensors(tensors) => tensors,
            CacheState::Tokens(_) => &[],
        }
    }

    pub(crate) fn tensors_mut(&mut self) -> &mut [CacheTensor] {
        match &mut self.state {
            CacheState::Tensors(tensors) => tensors,
            CacheState::Tokens(_) => &mut [],
        }
    }
}

impl Cache for CpuCache {
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
            CacheState::Tensors(tensors) => tensors.iter().map(|tensor| tensor.bytes() as u64).sum(),
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(ring: Option<Ring>) -> CpuCache {
        let shape = CacheShape { dtype: DType::F16, heads: 1, length: 100, head_dim: 1, ring };
        CpuCache::new(0, 100, CacheState::Tensors(vec![CacheTensor::new(shape, 100)]))
    }

    #[test]
    fn a_step_that_fails_empties_what_it_has_written_over() {
        let mut cache = cache(Some(Ring::new(10, 8)));
        assert_eq!(cache.bytes(), 17 * 2);
        cache.writes(50);
        cache.commit(&[0; 50]);
        // A step of several pieces, of which the second fails.
        assert_eq!(cache.begin(), 50);
        cache.writes(58);
        assert_eq!(cache.len(), 50, "what a piece writes leaves the window before it");
        cache.writes(59);
        assert_eq!((cache.len(), cache.committed()), (0, 50));
        assert_eq!(cache.begin(), 0);
        cache.writes(8);
        cache.commit(&[0; 8]);
        assert_eq!((cache.len(), cache.truncate(3)), (8, 3));
    }

    #[test]
    fn a_cache_of_all_positions_keeps_its_length_through_failures() {
        let mut cache = cache(None);
        cache.writes(50);
        cache.commit(&[0; 50]);
        cache.writes(100);
        assert_eq!((cache.len(), cache.begin(), cache.truncate(7)), (50, 50, 7));
    }
}
