//! What a sequence keeps between steps.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use roundhouse_backend::{BackendError, Cache, ImageTokens, KvBlock, SequenceImages};
use roundhouse_cpu_kernels::{Elements, ElementsMut};
use roundhouse_graph::DType;

use crate::error::unsupported;
use crate::plan::{CacheShape, Ring};
use crate::zeroed::Zeroed;

/// What a sequence keeps between steps: its keys and values, or its tokens where the engine has no cache.
pub(crate) struct CpuCache {
    /// The model that it is of.
    pub(crate) model: u64,
    /// The key of its engine, which names the layout of its blocks.
    engine: Arc<str>,
    /// Tokens in it, if its rings hold what the next one sees.
    len: usize,
    /// The most tokens that were written into it since it was empty.
    written: usize,
    /// Tokens that it can hold.
    pub(crate) capacity: usize,
    state: CacheState,
    /// The images among its tokens.
    images: SequenceImages,
    /// Columns of their features; `None` where the model takes no images.
    image_width: Option<usize>,
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
    dtype: DType,
    memory: Zeroed,
}

impl CacheTensor {
    /// A tensor of zeros for sequences of at most `length` positions.
    pub(crate) fn new(shape: CacheShape, length: usize) -> Self {
        let rows = shape.rows(length);
        let ring = shape.ring.filter(|_| rows < length);
        let (dtype, size) = match shape.dtype {
            dtype @ (DType::F16 | DType::Bf16) => (dtype, size_of::<u16>()),
            DType::F32 | DType::I64 | DType::Bool | DType::U8 => (DType::F32, size_of::<f32>()),
        };
        let memory = Zeroed::new(shape.heads * rows * shape.head_dim * size);
        Self { heads: shape.heads, rows, head_dim: shape.head_dim, ring, dtype, memory }
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        match self.dtype {
            DType::F16 => Elements::F16(bytemuck::cast_slice::<u8, f16>(&self.memory)),
            DType::Bf16 => Elements::Bf16(bytemuck::cast_slice::<u8, bf16>(&self.memory)),
            _ => Elements::F32(bytemuck::cast_slice(&self.memory)),
        }
    }

    pub(crate) fn elements_mut(&mut self) -> ElementsMut<'_> {
        match self.dtype {
            DType::F16 => ElementsMut::F16(bytemuck::cast_slice_mut::<u8, f16>(&mut self.memory)),
            DType::Bf16 => ElementsMut::Bf16(bytemuck::cast_slice_mut::<u8, bf16>(&mut self.memory)),
            _ => ElementsMut::F32(bytemuck::cast_slice_mut(&mut self.memory)),
        }
    }

    fn raw(&self) -> &[u8] {
        &self.memory
    }

    fn raw_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Bytes of one position of one head.
    fn row_bytes(&self) -> usize {
        self.raw().len().checked_div(self.heads * self.rows).unwrap_or(0)
    }

    /// Bytes of so many positions, all heads together.
    fn positions_bytes(&self, positions: usize) -> usize {
        positions * self.heads * self.row_bytes()
    }

    /// Where positions lie, head by head and position by position: ranges of [`CacheTensor::raw`].
    fn places(&self, positions: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (heads, rows, row_bytes, positions) =
            (self.heads, self.rows, self.row_bytes(), positions.clone());
        (0..heads).flat_map(move |head| {
            let mut next = positions.start;
            let end = positions.end;
            std::iter::from_fn(move || {
                let row = next % rows;
                let run = (rows - row).min(end - next);
                next += run;
                let first = (head * rows + row) * row_bytes;
                (run > 0).then_some(first..first + run * row_bytes)
            })
        })
    }

    /// The first position that it holds of those up to `written`.
    fn first_held(&self, written: usize) -> usize {
        self.ring.map_or(0, |ring| written.saturating_sub(ring.rows))
    }
}

impl CpuCache {
    /// An empty cache of a model.
    pub(crate) fn new(model: u64, engine: Arc<str>, capacity: usize, state: CacheState) -> Self {
        Self {
            model,
            engine,
            len: 0,
            written: 0,
            capacity,
            state,
            images: SequenceImages::new(),
            image_width: None,
        }
    }

    /// A cache of a model whose image features are this wide.
    pub(crate) fn with_images(self, image_width: Option<usize>) -> Self {
        Self { image_width, ..self }
    }

    /// The images among its tokens.
    pub(crate) fn images(&self) -> &SequenceImages {
        &self.images
    }

