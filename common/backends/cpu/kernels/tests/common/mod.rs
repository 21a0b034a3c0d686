//! Numbers for the tests, and comparisons with exact results.

#![expect(dead_code, reason = "every test file uses some of it")]

use half::{bf16, f16};
use roundhouse_cpu_kernels::{Elements, Isa, Matrix};

/// The types of weights and caches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

pub(crate) const TYPES: [Type; 3] = [Type::F32, Type::F16, Type::Bf16];

/// Owned numbers of a type.
#[derive(Debug, Clone)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// Of a type, rounded from these.
    pub(crate) fn new(of: Type, values: &[f32]) -> Self {
        match of {
            Type::F32 => Self::F32(values.to_vec()),
            Type::F16 => Self::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            Type::Bf16 => Self::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
        }
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(values) => Elements::F32(values),
            Self::F16(values) => Elements::F16(values),
            Self::Bf16(values) => Elements::Bf16(values),
        }
    }

    pub(crate) fn matrix(&self, rows: usize, columns: usize) -> Matrix<'_> {
        Matrix { elements: self.elements(), rows, columns }
    }

    /// One of them, exactly.
    pub(crate) fn at(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => f64::from(values[index]),
            Self::F16(values) => f64::from(values[index]),
            Self::Bf16(values) => f64::from(values[index]),
        }
    }
}

/// Pseudo-random numbers (xorshift64*), the same on every run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Between -1 and 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, len: usize, magnitude: f32) -> Vec<f32> {
        (0..len).map(|_| self.number() * magnitude).collect()
    }
}

/// Every instruction set of this machine, with its name for messages.
pub(crate) fn each_isa(test: impl Fn(Isa)) {
    for isa in Isa::available() {
        eprintln!("instruction set: {}", isa.name());
        test(isa);
    }
}

/// Checks that `found` is within `tolerance` of `expected`.
pub(crate) fn assert_close(found: f32, expected: f64, tolerance: f64, what: impl std::fmt::Display) {
    let error = (f64::from(found) - expected).abs();
    assert!(
        error <= tolerance,
        "{what}: {found} is not within {tolerance:e} of {expected} (error {error:e})"
    );
}

/// Distance in units in the last place of the fp32 nearest to `expected`.
pub(crate) fn ulps(found: f32, expected: f64) -> f64 {
    let nearest = expected as f32;
    if found == nearest || (found.is_nan() && nearest.is_nan()) {
        return 0.0;
    }
    let unit =
        f64::from(f32::from_bits((nearest.abs().to_bits() & 0x7f80_0000).max(0x0080_0000))) * 2f64.powi(-23);
    ((f64::from(found) - expected) / unit).abs()
}
