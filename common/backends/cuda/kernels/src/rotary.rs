//! Rotation of queries and keys, their head norms, and writing keys and values to the cache.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::c_type;
use crate::parameter::{Parameter, float, int, long, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const WARPS: u32 = 4;

/// RMSNorm of each head of queries and keys before the rotation (Qwen3, Gemma 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HeadNorm {
    /// None.
    None,
    /// `weight`.
    Rms,
    /// `1 + weight`.
    RmsUnitOffset,
}

/// Takes rows `[q_heads + 2 · kv_heads, head_dim]` (queries, keys, values) apart: normalises and rotates queries to
/// `q_out` (which may be `qkv`: in place), normalises and rotates keys into the cache, copies values into the cache.
/// The first `rotary_dim` dimensions are rotated (0: none, for learned positions), as pairs of neighbours if
/// `interleaved` is not 0. See [`crate::step`] for where.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RotaryAppend {
    /// Type of all operands but `inv_freq`, which is fp32.
    pub dtype: DType,
    /// The head norms.
    pub head_norm: HeadNorm,
}

impl RotaryAppend {
    /// One warp a head of a row.
    #[must_use]
    pub fn launch(&self, rows: u32, q_heads: u32, kv_heads: u32, head_dim: u32) -> Launch {
        Launch {
            grid: [rows, (q_heads + 2 * kv_heads).div_ceil(WARPS), 1],
            block: WARPS * 32,
            shared_bytes: WARPS * head_dim * 4,
        }
    }
}

impl Specialization for RotaryAppend {
    fn name(&self) -> String {
        let norm = match self.head_norm {
            HeadNorm::None => "",
            HeadNorm::Rms => "_norm",
            HeadNorm::RmsUnitOffset => "_norm1",
        };
        format!("rotary_append_{}{norm}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Rotary
    }

    fn instantiation(&self) -> String {
        let norm = match self.head_norm {
            HeadNorm::None => 0,
            HeadNorm::Rms => 1,
            HeadNorm::RmsUnitOffset => 2,
        };
        format!("INSTANTIATE_ROTARY_APPEND({}, {}, {norm})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("qkv"),
                int("row_stride"),
                int("q_heads"),
                int("kv_heads"),
                int("head_dim"),
                int("rotary_dim"),
                int("interleaved"),
                pointer("inv_freq"),
                float("attention_factor"),
                pointer("q_norm"),
                pointer("k_norm"),
                float("epsilon"),
                pointer("positions"),
                pointer("row_sequence"),
                pointer("sequences"),
                long("k_full"),
                long("k_ring"),
                long("v_full"),
                long("v_ring"),
                int("ring_rows"),
                pointer("q_out"),
                int("q_out_stride"),
            ]
        }
    }
}
