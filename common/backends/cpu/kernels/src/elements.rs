//! Slices of numbers of one of the three floating-point types, and matrices of them.

use std::ops::Range;

use half::{bf16, f16};

/// Borrowed numbers of a type that is known at run time: weights in a mapped file, or a KV cache.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// IEEE 754 binary32.
    F32(&'a [f32]),
    /// IEEE 754 binary16.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// The elements of a KV cache.
pub type KvElements<'a> = Elements<'a>;

impl<'a> Elements<'a> {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn element_size(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F16(_) | Self::Bf16(_) => 2,
        }
    }

    /// Those of a range.
    ///
    /// # Panics
    /// If the range is not within them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Elements<'a> {
        match self {
            Self::F32(values) => Elements::F32(&values[range]),
            Self::F16(values) => Elements::F16(&values[range]),
            Self::Bf16(values) => Elements::Bf16(&values[range]),
        }
    }
}

/// As [`Elements`], to write to.
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// IEEE 754 binary32.
    F32(&'a mut [f32]),
    /// IEEE 754 binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl ElementsMut<'_> {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of a range, borrowed from these.
    ///
    /// # Panics
    /// If the range is not within them.
    #[must_use]
    pub fn slice(&mut self, range: Range<usize>) -> ElementsMut<'_> {
        match self {
            Self::F32(values) => ElementsMut::F32(&mut values[range]),
            Self::F16(values) => ElementsMut::F16(&mut values[range]),
            Self::Bf16(values) => ElementsMut::Bf16(&mut values[range]),
        }
    }
}

/// A borrowed row-major matrix `[rows, columns]`: a weight `[N, K]` of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// `rows * columns` elements.
    pub elements: Elements<'a>,
    /// `N`, the number of outputs.
    pub rows: usize,
    /// `K`, the number of inputs.
    pub columns: usize,
}

impl<'a> Matrix<'a> {
    /// The elements of some rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Elements<'a> {
        self.elements.slice(rows.start * self.columns..rows.end * self.columns)
    }

    /// Checks that there are as many elements as the shape says.
    pub(crate) fn check(&self) {
        assert_eq!(self.elements.len(), self.rows * self.columns, "a matrix has rows * columns elements");
    }
}
