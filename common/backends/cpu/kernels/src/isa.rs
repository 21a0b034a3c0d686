//! Which instruction set the kernels run with.

use crate::simd::Portable;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};

/// An instruction set that this machine has: proof that code compiled for it may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with the matrix unit for products of many rows.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

/// A computation that is compiled once for each instruction set. Implementors mark `run` with
/// `#[inline(always)]`, and whatever it calls that takes the `Simd`, so that all of it is compiled for that set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it with vectors of `simd`.
    fn run<S: crate::simd::Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// What every machine of this architecture has.
    pub const PORTABLE: Self = Self(Level::Portable);

    /// The fastest one that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::PORTABLE)
    }

    /// Every one that this machine has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only the portable one exists"))]
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        if Avx2::is_available() {
            levels.push(Level::Avx2);
            if Avx512::is_available() {
                levels.push(Level::Avx512);
                #[cfg(target_os = "linux")]
                if crate::linear::amx_is_available() {
                    levels.push(Level::Amx);
                }
            }
        }
        levels.into_iter().map(Self).collect()
    }

    /// The one of this [`name`](Self::name), if this machine has it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `portable`, `avx2`, `avx512` or `amx`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx => "amx",
        }
    }

    /// Whether products of many rows run on the matrix unit.
    pub(crate) const fn has_amx(self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return matches!(self.0, Level::Amx);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        return false;
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable => kernel.run(Portable),
            // SAFETY: a `Level` other than `Portable` is only made by `available`, after detecting its features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { run_avx512(kernel) },
            // SAFETY: as above: `Amx` is made only where AVX-512 is.
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx => unsafe { run_avx512(kernel) },
        }
    }
}

/// Asks for the shape of the vectors of an instruction set: `(LANES, TILE_ROWS)`.
pub(crate) struct VectorShape;

impl Kernel for VectorShape {
    type Output = (usize, usize);

    #[inline(always)]
    fn run<S: crate::simd::Simd>(self, _: S) -> (usize, usize) {
        (S::LANES, S::TILE_ROWS)
    }
}

impl Default for Isa {
    fn default() -> Self {
        Self::detect()
    }
}

/// # Safety
/// The machine has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { Avx2::assume_available() })
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL, and AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the features.
    kernel.run(unsafe { Avx512::assume_available() })
}
