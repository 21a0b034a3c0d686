//! Attention over the caches.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::{c_type, flag};
use crate::parameter::{Parameter, float, int, long, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

/// The most query heads that may share a head of keys in [`AttentionDecode`].
pub const MAX_GROUP: u32 = 16;

/// Queries of a tile of [`AttentionPrefill`].
pub const QUERY_TILE: u32 = 64;

/// The most blocks that share a row's keys.
const MAX_SPLITS: u32 = 128;
const DECODE_WARPS: u32 = 4;
const PREFILL_WARPS: u32 = 4;
const PREFILL_STAGES: u32 = 2;
/// Threads of a block of [`AttentionCombine`] of many parts.
const COMBINE_THREADS: u32 = 512;
/// Where loading parts one after the other takes longer than more threads do.
const MANY_SPLITS: u32 = 16;

/// What the scores are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AttentionMethod {
    /// Tensor cores: fp16 and bf16.
    Tensor {
        /// Whether more than 8 query heads share one of keys; 8 are fewer registers.
        wide: bool,
    },
    /// Fused multiply-adds: any type.
    MultiplyAdd,
}

/// Attention of single queries: of each row of a sequence that has at most `max_rows` rows in the step. The keys that a
/// row sees, its own the last, are split among `splits` blocks; all query heads of a group share one read of the keys and
/// values.
///
/// With one split `out [rows, kv_heads · group, head_dim]` is written. With more, each block writes its part to
/// `partial`, and [`AttentionCombine`] follows. How keys are split depends on lengths in device memory alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionDecode {
    /// Type of queries, caches and output.
    pub dtype: DType,
    /// Up to 256; a multiple of 8 from 32 on for tensor cores.
    pub head_dim: u32,
    /// How.
    pub method: AttentionMethod,
}

impl AttentionDecode {
    /// The kernel for heads of `head_dim` of which `group` of queries share one of keys.
    #[must_use]
    pub fn new(dtype: DType, head_dim: u32, group: u32) -> Self {
        let halves = matches!(dtype, DType::F16 | DType::Bf16);
        let tensor = halves && head_dim >= 32 && head_dim.is_multiple_of(8) && group <= MAX_GROUP;
        let method =
            if tensor { AttentionMethod::Tensor { wide: group > 8 } } else { AttentionMethod::MultiplyAdd };
        Self { dtype, head_dim, method }
    }

    /// How many blocks should share a row's keys, so that the device is full at any length.
    #[must_use]
    pub fn splits(&self, rows: u32, kv_heads: u32, multiprocessors: u32) -> u32 {
        // As many as a multiprocessor has registers for.
        let blocks = if self.head_dim > 64 { 2 } else { 4 };
        (multiprocessors * blocks).div_ceil((rows * kv_heads).max(1)).clamp(1, MAX_SPLITS)
    }

    /// Bytes of `partial`: fp32 `[rows, q_heads, splits, head_dim + 2]`; 0 for one split.
    #[must_use]
    pub fn partial_bytes(&self, rows: u32, q_heads: u32, splits: u32) -> u64 {
        let parts = u64::from(rows) * u64::from(q_heads) * u64::from(splits);
        if splits == 1 { 0 } else { parts * u64::from(self.head_dim + 2) * 4 }
    }

    /// One block a split of a head of a row: a head of keys with tensor cores, else of queries.
    #[must_use]
    pub fn launch(&self, rows: u32, q_heads: u32, kv_heads: u32, splits: u32) -> Launch {
        let (heads, states) = match self.method {
            AttentionMethod::Tensor { wide } => (kv_heads, DECODE_WARPS * if wide { 16 } else { 8 }),
            AttentionMethod::MultiplyAdd => (q_heads, DECODE_WARPS),
        };
        Launch {
            grid: [splits, heads, rows],
            block: DECODE_WARPS * 32,
            shared_bytes: states * (self.head_dim + 2) * 4,
        }
    }
}

impl Specialization for AttentionDecode {
    fn name(&self) -> String {
        match self.method {
            AttentionMethod::Tensor { wide } => {
                let heads = if wide { 16 } else { 8 };
                format!("attention_decode_tensor_{}_d{}_g{heads}", self.dtype, self.head_dim)
            }
            AttentionMethod::MultiplyAdd => format!("attention_decode_fma_{}", self.dtype),
        }
    }

