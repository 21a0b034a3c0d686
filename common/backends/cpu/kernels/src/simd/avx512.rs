//! AVX-512: vectors of 16.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Element, Simd};

/// Proof that the machine has AVX-512 F, BW, DQ and VL, and AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Whether this machine has it.
    pub(crate) fn is_available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && super::Avx2::is_available()
    }

    /// # Safety
    /// [`is_available`](Self::is_available) holds.
    #[inline(always)]
    pub(crate) const unsafe fn assume_available() -> Self {
        Self(())
    }
}

/// The mask of the first `n` lanes.
#[inline(always)]
const fn first(n: usize) -> u16 {
    debug_assert!(n <= 16);
    ((1u32 << n) - 1) as u16
}

/// Intrinsics that only compute, each wrapped so that the proof makes it safe.
macro_rules! compute {
    ($($name:ident($($argument:ident),+) = $body:expr;)+) => {
        $(#[inline(always)]
        fn $name(self, $($argument: __m512),+) -> __m512 {
            // SAFETY: `self` is proof of the features, and nothing but registers is touched.
            unsafe { $body }
        })+
    };
}

impl Simd for Avx512 {
    type F32 = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const TILE_ROWS: usize = 14;

    compute! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        mul_add(a, b, c) = _mm512_fmadd_ps(a, b, c);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        abs(a) = _mm512_abs_ps(a);
        with_sign(magnitude, sign) = _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0)));
        mul_pow2(a, n) = _mm512_scalef_ps(a, n);
        select_less(a, b, yes, no) = _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` is proof of the features.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn reduce_add_4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: `self` is proof of the features; only registers are touched.
        unsafe {
            let half = |v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_add_4([half(a), half(b), half(c), half(d)])
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        // SAFETY: `self` is proof of the features.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller promises 16 elements.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, n: usize) -> __m512 {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { _mm512_maskz_loadu_ps(first(n), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m512) {
        // SAFETY: the caller promises 16 elements.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize, value: __m512) {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { _mm512_mask_storeu_ps(to, first(n), value) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        // SAFETY: the caller promises 16 elements, 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_partial(self, from: *const f16, n: usize) -> __m512 {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, value: __m512) {
        // SAFETY: the caller promises 16 elements, 32 bytes.
        unsafe {
            let rounded = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to.cast(), rounded);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller promises 16 elements, 32 bytes.
        unsafe { widen_bf16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_partial(self, from: *const bf16, n: usize) -> __m512 {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { widen_bf16(_mm256_maskz_loadu_epi16(first(n), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: __m512) {
        // SAFETY: the caller promises 16 elements, 32 bytes.
        unsafe {
            // In integers, because the conversion instruction flushes subnormals.
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen)));
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        // SAFETY: the caller promises 16 bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, from: *const u8) -> [__m512; 2] {
        // SAFETY: the caller promises 32 bytes.
        unsafe {
            let shifted = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())));
            let halves = _mm512_and_si512(shifted, _mm512_set1_epi16(super::E4M3_IN_F16.cast_signed()));
            let (low, high) = (_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
            [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_i4(self, from: *const u8) -> [__m512; 2] {
        // SAFETY: the caller promises 16 bytes.
        unsafe {
            let table = _mm512_setr_ps(
                -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
            );
            // The look-up ignores all but the low nibble of its index.
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(low), table)]
        }
    }
    #[inline(always)]
    fn interleave(self, [a, b]: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: `self` is proof of the features; only registers are touched.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b)]
        }
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
        // SAFETY: the caller promises the rows and vectors that are touched.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            if n >= 16 && rows >= 16 {
                for (row, vector) in r.iter_mut().enumerate() {
                    *vector = E::load(self, from.add(row * stride));
                }
            } else {
                for (row, vector) in r.iter_mut().enumerate().take(rows) {
                    *vector = E::load_partial(self, from.add(row * stride), n.min(16));
                }
            }
            for (i, column) in transpose_16(r).into_iter().enumerate() {
                _mm512_storeu_ps(to.add(i * to_stride), column);
            }
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: `self` is proof of the features, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
unsafe fn widen_bf16(values: __m256i) -> __m512 {
    // SAFETY: the caller vouches for the feature.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values))) }
}

/// The transpose of a block of 16 rows of 16.
///
/// # Safety
/// The machine has AVX-512 F.
#[inline(always)]
pub(crate) unsafe fn transpose_16(r: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the caller vouches for the feature; only registers are touched.
    unsafe {
        // Within each 128-bit quarter, 4x4 blocks of four rows are transposed; then the quarters are moved.
        let mut quads = [_mm512_setzero_ps(); 16];
        for group in 0..4 {
            let [a, b, c, d] = [r[group * 4], r[group * 4 + 1], r[group * 4 + 2], r[group * 4 + 3]];
            let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            quads[group * 4] = _mm512_shuffle_ps::<0x44>(ab_low, cd_low);
            quads[group * 4 + 1] = _mm512_shuffle_ps::<0xee>(ab_low, cd_low);
            quads[group * 4 + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
            quads[group * 4 + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
        }
        let mut columns = [_mm512_setzero_ps(); 16];
        for i in 0..4 {
            let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
            let (ab_even, ab_odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
            columns[i] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
            columns[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
            columns[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
            columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
        }
        columns
    }
}
