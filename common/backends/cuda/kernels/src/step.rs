//! What kernels read of a step, in device memory.
//!
//! | array | type | of each |
//! |---|---|---|
//! | `ids` | `int` | row: its token |
//! | `positions` | `int` | row: its position, for embeddings and rotation |
//! | `row_sequence` | `int` | row: the index of its sequence, or a negative number for padding |
//! | `sequences` | [`Sequence`] | sequence |
//! | `tiles` | [`QueryTile`] | tile of queries of a prefill |
//!
//! The key of row `r` of sequence `s` has the index `s.past + (r - s.first_row)`. A layer's caches of a sequence lie at
//! element `full · s.capacity + ring · min(s.capacity, ring_rows)` behind `s.kv`, with `full` and `ring` of the layer's
//! keys and of its values; each is `[kv_heads, L, head_dim]` with `L = s.capacity`, or `min(s.capacity, ring_rows)` where
//! `ring_rows` is not 0, and key `p` is in row `p mod L`.

/// A sequence of a step: `struct Sequence` of the sources, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Sequence {
    /// Device address of its caches.
    pub kv: u64,
    /// How many keys its caches have room for.
    pub capacity: i32,
    /// Its first row.
    pub first_row: i32,
    /// How many rows it has; 0 for padding.
    pub rows: i32,
    /// How many keys it had before the step.
    pub past: i32,
    /// Nothing.
    pub padding: [i32; 2],
}

impl Sequence {
    /// The bytes a device reads.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.kv.to_le_bytes());
        for (target, value) in
            bytes[8..24].chunks_exact_mut(4).zip([self.capacity, self.first_row, self.rows, self.past])
        {
            target.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// [`crate::QUERY_TILE`] queries of one sequence, or fewer at its end: `struct QueryTile` of the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct QueryTile {
    /// The index of the sequence; negative for padding.
    pub sequence: i32,
    /// The first query, counted from the sequence's first row.
    pub first: i32,
}
