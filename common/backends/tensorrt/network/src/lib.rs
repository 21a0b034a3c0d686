//! TensorRT networks as data.
//!
//! Converters write a [`Network`]: every layer with its operands and attributes, as `INetworkDefinition` will be given
//! them, and what dtype and dimensions its output has. The builder replays it into TensorRT and checks that TensorRT
//! infers the same; an interpreter runs it where no GPU can. Nothing here needs TensorRT.

#![forbid(unsafe_code)]

mod constant;
mod data_type;
mod error;
mod floats;
mod infer;
mod layer;
mod network;
mod profile;
mod stored;
mod verify;

pub use constant::{Constant, RotaryTable, Values};
pub use data_type::DataType;
pub use error::NetworkError;
pub use layer::{
    Activation, CausalMask, ElementWise, FillDims, LayerKind, MatrixOp, Reduce, Reshape, SliceOperand, Unary,
};
pub use network::{DYNAMIC, Dims, Layer, Network, Output, Tensor, TensorId};
pub use profile::{InputRange, Profile};
