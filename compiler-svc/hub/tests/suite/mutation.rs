//! Deterministic damage.

/// SplitMix64: the same sequence on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Damages one place in the first `header` bytes, or cuts the bytes short.
pub(crate) fn damage(bytes: &[u8], header: usize, random: &mut Random) -> Vec<u8> {
    const EXTREMES: [u64; 10] =
        [0, 1, u64::MAX, u64::MAX - 7, 1 << 63, 1 << 62, 1 << 40, 1 << 32, (1 << 31) - 1, 0xFFFF_FFFF];
    let mut bytes = bytes.to_vec();
    let at = random.below(header);
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = random.next() as u8,
        3 | 4 => {
            let extreme = EXTREMES[random.below(EXTREMES.len())].to_le_bytes();
            let width = if random.below(2) == 0 { 4 } else { 8 };
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&extreme[..end - at]);
        }
        _ => {
            let other = random.below(header.saturating_sub(16).max(1));
            let length = 16.min(bytes.len() - at).min(bytes.len() - other);
            bytes.copy_within(other..other + length, at);
        }
    }
    bytes
}

/// The most address space that this process has had, in bytes.
pub(crate) fn peak_address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
