//! Sessions: a token history and its KV cache, leased to one generation at a time, and stored so that they outlive their
//! executor.

mod archive;
mod kv_cache;
mod kv_memory;
mod lease;
mod live;
mod record;
mod registry;

pub use archive::{ArchiveError, SessionArchive, StoredSession};
pub use kv_cache::{KV_BLOCK_TOKENS, KvCache, KvCost};
pub use kv_memory::{KvMemory, KvMemoryExhausted, KvReservation};
pub use lease::{Lease, SessionState, Turn};
pub use live::{Session, SessionInfo, SessionTerms};
pub use record::{RecordError, SessionRecord, TurnEnd};
pub use registry::{SessionError, SessionFilter, Sessions};
