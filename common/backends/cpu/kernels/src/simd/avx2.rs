//! AVX2 with FMA and F16C: vectors of 8.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Element, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Whether this machine has it.
    pub(crate) fn is_available() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    /// # Safety
    /// [`is_available`](Self::is_available) holds.
    #[inline(always)]
    pub(crate) const unsafe fn assume_available() -> Self {
        Self(())
    }
}

const LANES: usize = 8;

/// The lanes below `n` as all ones.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: the caller vouches for the feature; only registers are touched.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// The first `n` elements of 16 bits, and zeros.
///
/// # Safety
/// They are readable, and `n <= 8`.
#[inline(always)]
unsafe fn load_halves<T: Copy>(from: *const T, n: usize) -> __m128i {
    debug_assert!(size_of::<T>() == 2 && n <= LANES);
    let mut halves = [0u16; LANES];
    // SAFETY: n elements are readable, as the caller promises, and the array holds as many.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast(), halves.as_mut_ptr(), n);
        _mm_loadu_si128(halves.as_ptr().cast())
    }
}

/// Intrinsics that only compute, each wrapped so that the proof makes it safe.
macro_rules! compute {
    ($($name:ident($($argument:ident),+) = $body:expr;)+) => {
        $(#[inline(always)]
        fn $name(self, $($argument: __m256),+) -> __m256 {
            // SAFETY: `self` is proof of the features, and nothing but registers is touched.
            unsafe { $body }
        })+
    };
}

impl Simd for Avx2 {
    type F32 = __m256;
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;
    const TILE_ROWS: usize = 6;

    compute! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        mul_add(a, b, c) = _mm256_fmadd_ps(a, b, c);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        abs(a) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        with_sign(magnitude, sign) = _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0)));
        mul_pow2(a, n) = {
            // In two factors, because 2^n alone may not be a normal number.
            let n = _mm256_cvtps_epi32(n);
            let first = _mm256_srai_epi32::<1>(n);
            let second = _mm256_sub_epi32(n, first);
            let bias = _mm256_set1_epi32(127);
            let pow2 = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias)));
            _mm256_mul_ps(_mm256_mul_ps(a, pow2(first)), pow2(second))
        };
        select_less(a, b, yes, no) = _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` is proof of the features.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn reduce_add_4(self, vectors: [__m256; 4]) -> [f32; 4] {
        // SAFETY: `self` is proof of the features.
        unsafe { reduce_add_4(vectors) }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        // SAFETY: `self` is proof of the features; only registers are touched.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller promises 8 elements.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, n: usize) -> __m256 {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { _mm256_maskload_ps(from, first(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m256) {
        // SAFETY: the caller promises 8 elements.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize, value: __m256) {
        // SAFETY: the mask leaves out all but the n elements that the caller promises.
        unsafe { _mm256_maskstore_ps(to, first(n), value) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        // SAFETY: the caller promises 8 elements, 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_partial(self, from: *const f16, n: usize) -> __m256 {
        // SAFETY: the caller promises n elements.
        unsafe { _mm256_cvtph_ps(load_halves(from, n)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, value: __m256) {
        // SAFETY: the caller promises 8 elements, 16 bytes.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller promises 8 elements, 16 bytes.
        unsafe { widen_bf16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_partial(self, from: *const bf16, n: usize) -> __m256 {
        // SAFETY: the caller promises n elements.
        unsafe { widen_bf16(load_halves(from, n)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, value: __m256) {
        // SAFETY: the caller promises 8 elements, 16 bytes.
        unsafe {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let chosen = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let packed = _mm256_packus_epi32(chosen, chosen);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0x08>(packed)));
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256 {
        // SAFETY: the caller promises 8 bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller promises 16 bytes.
        unsafe {
            let shifted = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())));
            let halves = _mm256_and_si256(shifted, _mm256_set1_epi16(super::E4M3_IN_F16.cast_signed()));
            let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_i4(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: the caller promises 8 bytes.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let (low, high) = (_mm256_and_si256(bytes, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(bytes));
            [low, high].map(|q| _mm256_cvtepi32_ps(_mm256_sub_epi32(q, _mm256_set1_epi32(8))))
        }
    }
    #[inline(always)]
    fn interleave(self, [a, b]: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` is proof of the features; only registers are touched.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
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
            let mut r = [_mm256_setzero_ps(); LANES];
            for (row, vector) in r.iter_mut().enumerate().take(rows) {
                let from = from.add(row * stride);
                *vector = if n >= LANES { E::load(self, from) } else { E::load_partial(self, from, n) };
            }
            for (i, column) in transpose_8(r).into_iter().enumerate() {
                _mm256_storeu_ps(to.add(i * to_stride), column);
            }
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: `self` is proof of the features, and a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// The sum of each vector.
///
/// # Safety
/// The machine has AVX.
#[inline(always)]
pub(super) unsafe fn reduce_add_4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let mut sums = [0.0; 4];
    // SAFETY: the caller vouches for the feature; the array holds the four sums.
    unsafe {
        let quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let four = _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps::<1>(quarters));
        _mm_storeu_ps(sums.as_mut_ptr(), four);
    }
    sums
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn widen_bf16(values: __m128i) -> __m256 {
    // SAFETY: the caller vouches for the feature.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(values))) }
}

/// The transpose of a block of 8 rows of 8.
///
/// # Safety
/// The machine has AVX.
#[inline(always)]
unsafe fn transpose_8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller vouches for the feature; only registers are touched.
    unsafe {
        // Within each half, 4x4 blocks of four rows are transposed; then the halves are moved.
        let mut quads = [_mm256_setzero_ps(); 8];
        for group in 0..2 {
            let [a, b, c, d] = [r[group * 4], r[group * 4 + 1], r[group * 4 + 2], r[group * 4 + 3]];
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            quads[group * 4] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
            quads[group * 4 + 1] = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
            quads[group * 4 + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
            quads[group * 4 + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
        }
        let mut columns = [_mm256_setzero_ps(); 8];
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[4 + i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[4 + i]);
        }
        columns
    }
}
