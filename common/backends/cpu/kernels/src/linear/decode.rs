//! Numbers of few bits as fp32.

use crate::QuantizedFormat;
use crate::simd::{E4M3_FACTOR, MAX_LANES, Simd};
use crate::weight::QuantizedRows;

/// A format of quantised numbers, read a block of two vectors at a time.
pub(super) trait Format: Copy {
    /// Bits of one number.
    const BITS: usize;
    /// Whether [`load`](Self::load) gives the even columns of a block and the odd ones, instead of its first and second
    /// half.
    const PAIRED: bool;
    /// What [`load`](Self::load) divides the numbers by: a power of two.
    const FACTOR: f32;

    /// The numbers of a block, divided by [`FACTOR`](Self::FACTOR).
    ///
    /// # Safety
    /// `2 * S::LANES * BITS / 8` bytes at `from` are readable.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::F32; 2];
}

/// [`QuantizedFormat::Int8`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Int8;

/// [`QuantizedFormat::Int4`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Int4;

/// [`QuantizedFormat::E4m3`].
#[derive(Debug, Clone, Copy)]
pub(super) struct E4m3;

impl Format for Int8 {
    const BITS: usize = 8;
    const PAIRED: bool = false;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::F32; 2] {
        // SAFETY: the caller promises two vectors of bytes.
        unsafe { [s.load_i8(from.cast()), s.load_i8(from.add(S::LANES).cast())] }
    }
}

impl Format for Int4 {
    const BITS: usize = 4;
    const PAIRED: bool = true;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::F32; 2] {
        // SAFETY: the caller promises a vector of bytes, two numbers each.
        unsafe { s.load_i4(from) }
    }
}

impl Format for E4m3 {
    const BITS: usize = 8;
    const PAIRED: bool = false;
    const FACTOR: f32 = E4M3_FACTOR;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> [S::F32; 2] {
        // SAFETY: the caller promises two vectors of bytes.
        unsafe { s.load_e4m3(from) }
    }
}

/// Whether the format's blocks are even and odd columns: [`Format::PAIRED`].
pub(super) const fn is_paired(format: QuantizedFormat) -> bool {
    match format {
        QuantizedFormat::Int8 => Int8::PAIRED,
        QuantizedFormat::Int4 => Int4::PAIRED,
        QuantizedFormat::E4m3 => E4m3::PAIRED,
    }
}

/// The numbers of a block of which only the first `bytes` are there; the others are of zero bytes.
///
/// # Safety
/// The bytes are readable, and at most as many as a block has.
#[inline(always)]
pub(super) unsafe fn load_partial<S: Simd, F: Format>(s: S, from: *const u8, bytes: usize) -> [S::F32; 2] {
    debug_assert!(bytes <= 2 * S::LANES * F::BITS / 8);
    let mut block = [0; 2 * MAX_LANES];
    // SAFETY: a block of every instruction set fits, the caller's part of it does too.
    unsafe {
        std::ptr::copy_nonoverlapping(from, block.as_mut_ptr(), bytes);
        F::load(s, block.as_ptr())
    }
}

/// What the numbers of a group are multiplied with, and what is added to them.
struct Scaling<S: Simd> {
    scale: S::F32,
    offset: Option<S::F32>,
}

impl<S: Simd> Scaling<S> {
    /// # Safety
    /// There is such a row with such a group, and the slices are as long as [`QuantizedRows::check`] says.
    #[inline(always)]
    unsafe fn of<F: Format>(s: S, rows: &QuantizedRows<'_>, row: usize, group: usize) -> Self {
        let index = row * rows.groups() + group;
        // SAFETY: every group of every row has a scale, and an offset where there are some.
        unsafe {
            Self {
                scale: s.splat(*rows.scales.as_ptr().add(index) * F::FACTOR),
                offset: rows.offsets.map(|offsets| s.splat(*offsets.as_ptr().add(index))),
            }
        }
    }

    #[inline(always)]
    fn apply(&self, s: S, q: S::F32) -> S::F32 {
        match self.offset {
            None => s.mul(q, self.scale),
            Some(offset) => s.mul_add(q, self.scale, offset),
        }
    }
}

/// Decodes columns `start..start + n` of a row: `q · scale`, or `q · scale + offset` rounded once where the machine can.
///
/// # Safety
/// The rows' slices are as long as [`QuantizedRows::check`] says, the row and the columns exist, `start` begins a byte, and
/// `n` elements at `to` are writable.
#[inline(always)]
pub(super) unsafe fn decode_row<S: Simd, F: Format>(
    s: S,
    rows: &QuantizedRows<'_>,
    row: usize,
    start: usize,
    n: usize,
    to: *mut f32,
) {
    let block = 2 * S::LANES;
    let (size, end) = (rows.group_size, start + n);
    // SAFETY: columns are within the row, whole blocks of bytes are read only where as many are left, and as many numbers
    // are written as there are columns.
    unsafe {
        let values = rows.values.as_ptr().add(row * rows.row_bytes());
        let mut column = start;
        let mut group = start / size.max(1);
        // Each of a block's two vectors is a group.
        while size == S::LANES && column + block <= end {
            let mut q = F::load(s, values.add(column * F::BITS / 8));
            if F::PAIRED {
                q = s.interleave(q);
            }
            let to = to.add(column - start);
            s.store(to, Scaling::of::<F>(s, rows, row, group).apply(s, q[0]));
            s.store(to.add(S::LANES), Scaling::of::<F>(s, rows, row, group + 1).apply(s, q[1]));
            (column, group) = (column + block, group + 2);
        }
        while column < end {
            let stop = end.min((group + 1) * size);
            let scaling = Scaling::of::<F>(s, rows, row, group);
            while column < stop {
                let count = (stop - column).min(block);
                let from = values.add(column * F::BITS / 8);
                let mut q = if count == block {
                    F::load(s, from)
                } else {
                    load_partial::<S, F>(s, from, (count * F::BITS).div_ceil(8))
                };
                if F::PAIRED {
                    q = s.interleave(q);
                }
                let (first, second) = (scaling.apply(s, q[0]), scaling.apply(s, q[1]));
                let to = to.add(column - start);
                if count == block {
                    s.store(to, first);
                    s.store(to.add(S::LANES), second);
                } else {
                    let low = count.min(S::LANES);
                    s.store_partial(to, low, first);
                    s.store_partial(to.add(low), count - low, second);
                }
                column += count;
            }
            group += 1;
        }
    }
}
