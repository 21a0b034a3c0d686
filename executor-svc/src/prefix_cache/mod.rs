//! Keys and values that sequences share: what one computed, others with the same first tokens take in.
//!
//! A sequence's first tokens are cut into blocks of [`BLOCK_TOKENS`]. A block is named by a digest of its tokens, of all
//! tokens before them and of who may share it ([`BlockKey`]), so the blocks of all sequences form a forest, one tree for
//! each engine, tenant and salt, in which equal prefixes are one path. [`PrefixCache`] keeps the blocks within a budget of
//! bytes, the least recently used leaf leaving first, and those that are pinned never; where it has a folder, what
//! leaves memory goes to disk. [`SharedPrefix`] is one sequence's way to it.

mod cache;
mod key;
mod shared;
mod spill;
mod tree;

pub use cache::{PinnedPrefix, PrefixCache, PrefixCacheLimits, PrefixCacheUsage};
pub use key::BlockKey;
pub use shared::SharedPrefix;
pub use spill::SpillError;

/// Tokens of a block. What does not fill one is computed again: with so few, in a step that takes no longer than one token's
/// where the weights' way from memory is what takes the time.
pub const BLOCK_TOKENS: usize = 16;
