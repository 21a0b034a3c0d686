//! Vectors of `f32` of the width of an instruction set, behind one trait.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, transpose_16};
pub(crate) use element::Element;
pub(crate) use portable::Portable;

use half::{bf16, f16};

/// The widest vector of any instruction set, in `f32`s.
pub(crate) const MAX_LANES: usize = 16;

/// What [`Simd::load_e4m3`] divides numbers by.
pub(crate) const E4M3_FACTOR: f32 = 256.0;

/// The bits of an fp16 that a number in E4M3 is when its sign is extended and it is shifted by 7: the sign, four bits of
/// exponent, which the number's bias of 7 instead of 15 makes [`E4M3_FACTOR`] times too small, and three of mantissa.
/// Subnormals of one are subnormals of the other.
#[cfg(target_arch = "x86_64")]
const E4M3_IN_F16: u16 = 0xbf80;

/// The vector operations of an instruction set. A value of the type is proof that the machine has it, so arithmetic is
/// safe; loads and stores go through pointers and are not. Partial ones touch only the first `n` elements
/// (`n <= LANES`), and a partial load fills the other lanes with zero.
pub(crate) trait Simd: Copy {
    /// `LANES` numbers.
    type F32: Copy;
    /// How many numbers a vector holds.
    const LANES: usize;
    /// How many vectors the registers hold.
    const REGISTERS: usize;
    /// How many rows of the left matrix a tile of the blocked product has: its accumulators, two vectors a row, fill the
    /// registers.
    const TILE_ROWS: usize;

    fn splat(self, value: f32) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the machine can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger of each pair; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// `magnitude` (not negative) with the sign of `sign`.
    fn with_sign(self, magnitude: Self::F32, sign: Self::F32) -> Self::F32;
    /// `a * 2^n` for integral `n` of magnitude at most 200.
    fn mul_pow2(self, a: Self::F32, n: Self::F32) -> Self::F32;
    /// `yes` where `a < b`, else `no`.
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// The sum of all lanes of each vector, in one order wherever the vector stands.
    fn reduce_add_4(self, vectors: [Self::F32; 4]) -> [f32; 4];
    /// The sum of all lanes, in the order of [`reduce_add_4`](Self::reduce_add_4).
    #[inline(always)]
    fn reduce_add(self, a: Self::F32) -> f32 {
        self.reduce_add_4([a; 4])[0]
    }
    /// The largest of all lanes.
    fn reduce_max(self, a: Self::F32) -> f32;

    /// # Safety
    /// `LANES` elements at `from` are readable.
    unsafe fn load(self, from: *const f32) -> Self::F32;
    /// # Safety
    /// `n` elements at `from` are readable.
    unsafe fn load_partial(self, from: *const f32, n: usize) -> Self::F32;
    /// # Safety
    /// `LANES` elements at `to` are writable.
    unsafe fn store(self, to: *mut f32, value: Self::F32);
    /// # Safety
    /// `n` elements at `to` are writable.
    unsafe fn store_partial(self, to: *mut f32, n: usize, value: Self::F32);

    /// # Safety
    /// `LANES` elements at `from` are readable.
    unsafe fn load_f16(self, from: *const f16) -> Self::F32;
    /// # Safety
    /// `n` elements at `from` are readable.
    unsafe fn load_f16_partial(self, from: *const f16, n: usize) -> Self::F32;
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// `LANES` elements at `to` are writable.
    unsafe fn store_f16(self, to: *mut f16, value: Self::F32);

    /// # Safety
    /// `LANES` elements at `from` are readable.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F32;
    /// # Safety
    /// `n` elements at `from` are readable.
    unsafe fn load_bf16_partial(self, from: *const bf16, n: usize) -> Self::F32;
    /// Rounds to nearest, ties to even.
    ///
    /// # Safety
    /// `LANES` elements at `to` are writable.
    unsafe fn store_bf16(self, to: *mut bf16, value: Self::F32);

    /// # Safety
    /// `LANES` elements at `from` are readable.
    unsafe fn load_i8(self, from: *const i8) -> Self::F32;
    /// Numbers in E4M3, divided by [`E4M3_FACTOR`]: the first vector of them, and the second. The two codes that are not
    /// numbers count as ±480.
    ///
    /// # Safety
    /// `2 * LANES` bytes at `from` are readable.
    unsafe fn load_e4m3(self, from: *const u8) -> [Self::F32; 2];
    /// The low nibbles of bytes and the high ones, each minus 8.
    ///
    /// # Safety
    /// `LANES` bytes at `from` are readable.
    unsafe fn load_i4(self, from: *const u8) -> [Self::F32; 2];
    /// The elements of two vectors in turn: the first half of them, and the second.
    fn interleave(self, vectors: [Self::F32; 2]) -> [Self::F32; 2];

    /// Loads `LANES` rows of `LANES` elements, transposed: vector `i` of `to` gets element `i` of every row. Rows from
    /// `rows` on count as zeros, and so do elements from `n` on.
    ///
    /// # Safety
    /// The first `n` elements of the `rows` rows, `stride` apart from `from` on, are readable; `LANES` vectors,
    /// `to_stride` apart from `to` on, are writable.
    unsafe fn transpose<E: Element>(
        self,
        from: *const E,
        stride: usize,
        rows: usize,
        n: usize,
        to: *mut f32,
        to_stride: usize,
    );

    /// Asks for the cache line at `address`, which need not be readable.
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        let _ = address;
    }
}
