//! Checkpoints: Hugging Face folders, the hub, GGUF files and object stores.
//!
//! [`Checkpoints::open`] takes a model's name, fetches what is not on this machine into a cache, and gives a
//! [`Checkpoint`]: config, tokenizer and chat template in memory, weights to be read by rows.

#![forbid(unsafe_code)]

mod checkpoint;
mod checkpoints;
mod config;
mod digest;
mod directory;
mod error;
mod file;
mod gguf;
mod hub_cache;
mod hub_download;
mod hub_http;
mod layout;
mod lock;
mod object_store;
mod progress;
mod quantized;
mod safetensors;
mod shards;
mod source;
mod transfer;

pub use checkpoint::Checkpoint;
pub use checkpoints::Checkpoints;
pub use config::HubConfig;
pub use error::HubError;
pub use progress::{Cancelled, FetchProgress, FetchStage, Unwatched};
pub use source::ModelSource;
