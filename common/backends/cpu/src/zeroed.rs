//! Zeroed memory that the system gives page by page, when it is first written.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// From this size on memory comes from the system itself. An allocator writes zeros over what others have returned to it, and
/// then all of it is resident, however little is used.
const MAPPED_BYTES: usize = 64 * 1024;

/// Bytes, zero at first, aligned for every number.
pub(crate) struct Zeroed {
    memory: Memory,
    len: usize,
}

enum Memory {
    Mapped(MmapMut),
    Allocated(Vec<u64>),
}

impl Zeroed {
    /// So many.
    pub(crate) fn new(len: usize) -> Self {
        let mapped = if len < MAPPED_BYTES { None } else { MmapMut::map_anon(len).ok() };
        // A process has so many mappings; the allocator has memory where they are used up.
        let memory =
            mapped.map_or_else(|| Memory::Allocated(vec![0; len.div_ceil(size_of::<u64>())]), Memory::Mapped);
        Self { memory, len }
    }
}

impl Deref for Zeroed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Mapped(bytes) => bytes,
            Memory::Allocated(words) => &bytemuck::cast_slice(words)[..self.len],
        }
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Mapped(bytes) => bytes,
            Memory::Allocated(words) => &mut bytemuck::cast_slice_mut(words)[..self.len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_zero_and_can_be_written() {
        for len in [0, 1, 7, 8, MAPPED_BYTES - 1, MAPPED_BYTES, MAPPED_BYTES + 3] {
            let mut bytes = Zeroed::new(len);
            assert!(bytes.len() == len && bytes.iter().all(|&byte| byte == 0));
            bytes.fill(7);
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_not_written_is_not_resident_however_much_was_returned_before() {
        const COUNT: usize = 128;
        const BYTES: usize = 1 << 20;
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let many = || (0..COUNT).map(|_| Zeroed::new(BYTES)).collect::<Vec<_>>();
        let mut written = many();
        written.iter_mut().for_each(|bytes| bytes.fill(1));
        let all_resident = resident();
        drop(written);
        let unwritten = many();
        let gained = all_resident.saturating_sub(resident());
        assert!(gained > COUNT * BYTES / 2, "only {gained} bytes of {} came back", COUNT * BYTES);
        drop(unwritten);
    }
}
