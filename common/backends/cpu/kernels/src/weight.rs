//! The matrices that activations are multiplied with: plain ones and quantised ones.

use std::ops::Range;

use crate::isa::Kernel;
use crate::simd::Simd;
use crate::{Elements, Isa, Matrix};

/// How the bytes of a quantised matrix are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizedFormat {
    /// A byte in two's complement.
    Int8,
    /// A nibble minus 8: byte `j` of a row holds column `2j` in its low nibble and column `2j + 1` in its high one.
    Int4,
    /// A byte in E4M3: a sign, four bits of exponent (bias 7) and three of mantissa. Its numbers are finite, 448 the
    /// largest; the two codes that are not numbers are not told apart and count as ±480.
    E4m3,
}

impl QuantizedFormat {
    /// Bits of one number.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Int8 | Self::E4m3 => 8,
            Self::Int4 => 4,
        }
    }

    /// Bytes of so many columns, which are whole ones.
    pub(crate) const fn bytes(self, columns: usize) -> usize {
        columns * self.bits() / 8
    }
}

/// A borrowed row-major matrix `[rows, columns]` of few bits, whose rows are cut into groups of columns:
/// `w[n, k] = q[n, k] · scales[n, k / group_size]`, plus `offsets[n, k / group_size]` where there are some.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedMatrix<'a> {
    /// How `q` is read.
    pub format: QuantizedFormat,
    /// `[rows, columns · bits / 8]`.
    pub values: &'a [u8],
    /// `[rows, columns / group_size]`.
    pub scales: Elements<'a>,
    /// As the scales.
    pub offsets: Option<Elements<'a>>,
    /// `N`, the number of outputs.
    pub rows: usize,
    /// `K`, the number of inputs.
    pub columns: usize,
    /// Divides the columns; so many of the format are whole bytes. Whole vectors of them, such as 32, 64 or 128, or all
    /// columns, are multiplied fastest.
    pub group_size: usize,
}

impl QuantizedMatrix<'_> {
    /// Groups of a row.
    pub(crate) const fn groups(&self) -> usize {
        match self.columns.checked_div(self.group_size) {
            Some(groups) => groups,
            None => 0,
        }
    }

    /// How many numbers [`rows_in`](Self::rows_in) needs for so many rows.
    pub(crate) const fn memory_len(&self, rows: usize) -> usize {
        2 * rows * self.groups()
    }

    fn check(&self) {
        let (bits, groups) = (self.group_size * self.format.bits(), self.groups());
        assert!(groups * self.group_size == self.columns, "groups divide the columns");
        assert!(bits % 8 == 0, "groups are whole bytes");
        assert!(
            self.values.len() == self.rows * self.format.bytes(self.columns),
            "a quantised matrix has rows * columns numbers"
        );
        let each_group = |elements: &Elements<'_>| elements.len() == self.rows * groups;
        assert!(each_group(&self.scales), "every group has a scale");
        assert!(self.offsets.as_ref().is_none_or(each_group), "every group has an offset, or none has");
    }

    /// Some rows, with scales and offsets as fp32 in `memory` where they are not so already.
    pub(crate) fn rows_in<'b>(
        &'b self,
        isa: Isa,
        rows: Range<usize>,
        memory: &'b mut [f32],
    ) -> QuantizedRows<'b> {
        let (groups, bytes) = (self.groups(), self.format.bytes(self.columns));
        let len = rows.len() * groups;
        let (of_scales, of_offsets) = memory.split_at_mut(len);
        let part = rows.start * groups..rows.end * groups;
        let offsets = self.offsets.as_ref().map(|offsets| as_fp32(isa, offsets, part.clone(), of_offsets));
        QuantizedRows {
            format: self.format,
            values: &self.values[rows.start * bytes..rows.end * bytes],
            scales: as_fp32(isa, &self.scales, part, of_scales),
            offsets,
            rows: rows.len(),
            columns: self.columns,
            group_size: self.group_size,
        }
    }
}

