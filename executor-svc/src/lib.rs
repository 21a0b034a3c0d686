//! The executor service: pulls engines, holds one KV cache per session, batches sessions and streams tokens.
//!
//! [`backends`] is what can run here; [`engine`] loads engines and keeps them; [`images`] makes of images what stands for their
//! tokens; [`session`] holds token histories and caches; [`prefix_cache`] keeps the keys and values that sequences share; [`scheduler`] runs the
//! generations of one engine together, step by step, on a thread of its own; [`service`] is the gRPC surface.

#![forbid(unsafe_code)]

pub mod backends;
pub mod config;
pub mod engine;
pub mod images;
pub mod metrics;
pub mod prefix_cache;
pub mod scheduler;
pub mod service;
pub mod session;

pub use config::{ExecutorConfig, ImageConfig};
pub use roundhouse_vision as vision;
pub use service::ExecutorService;
