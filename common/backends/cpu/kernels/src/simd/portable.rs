//! Plain Rust over arrays, which compilers turn into whatever vectors the target has.

use half::{bf16, f16};

use super::{Element, Simd};

/// Needs nothing that the target lacks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

type Lanes = [f32; LANES];

/// Fused where that is an instruction, not a library call.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// Exact, and without branches or calls, so that it vectorises.
#[inline(always)]
fn f16_to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent is rebased by a multiplication with 2^112, which also normalises subnormals.
    let rebased = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = 0u32.wrapping_sub(u32::from(magnitude >= 0x0f80_0000)) & 0x7f80_0000;
    f32::from_bits(rebased.to_bits() | special | (bits & 0x8000) << 16)
}

/// A number in E4M3, divided by [`E4M3_FACTOR`](super::E4M3_FACTOR): exact, and without branches, calls or subnormal numbers, which
/// many processors are slow with.
#[inline(always)]
fn e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f);
    // Fifteen steps of exponent less are the factor and the bias of 7.
    let normal = (magnitude << 20) + ((127 - 15) << 23);
    let subnormal = (magnitude as f32 * (1.0 / (1 << 17) as f32)).to_bits();
    let bits = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(bits | u32::from(byte & 0x80) << 24)
}

#[inline(always)]
fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[inline(always)]
fn map(a: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F32 = Lanes;
    const LANES: usize = LANES;
    const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 16 } else { 8 };
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        // Adding 1.5 · 2^23 leaves no bits for a fraction; larger magnitudes have none to lose.
        const MAGIC: f32 = 12_582_912.0;
        map(a, |a| if a.abs() < 4_194_304.0 { (a + MAGIC) - MAGIC } else { a })
    }
    #[inline(always)]
    fn abs(self, a: Lanes) -> Lanes {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn with_sign(self, magnitude: Lanes, sign: Lanes) -> Lanes {
        zip(magnitude, sign, f32::copysign)
    }
    #[inline(always)]
    fn mul_pow2(self, a: Lanes, n: Lanes) -> Lanes {
        zip(a, n, |a, n| {
            // In two factors, because 2^n alone may not be a normal number.
            let n = n as i32;
            let first = n >> 1;
            let pow2 = |n: i32| f32::from_bits(((n + 127) << 23).cast_unsigned());
            a * pow2(first) * pow2(n - first)
        })
    }
    #[inline(always)]
    fn select_less(self, a: Lanes, b: Lanes, yes: Lanes, no: Lanes) -> Lanes {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn reduce_add_4(self, vectors: [Lanes; 4]) -> [f32; 4] {
        vectors.map(|a| ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])))
    }
    #[inline(always)]
    fn reduce_max(self, a: Lanes) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |max, value| if value > max { value } else { max })
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Lanes {
        // SAFETY: the caller promises LANES elements; an array of `f32` needs no more alignment than one.
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, n: usize) -> Lanes {
        // SAFETY: only the first n elements are read, which the caller promises.
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Lanes) {
        // SAFETY: the caller promises LANES elements.
        unsafe { to.cast::<Lanes>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize, value: Lanes) {
        for (i, value) in value.into_iter().enumerate().take(n) {
            // SAFETY: i < n, and the caller promises n elements.
            unsafe { *to.add(i) = value }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Lanes {
        // SAFETY: the caller promises LANES elements.
        unsafe { from.cast::<[f16; LANES]>().read_unaligned() }.map(f16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_f16_partial(self, from: *const f16, n: usize) -> Lanes {
        // SAFETY: only the first n elements are read, which the caller promises.
        std::array::from_fn(|i| if i < n { f16_to_f32(unsafe { *from.add(i) }) } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, value: Lanes) {
        // SAFETY: the caller promises LANES elements.
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(value.map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Lanes {
        // SAFETY: the caller promises LANES elements.
        unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16_partial(self, from: *const bf16, n: usize) -> Lanes {
        // SAFETY: only the first n elements are read, which the caller promises.
        std::array::from_fn(|i| if i < n { bf16_to_f32(unsafe { *from.add(i) }) } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: Lanes) {
        // SAFETY: the caller promises LANES elements.
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(value.map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Lanes {
        // SAFETY: the caller promises LANES bytes.
        unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, from: *const u8) -> [Lanes; 2] {
        // SAFETY: the caller promises two vectors of bytes.
        unsafe { from.cast::<[[u8; LANES]; 2]>().read_unaligned() }.map(|bytes| bytes.map(e4m3_to_f32))
    }
    #[inline(always)]
    unsafe fn load_i4(self, from: *const u8) -> [Lanes; 2] {
        // SAFETY: the caller promises LANES bytes.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        let number = |nibble: u8| (i32::from(nibble) - 8) as f32;
        [bytes.map(|byte| number(byte & 15)), bytes.map(|byte| number(byte >> 4))]
    }
    #[inline(always)]
    fn interleave(self, [a, b]: [Lanes; 2]) -> [Lanes; 2] {
        let half = |start: usize| std::array::from_fn(|i| [a, b][i % 2][start + i / 2]);
        [half(0), half(LANES / 2)]
    }

    #[inline(always)]
    unsafe fn transpose<E: Element>(
        self,
        from: *const E,
        stride: usize,
        rows: usize,
        n: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        let mut block = [[0.0; LANES]; LANES];
        for (row, values) in block.iter_mut().enumerate().take(rows) {
            // SAFETY: row < rows, of which the caller promises n elements each.
            *values = unsafe { E::load_partial(self, from.add(row * stride), n) };
        }
        let mut columns = [[0.0; LANES]; LANES];
        for (row, values) in block.into_iter().enumerate() {
            for (column, value) in columns.iter_mut().zip(values) {
                column[row] = value;
            }
        }
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: i < LANES, and the caller promises as many vectors.
            unsafe { self.store(to.add(i * to_stride), column) };
        }
    }
}
