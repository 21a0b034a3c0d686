//! The prefix cache of an executor.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roundhouse_backend::KvBlock;

use super::BlockKey;
use super::spill::{Spill, SpillError};
use super::tree::{Evicted, Found, Tree};

/// The bounds of a prefix cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrefixCacheLimits {
    /// Bytes of blocks in memory; with 0 nothing is shared.
    pub memory_bytes: u64,
    /// Where blocks go that leave memory, a folder of this process alone, and how many bytes of them; `None` drops them.
    pub spill: Option<(PathBuf, u64)>,
}

/// How full a prefix cache is and what it was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixCacheUsage {
    /// Tokens that were looked for: of each generation, those that its own cache lacked.
    pub queried_tokens: u64,
    /// Of those, found.
    pub hit_tokens: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes that there are in memory.
    pub memory_bytes_total: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
}

/// Blocks of keys and values in memory and on disk.
pub struct PrefixCache {
    tree: Mutex<Tree<Arc<KvBlock>>>,
    spill: Option<Spill>,
    queried_tokens: AtomicU64,
    hit_tokens: AtomicU64,
}

/// Blocks that stay until this is dropped.
pub struct PinnedPrefix {
    cache: Arc<PrefixCache>,
    path: Vec<BlockKey>,
}

impl PrefixCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`SpillError`] when the folder cannot be used.
    pub fn new(limits: PrefixCacheLimits) -> Result<Arc<Self>, SpillError> {
        let disk = limits.spill.as_ref().map_or(0, |(_, bytes)| *bytes);
        let spill = limits.spill.map(|(folder, _)| Spill::open(folder)).transpose()?;
        Ok(Arc::new(Self {
            tree: Mutex::new(Tree::new(limits.memory_bytes, disk)),
            spill,
            queried_tokens: AtomicU64::new(0),
            hit_tokens: AtomicU64::new(0),
        }))
    }

    /// How full it is and what it was good for.
    #[must_use]
    pub fn usage(&self) -> PrefixCacheUsage {
        let tree = self.tree.lock();
        PrefixCacheUsage {
            queried_tokens: self.queried_tokens.load(Ordering::Relaxed),
            hit_tokens: self.hit_tokens.load(Ordering::Relaxed),
            memory_bytes: tree.memory().used,
            memory_bytes_total: tree.memory().total,
            disk_bytes: tree.disk().used,
        }
    }

    /// Whether there is room for anything.
    pub(super) fn is_enabled(&self) -> bool {
        self.tree.lock().memory().total > 0
    }

    pub(super) fn count(&self, queried_tokens: usize, hit_tokens: usize) {
        self.queried_tokens.fetch_add(queried_tokens as u64, Ordering::Relaxed);
        self.hit_tokens.fetch_add(hit_tokens as u64, Ordering::Relaxed);
    }

    /// Those of the first blocks of a path that are in memory, up to the first that is not.
    pub(super) fn resident(&self, path: &[BlockKey]) -> Vec<Arc<KvBlock>> {
        let found = self.tree.lock().find(path);
        let resident = found.into_iter().map_while(|found| match found {
            Found::Memory(block) => Some(block),
            Found::Disk => None,
        });
        resident.collect()
    }

    /// Brings the first blocks of a path into memory, up to the first that is not there either way. Reads files.
    pub(super) fn fetch(&self, path: &[BlockKey]) {
        let Some(spill) = &self.spill else { return };
        let found = self.tree.lock().find(path);
        for (index, found) in found.into_iter().enumerate() {
            if matches!(found, Found::Memory(_)) {
                continue;
            }
            let Some(block) = spill.read(path[index]) else {
                self.tree.lock().lost(path[index]);
                return;
            };
            let parent = index.checked_sub(1).map(|index| path[index]);
            if !self.insert(path[index], parent, block) {
                return;
            }
        }
    }

    /// Whether a block is in memory, and then used now.
    pub(super) fn touch(&self, key: BlockKey) -> bool {
        self.tree.lock().touch(key)
    }

    /// Takes a block in, after its parent; whether it is there now.
    pub(super) fn insert(&self, key: BlockKey, parent: Option<BlockKey>, block: Arc<KvBlock>) -> bool {
        let bytes = block.bytes().len() as u64;
        let (taken, evicted) = self.tree.lock().insert(key, parent, block, bytes);
        self.spill(evicted);
        taken
    }

    /// Pins the first blocks of a path that are there, unless half of the memory is pinned already.
    pub(super) fn pin(self: &Arc<Self>, mut path: Vec<BlockKey>) -> Option<PinnedPrefix> {
        let mut tree = self.tree.lock();
        if tree.pinned_bytes() > tree.memory().total / 2 {
            return None;
        }
        path.truncate(tree.pin(&path));
        drop(tree);
        Some(PinnedPrefix { cache: Arc::clone(self), path })
    }

    fn spill(&self, evicted: Evicted<Arc<KvBlock>>) {
        let Some(spill) = &self.spill else { return };
        evicted.from_disk.into_iter().for_each(|key| spill.delete(key));
        for (key, block) in evicted.to_disk {
            if !spill.write(key, block) {
                self.tree.lock().lost(key);
            }
        }
    }
}

impl Drop for PinnedPrefix {
    fn drop(&mut self) {
        self.cache.tree.lock().unpin(&self.path);
    }
}
