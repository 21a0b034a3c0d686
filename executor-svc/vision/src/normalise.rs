//! From 8-bit samples to the values that a vision tower takes.

/// `(sample · rescale_factor − mean) / std` for each channel and each sample, rounded where Transformers rounds: the product in
/// double precision and then to single, the rest in single.
#[derive(Debug, Clone)]
pub(crate) struct Normalisation {
    /// `[3][256]`.
    table: [[f32; 256]; 3],
}

impl Normalisation {
    pub(crate) fn new(rescale_factor: f64, mean: [f64; 3], std: [f64; 3]) -> Self {
        let table = std::array::from_fn(|channel| {
            let (mean, std) = (mean[channel] as f32, std[channel] as f32);
            std::array::from_fn(|sample| ((sample as f64 * rescale_factor) as f32 - mean) / std)
        });
        Self { table }
    }

    /// The value of a sample of a channel (0 to 2).
    pub(crate) fn value(&self, channel: usize, sample: u8) -> f32 {
        self.table[channel][usize::from(sample)]
    }
}
