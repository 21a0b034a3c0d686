//! The next tokens.

use serde::{Deserialize, Serialize};

use crate::parameter::{Parameter, int, long, pointer};
use crate::source::Header;
use crate::{Launch, kernel::Specialization};

const THREADS: u32 = 256;
const SAMPLE_THREADS: u32 = 1024;

/// The largest logit's token of each row, the lower one among equals; -1 where a logit of the row is NaN or infinite.
///
/// `logits` are fp32, rows `stride` elements apart. `best [rows] u64` and `count [rows] u32` have to be zeros, and are
/// afterwards; `out [rows] int`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ArgMax {}

impl ArgMax {
    /// Several blocks a row.
    #[must_use]
    pub fn launch(&self, rows: u32, vocabulary: u32) -> Launch {
        let blocks = vocabulary.div_ceil(THREADS * 8).clamp(1, 64);
        Launch { grid: [blocks, rows, 1], block: THREADS, shared_bytes: THREADS / 32 * 8 }
    }
}

impl Specialization for ArgMax {
    fn name(&self) -> String {
        "arg_max".to_owned()
    }

    fn header(&self) -> Header {
        Header::Sampling
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_ARG_MAX({})", self.name())
    }

    fn parameters(&self) -> &'static [Parameter] {
        const {
            &[
                pointer("logits"),
                long("stride"),
                int("vocabulary"),
                pointer("best"),
                pointer("count"),
                pointer("out"),
            ]
        }
    }
}

/// A token of each row, as [`SampleRow`] says: repetition, then frequency and presence penalty; temperature; top-k; top-p;
/// min-p; a draw. At temperature 0 the largest that is a number, the lower token among equals.
///
/// `logits` are fp32, rows `stride` elements apart, and are changed by penalties; negative infinity is never drawn.
/// `rows` are [`SampleRow`]s; `out [rows] int`. Where a row has `seen`, the token is counted there. A seed and a
/// counter give the same draw on every device, but not the one that the processor's sampler makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sample {}

impl Sample {
    /// One block a row.
    #[must_use]
    pub fn launch(&self, rows: u32) -> Launch {
        Launch { grid: [rows, 1, 1], block: SAMPLE_THREADS, shared_bytes: (256 + 32 + 32 + 2) * 8 }
    }
}

impl Specialization for Sample {
    fn name(&self) -> String {
        "sample".to_owned()
    }

    fn header(&self) -> Header {
        Header::Sampling
    }

    fn instantiation(&self) -> String {
        format!("INSTANTIATE_SAMPLE({})", self.name())
    }

    fn parameters(&self) -> &'static [Parameter] {
        const { &[pointer("logits"), long("stride"), int("vocabulary"), pointer("rows"), pointer("out")] }
    }
}

/// How a row is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// The key of its random numbers.
    pub seed: u64,
    /// How many it has used: one a draw.
    pub counter: u64,
    /// Device address of `int [vocabulary]`: 0 for a token that was not there, 1 for one of the prompt only, 1 more than its
    /// count in the output else. 0 for no penalties.
    pub seen: u64,
    /// 0: the largest logit.
    pub temperature: f32,
    /// 0: all.
    pub top_k: i32,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// 1: none.
    pub repetition: f32,
    /// 0: none.
    pub presence: f32,
    /// 0: none.
    pub frequency: f32,
}

impl SampleRow {
    /// The largest logit.
    pub const GREEDY: Self = Self {
        seed: 0,
        counter: 0,
        seen: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
    };

    /// The bytes that the kernel reads.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        for (target, value) in bytes.chunks_exact_mut(8).zip([self.seed, self.counter, self.seen]) {
            target.copy_from_slice(&value.to_le_bytes());
        }
        let floats = [
            self.temperature.to_bits(),
            self.top_k.cast_unsigned(),
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.repetition.to_bits(),
            self.presence.to_bits(),
            self.frequency.to_bits(),
        ];
        for (target, value) in bytes[24..].chunks_exact_mut(4).zip(floats) {
            target.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}
