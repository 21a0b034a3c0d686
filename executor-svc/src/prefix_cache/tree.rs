//! The forest of blocks and what leaves it when: no blocks, no files, no locks.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use super::BlockKey;

/// Blocks by name, with values of known sizes in memory and on disk. A node is there as long as it has a value or a
/// child; its parent is there as long as it is.
#[derive(Debug)]
pub(super) struct Tree<V> {
    nodes: HashMap<BlockKey, Node<V>>,
    /// Nodes that may leave memory, by last use: in memory, not pinned, and no child of them in memory.
    memory_leaves: BTreeSet<(u64, BlockKey)>,
    /// Nodes that may leave the disk, by last use: only there, not pinned and without children.
    disk_leaves: BTreeSet<(u64, BlockKey)>,
    clock: u64,
    memory: Space,
    disk: Space,
    /// Bytes of the values that are pinned.
    pinned_bytes: u64,
}

#[derive(Debug)]
struct Node<V> {
    parent: Option<BlockKey>,
    children: usize,
    /// Of those, in memory.
    resident_children: usize,
    bytes: u64,
    pins: usize,
    last_used: u64,
    value: Option<V>,
    on_disk: bool,
}

/// Bytes that there are and that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) used: u64,
}

/// Where a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<V> {
    Memory(V),
    Disk,
}

/// What left to make room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evicted<V> {
    /// Values that left memory and are to be written to disk; where that fails, [`Tree::lost`].
    pub(super) to_disk: Vec<(BlockKey, V)>,
    /// What is to be deleted from disk.
    pub(super) from_disk: Vec<BlockKey>,
}

impl<V> Default for Evicted<V> {
    fn default() -> Self {
        Self { to_disk: Vec::new(), from_disk: Vec::new() }
    }
}

impl<V: Clone> Tree<V> {
    /// An empty tree for so many bytes in memory and on disk.
    pub(super) fn new(memory: u64, disk: u64) -> Self {
        Self {
            nodes: HashMap::new(),
            memory_leaves: BTreeSet::new(),
            disk_leaves: BTreeSet::new(),
            clock: 0,
            memory: Space { total: memory, used: 0 },
            disk: Space { total: disk, used: 0 },
            pinned_bytes: 0,
        }
    }

    pub(super) fn memory(&self) -> Space {
        self.memory
    }

    pub(super) fn disk(&self) -> Space {
        self.disk
    }

    pub(super) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Where the first blocks of a path are, up to the first that is nowhere. They are used now.
    pub(super) fn find(&mut self, path: &[BlockKey]) -> Vec<Found<V>> {
        self.clock += 1;
        let mut found = Vec::new();
        for &key in path {
            let Some(node) = self.nodes.get(&key) else { break };
            match (&node.value, node.on_disk) {
                (Some(value), _) => found.push(Found::Memory(value.clone())),
                (None, true) => found.push(Found::Disk),
                (None, false) => break,
            }
            self.change(key, |node, clock| node.last_used = clock);
        }
        found
    }

    /// Whether a block is in memory. If so it is used now.
    pub(super) fn touch(&mut self, key: BlockKey) -> bool {
        self.clock += 1;
        let resident = self.nodes.get(&key).is_some_and(|node| node.value.is_some());
        if resident {
            self.change(key, |node, clock| node.last_used = clock);
        }
        resident
    }

    /// Puts a block into memory, after its parent, `None` for the first of a sequence. Whether it is there now: it is not
    /// taken when its parent is not there or what is pinned leaves no room. Either way others may have left for it.
    pub(super) fn insert(
        &mut self,
        key: BlockKey,
        parent: Option<BlockKey>,
        value: V,
        bytes: u64,
    ) -> (bool, Evicted<V>) {
        let mut evicted = Evicted::default();
        if parent.is_some_and(|parent| !self.nodes.contains_key(&parent)) || bytes > self.memory.total {
            return (false, evicted);
        }
        if self.touch(key) {
            return (true, evicted);
        }
        // Neither its parent nor what there is of it may leave for it.
        let held = [parent, Some(key)];
        held.iter().flatten().for_each(|&key| self.change(key, |node, _| node.pins += 1));
        let has_room = self.make_room(bytes, &mut evicted);
        held.iter().flatten().for_each(|&key| self.change(key, |node, _| node.pins -= 1));
        if !has_room {
            return (false, evicted);
        }
        self.clock += 1;
        self.memory.used += bytes;
        if let Entry::Vacant(place) = self.nodes.entry(key) {
            place.insert(Node {
                parent,
                children: 0,
                resident_children: 0,
                bytes,
                pins: 0,
                last_used: 0,
                value: None,
                on_disk: false,
            });
            if let Some(parent) = parent {
                self.change(parent, |node, _| node.children += 1);
            }
        }
        self.change(key, |node, clock| {
            node.value = Some(value);
            node.last_used = clock;
        });
        self.change_parent(key, |node| node.resident_children += 1);
        (true, evicted)
    }

