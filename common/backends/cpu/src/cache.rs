//! What a sequence keeps between steps.

use std::any::Any;

use half::{bf16, f16};
use roundhouse_backend::Cache;
use roundhouse_cpu_kernels::{Elements, ElementsMut};
use roundhouse_graph::DType;

use crate::plan::CacheShape;

/// What a sequence keeps between steps: its keys and values, or its tokens where the engine has no cache.
pub(crate) struct CpuCache {
    /// The model that it is of.
    pub(crate) model: u64,
    /// Tokens in it.
    pub(crate) len: usize,
    /// Tokens that it can hold.
    pub(crate) capacity: usize,
    pub(crate) state: CacheState,
}

pub(crate) enum CacheState {
    /// All tokens so far.
    Tokens(Vec<u32>),
    /// Key and value tensors, two a layer.
    Tensors(Vec<CacheTensor>),
}

/// `[heads, length, head_dim]`, zero at first: the system gives memory to a page when it is first written, so the part
/// that a sequence never reaches costs nothing.
pub(crate) struct CacheTensor {
    pub(crate) heads: usize,
    /// Positions that it has room for.
    pub(crate) length: usize,
    pub(crate) head_dim: usize,
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
    /// A tensor of zeros with room for `length` positions.
    pub(crate) fn new(shape: CacheShape, length: usize) -> Self {
        let elements = shape.heads * length * shape.head_dim;
        let storage = match shape.dtype {
            DType::F16 => Storage::F16(vec![0; elements]),
            DType::Bf16 => Storage::Bf16(vec![0; elements]),
            DType::F32 | DType::I64 | DType::Bool => Storage::F32(vec![0.0; elements]),
        };
        Self { heads: shape.heads, length, head_dim: shape.head_dim, storage }
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
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if let CacheState::Tokens(tokens) = &mut self.state {
            tokens.truncate(self.len);
        }
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
