//! Softmax, and the choice of experts, which is one too.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::c_type;
use crate::parameter::{Parameter, int, long, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const THREADS: u32 = 128;

/// `to = softmax(from)` of each of the groups of `width` elements that lie side by side in a row. `to` may be `from`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Softmax {
    /// Type of both.
    pub dtype: DType,
}

impl Softmax {
    /// One block a group.
    #[must_use]
    pub fn launch(&self, rows: u32, groups: u32) -> Launch {
        Launch { grid: [rows, groups, 1], block: THREADS, shared_bytes: THREADS / 32 * 4 }
    }
}

impl Specialization for Softmax {
    fn name(&self) -> String {
        format!("softmax_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Softmax
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_SOFTMAX({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const { &[pointer("from"), long("from_row"), pointer("to"), long("to_row"), int("width")] }
    }
}

/// The `top_k` experts of each row by router logit, the lower number where two are equal, and the softmax of the logits
/// over all experts at those; scaled to sum to one where `normalize` is not 0. Numbers are `int`, shares fp32.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Router {
    /// Type of the logits.
    pub dtype: DType,
}

impl Router {
    /// One warp a row.
    #[must_use]
    pub fn launch(&self, rows: u32, experts: u32) -> Launch {
        Launch { grid: [rows, 1, 1], block: 32, shared_bytes: experts * 4 }
    }
}

impl Specialization for Router {
    fn name(&self) -> String {
        format!("router_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Softmax
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_ROUTER({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("logits"),
                long("logits_row"),
                pointer("chosen"),
                long("chosen_row"),
                pointer("shares"),
                long("shares_row"),
                int("experts"),
                int("top_k"),
                int("normalize"),
            ]
        }
    }
}