    /// Keeps the first blocks of a path that are there until [`Tree::unpin`]; how many.
    pub(super) fn pin(&mut self, path: &[BlockKey]) -> usize {
        let found = self.find(path).len();
        for &key in &path[..found] {
            if let Some(node) = self.nodes.get(&key).filter(|node| node.pins == 0) {
                self.pinned_bytes += node.bytes;
            }
            self.change(key, |node, _| node.pins += 1);
        }
        found
    }

    /// Ends a [`Tree::pin`] of these blocks.
    pub(super) fn unpin(&mut self, path: &[BlockKey]) {
        for &key in path {
            self.change(key, |node, _| node.pins = node.pins.saturating_sub(1));
            if let Some(node) = self.nodes.get(&key).filter(|node| node.pins == 0) {
                self.pinned_bytes -= node.bytes;
            }
            self.remove_if_empty(key);
        }
    }

    /// Notes that a block is not on disk, though it was to be.
    pub(super) fn lost(&mut self, key: BlockKey) {
        let Some(node) = self.nodes.get(&key).filter(|node| node.on_disk) else { return };
        self.disk.used -= node.bytes;
        self.change(key, |node, _| node.on_disk = false);
        self.remove_if_empty(key);
    }

    /// Frees so many bytes of memory; whether what is pinned let it.
    fn make_room(&mut self, bytes: u64, evicted: &mut Evicted<V>) -> bool {
        while self.memory.total.saturating_sub(self.memory.used) < bytes {
            let Some(&(_, key)) = self.memory_leaves.first() else { return false };
            self.leave_memory(key, evicted);
        }
        true
    }

    fn leave_memory(&mut self, key: BlockKey, evicted: &mut Evicted<V>) {
        let Some(node) = self.nodes.get(&key) else { return };
        let (bytes, on_disk) = (node.bytes, node.on_disk);
        self.memory.used -= bytes;
        let mut value = None;
        self.change(key, |node, _| value = node.value.take());
        self.change_parent(key, |node| node.resident_children -= 1);
        // It stays while its children leave the disk for it.
        self.change(key, |node, _| node.pins += 1);
        let moves = !on_disk && self.make_room_on_disk(bytes, evicted);
        self.change(key, |node, _| node.pins -= 1);
        if moves {
            self.disk.used += bytes;
            self.change(key, |node, _| node.on_disk = true);
            evicted.to_disk.extend(value.map(|value| (key, value)));
        }
        self.remove_if_empty(key);
    }

    fn make_room_on_disk(&mut self, bytes: u64, evicted: &mut Evicted<V>) -> bool {
        if bytes > self.disk.total {
            return false;
        }
        while self.disk.total - self.disk.used < bytes {
            let Some(&(_, key)) = self.disk_leaves.first() else { return false };
            evicted.from_disk.push(key);
            self.lost(key);
        }
        true
    }

    /// Removes a node that is nowhere and has no children, and the ones above it that were there for it only.
    fn remove_if_empty(&mut self, key: BlockKey) {
        let mut next = Some(key);
        while let Some(key) = next {
            let empty = self.nodes.get(&key).is_some_and(|node| {
                node.value.is_none() && !node.on_disk && node.children == 0 && node.pins == 0
            });
            if !empty {
                return;
            }
            next = self.nodes.remove(&key).and_then(|node| node.parent);
            if let Some(parent) = next {
                self.change(parent, |node, _| node.children -= 1);
            }
        }
    }

    /// Changes a node and keeps the orders by which nodes leave; `change` is told what time it is.
    fn change(&mut self, key: BlockKey, change: impl FnOnce(&mut Node<V>, u64)) {
        let Some(node) = self.nodes.get_mut(&key) else { return };
        self.memory_leaves.remove(&(node.last_used, key));
        self.disk_leaves.remove(&(node.last_used, key));
        change(node, self.clock);
        if node.pins > 0 {
            return;
        }
        if node.value.is_some() && node.resident_children == 0 {
            self.memory_leaves.insert((node.last_used, key));
        }
        if node.value.is_none() && node.on_disk && node.children == 0 {
            self.disk_leaves.insert((node.last_used, key));
        }
    }

    fn change_parent(&mut self, key: BlockKey, change: impl FnOnce(&mut Node<V>)) {
        if let Some(parent) = self.nodes.get(&key).and_then(|node| node.parent) {
            self.change(parent, |node, _| change(node));
        }
    }
}

#[cfg(test)]
mod tests;
