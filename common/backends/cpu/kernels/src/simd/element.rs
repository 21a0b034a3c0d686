//! The element types of weights and caches.

use half::{bf16, f16};

use super::Simd;

/// A number that loads into a vector of `f32` and is stored from one.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// # Safety
    /// `S::LANES` elements at `from` are readable.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F32;

    /// # Safety
    /// `n <= S::LANES` elements at `from` are readable.
    unsafe fn load_partial<S: Simd>(simd: S, from: *const Self, n: usize) -> S::F32;

    /// # Safety
    /// `S::LANES` elements at `to` are writable.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, value: S::F32);
}

macro_rules! element {
    ($type:ty, $load:ident, $load_partial:ident, $store:ident) => {
        impl Element for $type {
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F32 {
                // SAFETY: the caller's promise is the same.
                unsafe { simd.$load(from) }
            }

            #[inline(always)]
            unsafe fn load_partial<S: Simd>(simd: S, from: *const Self, n: usize) -> S::F32 {
                // SAFETY: the caller's promise is the same.
                unsafe { simd.$load_partial(from, n) }
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(simd: S, to: *mut Self, value: S::F32) {
                // SAFETY: the caller's promise is the same.
                unsafe { simd.$store(to, value) }
            }
        }
    };
}

element!(f32, load, load_partial, store);
element!(f16, load_f16, load_f16_partial, store_f16);
element!(bf16, load_bf16, load_bf16_partial, store_bf16);
