//! Tensors of the interpreter.

use half::{bf16, f16};
use roundhouse_graph::DType;

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Of any float dtype.
    Float(Vec<f32>),
    /// Integers, or truth values as 0 and 1.
    Int(Vec<i64>),
}

/// A dense tensor. Its dtype is that of the graph's value it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// As many elements as the product of `shape`.
    pub data: Data,
}

impl Tensor {
    /// A float tensor.
    #[must_use]
    pub fn float(shape: &[usize], values: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), data: Data::Float(values) }
    }

    /// An integer tensor.
    #[must_use]
    pub fn int(shape: &[usize], values: Vec<i64>) -> Self {
        Self { shape: shape.to_vec(), data: Data::Int(values) }
    }

    /// A float tensor of zeros.
    #[must_use]
    pub fn zeros(shape: &[usize]) -> Self {
        Self::float(shape, vec![0.0; shape.iter().product()])
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Float(values) => values.len(),
            Data::Int(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of a float tensor; none of an integer tensor.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        match &self.data {
            Data::Float(values) => values,
            Data::Int(_) => &[],
        }
    }

    /// The elements of a float tensor, to be changed; none of an integer tensor.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::Float(values) => values,
            Data::Int(_) => &mut [],
        }
    }

    /// The elements of an integer tensor; none of a float tensor.
    #[must_use]
    pub fn ints(&self) -> &[i64] {
        match &self.data {
            Data::Int(values) => values,
            Data::Float(_) => &[],
        }
    }

    /// How many elements there are before, along and after an axis.
    pub(crate) fn around(&self, axis: usize) -> [usize; 3] {
        let (before, after) = self.shape.split_at(axis);
        [before.iter().product(), after[0], after[1..].iter().product()]
    }
}

/// A number as a dtype stores it, to the nearest, ties to even. Integers and truth values are left alone.
#[must_use]
pub fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F32 | DType::I64 | DType::Bool | DType::U8 => value,
    }
}
