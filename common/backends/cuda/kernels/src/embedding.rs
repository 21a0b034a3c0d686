//! Rows of tables.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::c_type;
use crate::parameter::{Parameter, float, int, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const THREADS: u32 = 128;

/// `out[r] = scale · table[ids[r]] (+ position_table[positions[r]])`; an id outside the table gives zeros.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Embedding {
    /// Type of the tables and of the output.
    pub dtype: DType,
}

impl Embedding {
    /// One block a row.
    #[must_use]
    pub fn launch(&self, rows: u32) -> Launch {
        Launch { grid: [rows, 1, 1], block: THREADS, shared_bytes: 0 }
    }
}

impl Specialization for Embedding {
    fn name(&self) -> String {
        format!("embedding_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Embedding
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_EMBEDDING({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("ids"),
                pointer("table"),
                pointer("positions"),
                pointer("position_table"),
                pointer("out"),
                int("width"),
                int("vocabulary"),
                int("position_count"),
                float("scale"),
            ]
        }
    }
}

/// `out[i] = x[selected[i]]`; a negative index writes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SelectRows {
    /// Type of both.
    pub dtype: DType,
}

impl SelectRows {
    /// One block a selected row.
    #[must_use]
    pub fn launch(&self, rows: u32) -> Launch {
        Launch { grid: [rows, 1, 1], block: THREADS, shared_bytes: 0 }
    }
}

impl Specialization for SelectRows {
    fn name(&self) -> String {
        format!("select_rows_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Embedding
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_SELECT_ROWS({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const { &[pointer("x"), int("x_stride"), pointer("selected"), pointer("out"), int("width")] }
    }
}
