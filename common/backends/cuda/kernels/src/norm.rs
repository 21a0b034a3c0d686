//! RMSNorm and LayerNorm.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::{c_type, flag};
use crate::parameter::{Parameter, float, int, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + epsilon) · weight`.
    Rms {
        /// Whether the factor is `1 + weight`.
        unit_offset: bool,
    },
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) · weight + bias`; a bias of address 0 is none.
    Layer,
}

/// A norm of rows, with the additions around it.
///
/// `h = x (+ before)`, rounded and stored in `sum` where `add_before`; `out = norm(h) (+ after)`. A row has `groups` parts
/// of `width` that are normalised each by itself (heads). `x`, `before` and `sum` have rows `x_stride` elements apart,
/// `out` and `after` `out_stride`. `sum` may be `x` or `before`; `out` may be `x`, `sum` or `after`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Norm {
    /// Type of all operands.
    pub dtype: DType,
    /// Which.
    pub kind: NormKind,
    /// Whether `before` is added first.
    pub add_before: bool,
    /// Whether `after` is added last.
    pub add_after: bool,
}

impl Norm {
    /// One block a group.
    #[must_use]
    pub fn launch(&self, rows: u32, groups: u32, width: u32) -> Launch {
        let threads = width.div_ceil(8).next_multiple_of(32).clamp(32, 512);
        Launch { grid: [rows, groups, 1], block: threads, shared_bytes: (32 + width.next_multiple_of(8)) * 4 }
    }
}

impl Specialization for Norm {
    fn name(&self) -> String {
        let kind = match self.kind {
            NormKind::Rms { unit_offset: false } => "rms",
            NormKind::Rms { unit_offset: true } => "rms1",
            NormKind::Layer => "layer",
        };
        let before = if self.add_before { "_before" } else { "" };
        let after = if self.add_after { "_after" } else { "" };
        format!("norm_{kind}_{}{before}{after}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Norm
    }

    fn instantiation(&self) -> String {
        let (layer, unit_offset) = match self.kind {
            NormKind::Rms { unit_offset } => (false, unit_offset),
            NormKind::Layer => (true, false),
        };
        format!(
            "INSTANTIATE_NORM({}, {}, {}, {}, {}, {})",
            self.name(),
            c_type(self.dtype),
            flag(layer),
            flag(unit_offset),
            flag(self.add_before),
            flag(self.add_after)
        )
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("x"),
                int("x_stride"),
                pointer("before"),
                pointer("sum"),
                pointer("weight"),
                pointer("bias"),
                pointer("after"),
                pointer("out"),
                int("out_stride"),
                int("width"),
                float("epsilon"),
            ]
        }
    }
}
