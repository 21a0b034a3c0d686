//! Which rows of which cache buffers are whose.
//!
//! A slab is one buffer a cache tensor, with as many rows as a step can have. When all rows of all slabs are taken a
//! further slab is opened; slabs that nobody uses are closed again, but for one.

use std::sync::Arc;

use parking_lot::Mutex;

/// A row of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) slab: usize,
    pub(crate) row: usize,
}

/// The length of the sequence in each slot; `None` where there is none.
#[derive(Debug)]
pub(crate) struct Slots {
    rows: usize,
    slabs: Vec<Vec<Option<usize>>>,
}

impl Slots {
    /// No slabs yet, of `rows` rows each.
    pub(crate) fn new(rows: usize) -> Self {
        Self { rows: rows.max(1), slabs: Vec::new() }
    }

    /// Takes the first free slot, of the first slab that has one: sequences stay close together. Says, too, whether it is
    /// the only one of its slab.
    pub(crate) fn take(&mut self) -> (Slot, bool) {
        let free = self
            .slabs
            .iter()
            .enumerate()
            .find_map(|(slab, rows)| rows.iter().position(Option::is_none).map(|row| Slot { slab, row }));
        let slot = free.unwrap_or_else(|| {
            self.slabs.push(vec![None; self.rows]);
            Slot { slab: self.slabs.len() - 1, row: 0 }
        });
        let only = self.is_empty(slot.slab);
        self.set_length(slot, Some(0));
        (slot, only)
    }

    /// Gives a slot back.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.set_length(slot, None);
        // The last ones are nobody's: nothing names them.
        while self.slabs.len() > 1
            && self.is_empty(self.slabs.len() - 1)
            && self.is_empty(self.slabs.len() - 2)
        {
            self.slabs.pop();
        }
    }

    /// Tokens in a slot; none in a free one.
    pub(crate) fn length(&self, slot: Slot) -> usize {
        self.slabs.get(slot.slab).and_then(|rows| *rows.get(slot.row)?).unwrap_or(0)
    }

    pub(crate) fn set_length(&mut self, slot: Slot, length: Option<usize>) {
        if let Some(found) = self.slabs.get_mut(slot.slab).and_then(|rows| rows.get_mut(slot.row)) {
            *found = length;
        }
    }

    /// Whether nobody uses a slab.
    fn is_empty(&self, slab: usize) -> bool {
        self.slabs.get(slab).is_none_or(|rows| rows.iter().all(Option::is_none))
    }

    /// Whether a slab has to keep its memory: it has a sequence, or it is the first of those that have none.
    pub(crate) fn is_wanted(&self, slab: usize) -> bool {
        slab < self.slabs.len() && (!self.is_empty(slab) || (0..slab).all(|before| !self.is_empty(before)))
    }
}

/// A slot that is given back when this is dropped.
pub(crate) struct TakenSlot {
    slots: Arc<Mutex<Slots>>,
    slot: Slot,
}

impl TakenSlot {
    /// Takes the first free slot. Says, too, whether it is the only one of its slab.
    pub(crate) fn take(slots: &Arc<Mutex<Slots>>) -> (Self, bool) {
        let (slot, only) = slots.lock().take();
        (Self { slots: Arc::clone(slots), slot }, only)
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    /// Tokens in it.
    pub(crate) fn length(&self) -> usize {
        self.slots.lock().length(self.slot)
    }

    pub(crate) fn set_length(&self, length: usize) {
        self.slots.lock().set_length(self.slot, Some(length));
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        self.slots.lock().give_back(self.slot);
    }
}

#[cfg(test)]
mod tests;
