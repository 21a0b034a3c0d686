//! The device's memory, with guards around each piece.
#![expect(unsafe_code, reason = "memory is handed out as addresses")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;

const ALIGNMENT: usize = 256;
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// A NaN of every float type, so that what nobody wrote is noticed.
const POISON: u8 = 0xff;

/// What is allocated: bytes by address.
#[derive(Debug, Default)]
pub(crate) struct Allocations {
    pieces: BTreeMap<u64, usize>,
    bytes: u64,
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?, ALIGNMENT).ok()
}

impl Allocations {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Option<u64> {
        let layout = layout(bytes)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return None;
        }
        // SAFETY: all three ranges are in the allocation: a guard, `bytes`, a guard.
        unsafe {
            start.write_bytes(GUARD_BYTE, GUARD);
            start.add(GUARD).write_bytes(POISON, bytes);
            start.add(GUARD + bytes).write_bytes(GUARD_BYTE, GUARD);
        }
        let address = start as u64 + GUARD as u64;
        self.pieces.insert(address, bytes);
        self.bytes += bytes as u64;
        Some(address)
    }

    pub(crate) fn free(&mut self, address: u64) {
        let Some(bytes) = self.pieces.remove(&address) else { return };
        self.bytes -= bytes as u64;
        if let Some(layout) = layout(bytes) {
            // SAFETY: `allocate` made this piece with the same layout, and it was in the map until now.
            unsafe { dealloc((address - GUARD as u64) as *mut u8, layout) };
        }
    }

    /// Whether a range is in one piece.
    pub(crate) fn contains(&self, address: u64, bytes: usize) -> bool {
        let piece = self.pieces.range(..=address).next_back();
        piece.is_some_and(|(&start, &length)| address + bytes as u64 <= start + length as u64)
    }

    /// What was written outside of the pieces, if anything was.
    pub(crate) fn broken_guard(&self) -> Option<String> {
        self.pieces.iter().find_map(|(&address, &bytes)| {
            let around = [(address - GUARD as u64, "before"), (address + bytes as u64, "behind")];
            around.into_iter().find_map(|(guard, side)| {
                // SAFETY: `allocate` put a guard at both sides of each piece.
                let guard = unsafe { std::slice::from_raw_parts(guard as *const u8, GUARD) };
                let broken = guard.iter().any(|&byte| byte != GUARD_BYTE);
                broken.then(|| format!("memory is written {side} a piece of {bytes} bytes at {address:#x}"))
            })
        })
    }

    /// Copies to a range that [`Allocations::contains`].
    pub(crate) fn copy_in(&self, to: u64, from: &[u8]) -> bool {
        let inside = self.contains(to, from.len());
        if inside {
            // SAFETY: the range is in a piece, and nothing but the device's calls, which the device locks, touches it.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        }
        inside
    }

    /// Copies from a range.
    pub(crate) fn copy_out(&self, to: &mut [u8], from: u64) -> bool {
        let inside = self.contains(from, to.len());
        if inside {
            // SAFETY: as in `copy_in`.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        }
        inside
    }

    /// Copies from range to range.
    pub(crate) fn copy_within(&self, to: u64, from: u64, bytes: usize) -> bool {
        let inside = self.contains(to, bytes) && self.contains(from, bytes);
        if inside {
            // SAFETY: as in `copy_in`; the ranges may overlap.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        }
        inside
    }

    /// Sets a range.
    pub(crate) fn fill(&self, address: u64, byte: u8, bytes: usize) -> bool {
        let inside = self.contains(address, bytes);
        if inside {
            // SAFETY: as in `copy_in`.
            unsafe { (address as *mut u8).write_bytes(byte, bytes) };
        }
        inside
    }
}

impl Drop for Allocations {
    fn drop(&mut self) {
        let addresses: Vec<u64> = self.pieces.keys().copied().collect();
        for address in addresses {
            self.free(address);
        }
    }
}
