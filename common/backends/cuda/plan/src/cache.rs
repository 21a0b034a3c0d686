//! Where keys and values lie in the memory of a sequence.
//!
//! All tensors of a sequence are one run of memory. Full tensors are as long as the sequence may get, those of sliding
//! layers no longer than what windows still see: position `p` lies in row `p % rows`. So a tensor's place is a number of
//! elements for each position of the capacity and for each position of the rings before it.

use roundhouse_engine::KvRing;
use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

/// The keys, or the values, of one attention: `[heads, rows, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheTensor {
    /// Key heads.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Whether it holds the last positions only.
    pub ring: bool,
}

/// Where a tensor begins: `full · capacity + ring · min(capacity, ring_rows)` elements into the memory of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheOffset {
    /// For each position of the capacity.
    pub full: usize,
    /// For each row of the rings.
    pub ring: usize,
}

/// The memory of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayout {
    /// The element type.
    pub dtype: DType,
    /// Keys and values in turn, in the order of the attentions.
    pub tensors: Vec<CacheTensor>,
    /// The widest window of the rings: positions that a token sees, its own included. 0 where there are no rings.
    pub window: usize,
    /// Rows of the rings.
    pub ring_rows: usize,
}

impl CacheLayout {
    /// Where a tensor begins. Full ones come first, so that those before it are of one kind.
    #[must_use]
    pub fn offset(&self, tensor: usize) -> CacheOffset {
        let before = |ring: bool| {
            let same = self.tensors.iter().take(tensor).filter(move |before| before.ring == ring);
            same.map(CacheTensor::row_elements).sum()
        };
        match self.tensors.get(tensor) {
            Some(CacheTensor { ring: true, .. }) => {
                CacheOffset { full: self.elements(false), ring: before(true) }
            }
            _ => CacheOffset { full: before(false), ring: 0 },
        }
    }

    /// Elements of one position in all tensors of a kind.
    fn elements(&self, ring: bool) -> usize {
        self.tensors.iter().filter(|tensor| tensor.ring == ring).map(CacheTensor::row_elements).sum()
    }

    /// Rows of a tensor in the memory of a sequence.
    #[must_use]
    pub fn rows(&self, tensor: &CacheTensor, capacity: usize) -> usize {
        if tensor.ring { capacity.min(self.ring_rows) } else { capacity }
    }

    /// Bytes of a sequence of at most `capacity` positions.
    #[must_use]
    pub fn bytes(&self, capacity: usize) -> usize {
        let elements = self.elements(false) * capacity + self.elements(true) * capacity.min(self.ring_rows);
        elements * self.dtype.size()
    }

    /// Bytes of one position in all tensors.
    #[must_use]
    pub fn bytes_per_token(&self) -> u64 {
        ((self.elements(false) + self.elements(true)) * self.dtype.size()) as u64
    }

    /// The rings, as memory plans tell of them.
    #[must_use]
    pub fn rings(&self) -> Vec<KvRing> {
        let bytes = (self.elements(true) * self.dtype.size()) as u64;
        if bytes == 0 {
            Vec::new()
        } else {
            vec![KvRing { tokens: self.ring_rows as u64, bytes_per_token: bytes }]
        }
    }

    /// Whether a sequence of `len` tokens can go on, of which the rings held up to `written` since it was empty: whether
    /// no position before the next token's that it sees has been written over.
    #[must_use]
    pub fn holds(&self, len: usize, written: usize) -> bool {
        let first_seen = (len + 1).saturating_sub(self.window);
        let first_held = written.saturating_sub(self.ring_rows);
        self.window == 0 || first_held <= first_seen || first_seen >= len
    }
}

impl CacheTensor {
    /// Elements of one position.
    #[must_use]
    pub const fn row_elements(&self) -> usize {
        self.heads * self.head_dim
    }
}
