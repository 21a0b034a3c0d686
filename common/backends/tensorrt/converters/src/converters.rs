//! The converters: what layers an op becomes.
//!
//! Ops compute in fp32 and round once, when they store, whatever the dtype of their values ([`roundhouse_graph::Op`]).
//! Where one layer does all of an op, TensorRT's arithmetic in the dtype itself is that; where an op is several layers,
//! they are fp32 between a cast of the operands and one of the result.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod cast;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod experts;
pub(crate) mod last_token;
pub(crate) mod layout;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod rotary;
pub(crate) mod softmax;
