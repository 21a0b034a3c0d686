//! Sessions: a token history and its KV cache, leased to one generation at a time.

mod kv_cache;
mod kv_memory;
mod lease;
mod registry;

pub use kv_cache::{KV_BLOCK_TOKENS, KvCache, KvCost};
pub use kv_memory::{KvMemory, KvMemoryExhausted, KvReservation};
pub use lease::{Lease, SessionState};
pub use registry::{Session, SessionError, SessionInfo, Sessions};
