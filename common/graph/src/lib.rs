//! The graph: what a model is between its config and an engine.
//!
//! A [`Graph`] is a list of [`Node`]s in execution order over [`Value`]s that each have a [`DType`] and a shape of
//! [`Dim`]s. Models build one without any cache; passes edit it through a [`Rewriter`]; [`verify`] holds for every
//! graph that leaves a pass; builders and runtimes read it. Weights are named values with a recipe
//! ([`WeightExpr`]) that says how to make them from a checkpoint's tensors.

#![forbid(unsafe_code)]

mod dim;
mod dtype;
mod dump;
mod error;
mod graph;
mod infer;
mod op;
mod quantization;
mod report;
mod rewrite;
mod verify;
mod weight;

pub use dim::{Dim, Shape, Symbol, SymbolId};
pub use dtype::DType;
pub use error::GraphError;
pub use graph::{Graph, Node, NodeId, Origin, Value, ValueId};
pub use infer::infer;
pub use op::{AttentionAttributes, ExpertAttributes, GeluApproximation, Op, RotaryAttributes};
pub use quantization::{Quantization, QuantizedLinearAttributes, QuantizedPart, WeightFormat};
pub use report::PassReport;
pub use rewrite::{Removed, Rewriter};
pub use verify::verify;
pub use weight::WeightExpr;
