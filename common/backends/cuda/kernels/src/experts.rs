//! The chosen experts of a mixture.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::c_type;
use crate::parameter::{Parameter, int, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const WARPS: u32 = 8;

/// `gated[r, k] = silu(gate · x[r]) · (up · x[r])` of expert `chosen[r, k]`, with the weight `[experts · 2 · intermediate,
/// hidden]` as in [`roundhouse_graph::Op::MixtureOfExperts`]. Rows are `x_stride`, `chosen_stride` and `gated_stride` (at
/// least `top_k · intermediate`) elements apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertsGateUp {
    /// Type of activations and weights.
    pub dtype: DType,
}

impl ExpertsGateUp {
    /// One warp an output.
    #[must_use]
    pub fn launch(&self, rows: u32, top_k: u32, intermediate: u32) -> Launch {
        Launch { grid: [intermediate.div_ceil(WARPS), top_k, rows], block: WARPS * 32, shared_bytes: 0 }
    }
}

impl Specialization for ExpertsGateUp {
    fn name(&self) -> String {
        format!("experts_gate_up_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Experts
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_EXPERTS_GATE_UP({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("x"),
                int("x_stride"),
                pointer("chosen"),
                int("chosen_stride"),
                pointer("weight"),
                pointer("gated"),
                int("gated_stride"),
                int("hidden"),
                int("intermediate"),
                int("experts"),
            ]
        }
    }
}

/// `out[r] = Σ_k shares[r, k] · (down · gated[r, k])` of the experts `chosen[r, k]`, with the weight `[experts · hidden,
/// intermediate]`; shares are fp32.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertsDown {
    /// Type of activations and weights.
    pub dtype: DType,
}

impl ExpertsDown {
    /// One warp an output.
    #[must_use]
    pub fn launch(&self, rows: u32, hidden: u32) -> Launch {
        Launch { grid: [hidden.div_ceil(WARPS), rows, 1], block: WARPS * 32, shared_bytes: 0 }
    }
}

impl Specialization for ExpertsDown {
    fn name(&self) -> String {
        format!("experts_down_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Experts
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_EXPERTS_DOWN({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("gated"),
                int("gated_stride"),
                pointer("chosen"),
                int("chosen_stride"),
                pointer("shares"),
                int("shares_stride"),
                pointer("weight"),
                pointer("out"),
                int("out_stride"),
                int("hidden"),
                int("intermediate"),
                int("experts"),
                int("top_k"),
            ]
        }
    }
}
