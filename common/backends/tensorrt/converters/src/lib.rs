//! Graphs to TensorRT networks, one converter for each op.
//!
//! [`convert()`] walks a lowered graph in execution order. For each node it looks up the [`Converter`] of the op in
//! [`CONVERTERS`], asks it whether it can convert the node in the form that it has, and lets it write the layers; then
//! it checks that what they make has the dtype and dimensions of the graph's value. [`coverage()`] only asks, and lists
//! every node that cannot be converted.
//!
//! A layer's name begins with the name of the graph value that it was made for, so that an error of TensorRT's builder
//! leads to the node. Layers that several nodes share carry the name of the first, or of the input whose dimensions
//! they read; arithmetic on dimensions begins with `shapes/`.

#![forbid(unsafe_code)]

mod context;
mod convert;
mod converters;
mod coverage;
mod error;
mod options;
mod profiles;
mod registry;
mod reshape;
mod shapes;
mod signature;
mod site;

pub use convert::{Converted, convert};
pub use converters::attention::AttentionChoice;
pub use coverage::{Uncovered, coverage};
pub use error::ConvertError;
pub use registry::{CONVERTERS, Converter, UNSUPPORTED_OPS};
