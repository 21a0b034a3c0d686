//! Model families: from a checkpoint's config.json to a graph without any cache.
//!
//! [`build_graph`] picks the [`ModelFamily`] that a config names and builds
//! `(input_ids [batch, seq] i64, position_ids [batch, seq] i64) → logits [batch, seq, vocab_size]`, all in fp32, with
//! attention as one op and weights named as in the checkpoint. What the config asks for and the family does not do is
//! refused by the field's name: a graph that comes back computes what the checkpoint means.
//!
//! A new family is a file of its own and a line in [`FAMILIES`].

#![forbid(unsafe_code)]

mod config;
mod error;
mod family;
mod graph_builder;
mod head;
mod llama;
mod rope;

pub use config::{Config, ConfigError};
pub use error::ModelError;
pub use family::{BuildModel, FAMILIES, ModelFamily, ModelGraph, build_graph};
pub use rope::{RopeParameters, RopeScaling};