/// Part of a matrix's scales or offsets as fp32. The next part is asked for: it is read in one go, but not before all the
/// values that this one belongs to.
fn as_fp32<'a>(isa: Isa, elements: &Elements<'a>, part: Range<usize>, memory: &'a mut [f32]) -> &'a [f32] {
    let next = part.end..(part.end + part.len()).min(elements.len());
    match elements.slice(next) {
        Elements::F32(next) => isa.dispatch(Prefetch(next)),
        Elements::F16(next) => isa.dispatch(Prefetch(next)),
        Elements::Bf16(next) => isa.dispatch(Prefetch(next)),
    }
    if let Elements::F32(elements) = elements {
        return &elements[part];
    }
    let memory = &mut memory[..part.len()];
    crate::load(isa, elements.slice(part), memory);
    memory
}

/// Asks for all lines of a slice.
struct Prefetch<'a, T>(&'a [T]);

impl<T> Kernel for Prefetch<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const LINE_BYTES: usize = 64;
        for element in self.0.iter().step_by(LINE_BYTES / size_of::<T>()) {
            s.prefetch(element);
        }
    }
}

/// Rows of a [`QuantizedMatrix`], with scales in fp32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantizedRows<'a> {
    pub(crate) format: QuantizedFormat,
    pub(crate) values: &'a [u8],
    pub(crate) scales: &'a [f32],
    pub(crate) offsets: Option<&'a [f32]>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) group_size: usize,
}

impl QuantizedRows<'_> {
    /// Groups of a row.
    pub(crate) const fn groups(&self) -> usize {
        match self.columns.checked_div(self.group_size) {
            Some(groups) => groups,
            None => 0,
        }
    }

    /// Bytes of the values of a row.
    pub(crate) const fn row_bytes(&self) -> usize {
        self.format.bytes(self.columns)
    }

    /// Checks the lengths that kernels rely on.
    pub(crate) fn check(&self) {
        let groups = self.rows * self.groups();
        assert!(self.groups() * self.group_size == self.columns);
        assert!(self.values.len() == self.rows * self.row_bytes() && self.scales.len() == groups);
        assert!(self.offsets.is_none_or(|offsets| offsets.len() == groups));
    }
}

/// The weight `[N, K]` of a linear layer.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// Of floating-point numbers.
    Plain(Matrix<'a>),
    /// Of few bits.
    Quantized(QuantizedMatrix<'a>),
}

impl<'a> From<Matrix<'a>> for Weight<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::Plain(matrix)
    }
}

impl<'a> From<QuantizedMatrix<'a>> for Weight<'a> {
    fn from(matrix: QuantizedMatrix<'a>) -> Self {
        Self::Quantized(matrix)
    }
}

impl Weight<'_> {
    /// `N`, the number of outputs.
    #[must_use]
    pub const fn rows(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.rows,
            Self::Quantized(matrix) => matrix.rows,
        }
    }

    /// `K`, the number of inputs.
    #[must_use]
    pub const fn columns(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns,
            Self::Quantized(matrix) => matrix.columns,
        }
    }

    /// Bytes of a row, scales and offsets included.
    pub(crate) const fn row_bytes(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns * matrix.elements.element_size(),
            Self::Quantized(matrix) => {
                let offset_size = match &matrix.offsets {
                    Some(offsets) => offsets.element_size(),
                    None => 0,
                };
                let of_groups = matrix.groups() * (matrix.scales.element_size() + offset_size);
                matrix.format.bytes(matrix.columns) + of_groups
            }
        }
    }

    /// How many numbers of memory so many rows need to be read.
    pub(crate) const fn memory_len(&self, rows: usize) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Quantized(matrix) => matrix.memory_len(rows),
        }
    }

    /// Checks that there are as many elements as the shape says.
    pub(crate) fn check(&self) {
        match self {
            Self::Plain(matrix) => matrix.check(),
            Self::Quantized(matrix) => matrix.check(),
        }
    }

    /// Some rows, to be multiplied; `memory` has room for their scales.
    pub(crate) fn rows_in<'b>(
        &'b self,
        isa: Isa,
        rows: Range<usize>,
        memory: &'b mut [f32],
    ) -> WeightRows<'b> {
        match self {
            Self::Plain(matrix) => WeightRows::Plain(matrix.part(rows)),
            Self::Quantized(matrix) => WeightRows::Quantized(matrix.rows_in(isa, rows, memory)),
        }
    }
}

/// Rows of a [`Weight`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum WeightRows<'a> {
    Plain(Elements<'a>),
    Quantized(QuantizedRows<'a>),
}
