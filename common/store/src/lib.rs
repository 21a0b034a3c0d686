//! Object storage: content addressing, upload, and the local pull cache.
//!
//! An [`EngineStore`] is a local folder or a bucket of S3, Google Cloud Storage or Azure, through [`object_store`]. It
//! holds blobs by their SHA-256 and a manifest for each engine, which is written last and once. A [`LocalCache`] brings
//! an engine's blobs to local disk, verified, once for all engines and processes that use them. [`Versions`] are small
//! records that several processes write in turn.

#![forbid(unsafe_code)]

mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
mod delete;
mod digest;
mod engine_store;
mod error;
mod options;
mod place;
mod progress;
mod publish;
mod read;
mod staging;
mod upload;
mod versions;

pub use cache::{CacheLimits, CacheUsage, LocalCache, PulledEngine};
pub use delete::Deleted;
pub use engine_store::{EnginePage, EngineStore, ListRequest};
pub use error::{Source, StoreError};
pub use options::StoreOptions;
pub use progress::{NoProgress, TransferProgress, TransferUpdate};
pub use publish::Published;
pub use versions::{Version, Versions, Written};
