//! Numbers that look random and are the same on every machine.

/// SplitMix64 (Steele et al. 2014): a stream that a seed determines.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number below `bound`; 0 if that is 0. Biased by less than `bound / 2⁶⁴`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % (bound as u64).max(1)) as usize
    }

    /// Uniform in `-1..1`, a multiple of `2⁻²³`.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// `count` numbers, uniform in `center - scale..center + scale`.
    pub fn uniform_vec(&mut self, count: usize, center: f32, scale: f32) -> Vec<f32> {
        (0..count).map(|_| center + scale * self.uniform()).collect()
    }

    /// `count` tokens of a vocabulary.
    pub fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab_size) as u32).collect()
    }
}
