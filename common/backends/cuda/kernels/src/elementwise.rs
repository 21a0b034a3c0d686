//! Functions of elements by themselves, for what no other kernel does on the way.

use roundhouse_graph::DType;
use serde::{Deserialize, Serialize};

use crate::element::c_type;
use crate::parameter::{Parameter, float, int, long, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const THREADS: u32 = 256;

/// One thread an element.
fn launch(rows: u32, elements: u32) -> Launch {
    Launch { grid: [elements.div_ceil(THREADS).max(1), rows, 1], block: THREADS, shared_bytes: 0 }
}

/// `to = function(from)`: elements of rows of up to three axes, with strides in elements, innermost last. `middle` and
/// `inner` are the sizes of the last two axes. `function` is 0 (none), 1 (SiLU), 2 (GELU), 3 (GELU by tanh), 4
/// (sigmoid), 5 (`parameter · x`) or 6 (soft cap `parameter`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Map {
    /// Type of the argument.
    pub from: DType,
    /// Type of the result.
    pub to: DType,
}

impl Map {
    /// One thread an element.
    #[must_use]
    pub fn launch(&self, rows: u32, elements: u32) -> Launch {
        launch(rows, elements)
    }
}

impl Specialization for Map {
    fn name(&self) -> String {
        format!("map_{}_{}", self.from, self.to)
    }

    fn header(&self) -> Header {
        Header::Elementwise
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_MAP({}, {}, {})", self.name(), c_type(self.from), c_type(self.to))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("from"),
                long("from_row"),
                long("from0"),
                long("from1"),
                long("from2"),
                pointer("to"),
                long("to_row"),
                long("to0"),
                long("to1"),
                long("to2"),
                int("elements"),
                int("middle"),
                int("inner"),
                int("function"),
                float("parameter"),
            ]
        }
    }
}

/// `to = a ∘ b` over grids as of [`Map`]; a stride of 0 repeats an operand. `operation` is 0 (product), 4 (sum), or 1, 2 or
/// 3: the product of `b` with that function of `a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Binary {
    /// Type of all operands.
    pub dtype: DType,
}

impl Binary {
    /// One thread an element.
    #[must_use]
    pub fn launch(&self, rows: u32, elements: u32) -> Launch {
        launch(rows, elements)
    }
}

impl Specialization for Binary {
    fn name(&self) -> String {
        format!("binary_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Elementwise
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_BINARY({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("a"),
                long("a_row"),
                long("a0"),
                long("a1"),
                long("a2"),
                pointer("b"),
                long("b_row"),
                long("b0"),
                long("b1"),
                long("b2"),
                pointer("to"),
                long("to_row"),
                long("to0"),
                long("to1"),
                long("to2"),
                int("elements"),
                int("middle"),
                int("inner"),
                int("operation"),
            ]
        }
    }
}

/// `to[r] = ids[r]`, one element a row, as a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numbers {
    /// Type of the result.
    pub dtype: DType,
}

impl Numbers {
    /// One thread a row.
    #[must_use]
    pub fn launch(&self, rows: u32) -> Launch {
        launch(1, rows)
    }
}

impl Specialization for Numbers {
    fn name(&self) -> String {
        format!("numbers_{}", self.dtype)
    }

    fn header(&self) -> Header {
        Header::Elementwise
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_NUMBERS({}, {})", self.name(), c_type(self.dtype))
    }

    fn parameters(&self) -> &'static [Parameter] {
        const { &[pointer("ids"), pointer("to"), long("to_row"), int("rows")] }
    }
}

/// Makes the tokens that were found those of the next step of at most [`Advance::MOST_ROWS`] sequences, one row each:
/// `ids = tokens`, positions and lengths go on by one. `found [turns, rows]` keeps them; `turns [rows]` counts from 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Advance {}

impl Advance {
    /// The most rows.
    pub const MOST_ROWS: usize = 128;

    /// One thread a row.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch { grid: [1, 1, 1], block: 128, shared_bytes: 0 }
    }
}

impl Specialization for Advance {
    fn name(&self) -> String {
        "advance".to_owned()
    }

    fn header(&self) -> Header {
        Header::Elementwise
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_ADVANCE({})", self.name())
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("tokens"),
                pointer("ids"),
                pointer("positions"),
                pointer("row_sequence"),
                pointer("sequences"),
                pointer("turns"),
                pointer("found"),
                int("rows"),
            ]
        }
    }
}
