//! How a weight is made from a checkpoint's tensors.

use serde::{Deserialize, Serialize};

use crate::{QuantizedLinearAttributes, QuantizedPart};

/// A recipe for a weight. Leaves are tensors of the checkpoint by name; a builder evaluates it a weight at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WeightExpr {
    /// The tensor of this name, as it is.
    Tensor {
        /// Its name in the checkpoint.
        name: String,
    },
    /// The tensor of this name as a matrix: all axes but the last are one.
    Matrix {
        /// Its name in the checkpoint.
        name: String,
    },
    /// The tensor of this name as a matrix: all axes but the first are one, as a convolution's kernel is where its windows
    /// do not overlap.
    Flattened {
        /// Its name in the checkpoint.
        name: String,
    },
    /// A matrix `[rows, columns]` turned into `[columns, rows]`.
    Transpose {
        /// What to transpose.
        of: Box<WeightExpr>,
    },
    /// Rows `start..end` of the first axis.
    Rows {
        /// What to cut.
        of: Box<WeightExpr>,
        /// First row.
        start: u64,
        /// One past the last row.
        end: u64,
    },
    /// Joined along the first axis.
    Concat {
        /// The parts, in order.
        parts: Vec<WeightExpr>,
    },
    /// A part of a matrix `[N, K]` that the compiler quantises, each group by itself.
    Quantized {
        /// The matrix.
        of: Box<WeightExpr>,
        /// How.
        attributes: QuantizedLinearAttributes,
        /// Which part.
        part: QuantizedPart,
    },
    /// Values given here.
    Literal {
        /// Row-major.
        values: Vec<f32>,
    },
}

impl WeightExpr {
    /// The tensor `name` as it is.
    #[must_use]
    pub fn tensor(name: impl Into<String>) -> Self {
        Self::Tensor { name: name.into() }
    }

    /// The names of the checkpoint tensors it reads, in order of first use.
    #[must_use]
    pub fn tensors(&self) -> Vec<&str> {
        fn walk<'a>(expr: &'a WeightExpr, names: &mut Vec<&'a str>) {
            match expr {
                WeightExpr::Tensor { name }
                | WeightExpr::Matrix { name }
                | WeightExpr::Flattened { name } => {
                    if !names.contains(&name.as_str()) {
                        names.push(name);
                    }
                }
                WeightExpr::Transpose { of }
                | WeightExpr::Rows { of, .. }
                | WeightExpr::Quantized { of, .. } => {
                    walk(of, names);
                }
                WeightExpr::Concat { parts } => parts.iter().for_each(|part| walk(part, names)),
                WeightExpr::Literal { .. } => {}
            }
        }
        let mut names = Vec::new();
        walk(self, &mut names);
        names
    }
}