    /// Prepares for new tokens; how many they follow.
    pub(crate) fn begin(&mut self) -> usize {
        let len = self.len;
        if self.cut(len) < len {
            self.images.truncate(0);
        }
        self.len
    }

    /// Cuts keys, values and tokens to a length; the length reached.
    fn cut(&mut self, len: usize) -> usize {
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

    /// Bytes of a block of so many positions.
    fn block_bytes(&self, positions: usize) -> usize {
        match &self.state {
            CacheState::Tokens(_) => positions * size_of::<u32>(),
            CacheState::Tensors(tensors) => {
                tensors.iter().map(|tensor| tensor.positions_bytes(positions)).sum()
            }
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
        let wanted = self.len.min(len);
        let reached = self.cut(len);
        self.images.truncate(if reached < wanted { 0 } else { len });
        reached
    }

    fn place_image(&mut self, image: ImageTokens) -> Result<(), BackendError> {
        let Some(width) = self.image_width else {
            return Err(unsupported("images among the tokens of a text model"));
        };
        let len = self.len();
        self.images.place(image, len, self.capacity, width)
    }

    fn bytes(&self) -> u64 {
        match &self.state {
            CacheState::Tokens(tokens) => (tokens.capacity() * size_of::<u32>()) as u64,
            CacheState::Tensors(tensors) => tensors.iter().map(|tensor| tensor.raw().len() as u64).sum(),
        }
    }

    fn export(&self, positions: Range<usize>) -> Result<KvBlock, BackendError> {
        if positions.is_empty() || positions.end > self.len() {
            let what = format!("positions {positions:?} of a cache of {} tokens", self.len());
            return Err(BackendError::InvalidArgument(what));
        }
        let held = self.tensors().iter().map(|tensor| tensor.first_held(self.written));
        let first_held = held.max().unwrap_or(0);
        if positions.start < first_held {
            return Err(BackendError::PositionsLost { positions, first_held });
        }
        let mut bytes = Vec::with_capacity(self.block_bytes(positions.len()));
        match &self.state {
            CacheState::Tokens(tokens) => {
                bytes.extend_from_slice(bytemuck::cast_slice(&tokens[positions.clone()]))
            }
            CacheState::Tensors(tensors) => {
                for tensor in tensors {
                    tensor.places(&positions).for_each(|place| bytes.extend_from_slice(&tensor.raw()[place]));
                }
            }
        }
        Ok(KvBlock::new(Arc::clone(&self.engine), positions, bytes))
    }

    fn import(&mut self, block: &KvBlock) -> Result<(), BackendError> {
        let length = self.begin();
        let positions = block.positions();
        let expected = self.block_bytes(positions.len());
        block.check_follows(&self.engine, length, self.capacity, expected)?;
        let mut rest = block.bytes();
        match &mut self.state {
            CacheState::Tokens(tokens) => {
                let words = rest.chunks_exact(size_of::<u32>());
                tokens.extend(words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
            }
            CacheState::Tensors(tensors) => {
                for tensor in tensors {
                    for place in tensor.places(&positions) {
                        let (part, later) = rest.split_at(place.len());
                        tensor.raw_mut()[place].copy_from_slice(part);
                        rest = later;
                    }
                }
            }
        }
        self.writes(positions.end);
        self.len = positions.end;
        Ok(())
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
        CpuCache::new(0, "key".into(), 100, CacheState::Tensors(vec![CacheTensor::new(shape, 100)]))
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
    fn positions_that_a_ring_has_let_go_of_are_lost_and_its_last_ones_move_to_another_ring() {
        let mut cache = cache(Some(Ring::new(10, 8)));
        for (row, value) in cache.tensors_mut()[0].raw_mut().chunks_exact_mut(2).enumerate() {
            value.fill(row as u8);
        }
        cache.writes(50);
        cache.commit(&[0; 50]);
        let lost = cache.export(32..40).unwrap_err();
        assert!(matches!(lost, BackendError::PositionsLost { first_held: 33, .. }), "{lost}");
        let block = cache.export(40..50).unwrap();
        let rows = (40..50).flat_map(|position| [position % 17; 2]).collect::<Vec<u8>>();
        assert_eq!(block.bytes(), rows);

        let mut other = self::cache(Some(Ring::new(10, 8)));
        other.writes(40);
        other.commit(&[0; 40]);
        other.import(&block).unwrap();
        assert_eq!((other.len(), other.export(40..50).unwrap()), (50, block));
        assert!(other.export(33..50).is_ok() && other.export(32..50).is_err());
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