    fn header(&self) -> Header {
        match self.method {
            AttentionMethod::Tensor { .. } => Header::AttentionDecodeTensor,
            AttentionMethod::MultiplyAdd => Header::AttentionDecodeFma,
        }
    }

    fn instantiation(&self) -> String {
        let (name, dtype) = (self.name(), c_type(self.dtype));
        match self.method {
            AttentionMethod::Tensor { wide } => {
                format!(
                    "INSTANTIATE_ATTENTION_DECODE_TENSOR({name}, {dtype}, {}, {})",
                    self.head_dim,
                    flag(wide)
                )
            }
            AttentionMethod::MultiplyAdd => format!("INSTANTIATE_ATTENTION_DECODE_FMA({name}, {dtype})"),
        }
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("q"),
                int("q_stride"),
                int("group"),
                int("head_dim"),
                pointer("row_sequence"),
                pointer("sequences"),
                int("max_rows"),
                long("k_full"),
                long("k_ring"),
                long("v_full"),
                long("v_ring"),
                int("ring_rows"),
                int("window"),
                float("scale"),
                float("soft_cap"),
                pointer("partial"),
                pointer("out"),
                int("out_stride"),
            ]
        }
    }
}

/// Puts the parts of [`AttentionDecode`] together: launched after it with the same `splits` (more than one), `max_rows`
/// and `window`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionCombine {
    /// Type of the output.
    pub dtype: DType,
}

impl AttentionCombine {
    /// One block a query head of a row.
    #[must_use]
    pub fn launch(&self, rows: u32, heads: u32, head_dim: u32, splits: u32) -> Launch {
        let few = head_dim.next_multiple_of(32).max(128);
        let block = if splits < MANY_SPLITS { few } else { COMBINE_THREADS };
        Launch { grid: [heads, rows, 1], block, shared_bytes: (MAX_SPLITS + block) * 4 }
    }
}

impl Specialization for AttentionCombine {
    fn name(&self) -> String {
        format!("attention_combine_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::AttentionCombine
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_ATTENTION_COMBINE({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("partial"),
                int("splits"),
                int("head_dim"),
                pointer("row_sequence"),
                pointer("sequences"),
                int("max_rows"),
                int("window"),
                pointer("out"),
                int("out_stride"),
            ]
        }
    }
}

/// Attention of many queries of each sequence on tensor cores (flash attention, Dao 2023), over caches that hold the
/// queries' own keys already: query `i` of a sequence sees the keys up to `past + i`, and of those the last `window`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionPrefill {
    /// fp16 or bf16.
    pub dtype: DType,
    /// A multiple of 8 from 32 to 256.
    pub head_dim: u32,
}

impl AttentionPrefill {
    /// The kernel for heads of `head_dim`; none where there is only [`AttentionDecode`], which serves any rows.
    #[must_use]
    pub fn new(dtype: DType, head_dim: u32) -> Option<Self> {
        let halves = matches!(dtype, DType::F16 | DType::Bf16);
        (halves && (32..=256).contains(&head_dim) && head_dim.is_multiple_of(8))
            .then_some(Self { dtype, head_dim })
    }

    /// One block a [`crate::step::QueryTile`] and query head.
    #[must_use]
    pub fn launch(&self, tiles: u32, q_heads: u32) -> Launch {
        // Rows are padded to whole steps of the tensor cores, and by 16 bytes against bank conflicts.
        let row = self.head_dim.next_multiple_of(32) + 8;
        let keys = if self.head_dim > 128 { 32 } else { 64 };
        Launch {
            grid: [tiles, q_heads, 1],
            block: PREFILL_WARPS * 32,
            shared_bytes: 2 * PREFILL_STAGES * keys * row * 2,
        }
    }
}

impl Specialization for AttentionPrefill {
    fn name(&self) -> String {
        format!("attention_prefill_{}_d{}", self.dtype, self.head_dim)
    }

    fn header(&self) -> Header {
        Header::AttentionPrefill
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_ATTENTION_PREFILL({}, {}, {})", self.name(), c_type(self.dtype), self.head_dim)
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("q"),
                int("q_stride"),
                pointer("sequences"),
                pointer("tiles"),
                int("group"),
                long("k_full"),
                long("k_ring"),
                long("v_full"),
                long("v_ring"),
                int("ring_rows"),
                int("window"),
                float("scale"),
                float("soft_cap"),
                pointer("out"),
                int("out_stride"),
            ]
        }
    }
}
