//! Model families: from a checkpoint's config.json to a graph without any cache.
//!
//! [`build_graph`] picks the [`ModelFamily`] that a config names and builds
//! `(input_ids [batch, seq] i64, position_ids [batch, seq] i64) → logits [batch, seq, vocab_size]`, all in fp32, with
//! attention as one op and weights named as in the checkpoint. A vision-language model has a graph each for its other
//! components as well. What the config asks for and the family does not do is
//! refused by the field's name: a graph that comes back computes what the checkpoint means.
//!
//! A new family is a file of its own under `families/`, put together from the parts in `decoder.rs`, `pre_norm.rs`,
//! `attention.rs`, `feed_forward.rs`, `mixture.rs` and `norm.rs`, and a line in the table beside it:
//! docs/adding-a-model.md shows one.

#![forbid(unsafe_code)]

mod attention;
mod config;
mod decoder;
mod error;
mod families;
mod family;
mod feed_forward;
mod graph_builder;
mod head;
mod layer_types;
mod mixture;
mod norm;
mod pre_norm;
mod refused_fields;
mod rope;
mod siglip;

pub use config::{Config, ConfigError};
pub use error::ModelError;
pub use families::FAMILIES;
pub use family::{BuildComponents, BuildModel, ModelFamily, ModelGraph, ModelSource, build_graph};
pub use rope::{RopeForm, RopeParameters, RopeScaling};
