//! The inverse DCT: the integer algorithm of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with libjpeg's precision, bit for
//! bit (its `jidctint.c`: 13 bits of constants, 2 more bits between the passes).

const CONSTANT_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// `round(x · 2^13)` of the algorithm's constants, by the names that libjpeg has for them.
const FIX_0_298631336: i32 = 2446;
const FIX_0_390180644: i32 = 3196;
const FIX_0_541196100: i32 = 4433;
const FIX_0_765366865: i32 = 6270;
const FIX_0_899976223: i32 = 7373;
const FIX_1_175875602: i32 = 9633;
const FIX_1_501321110: i32 = 12_299;
const FIX_1_847759065: i32 = 15_137;
const FIX_1_961570560: i32 = 16_069;
const FIX_2_053119869: i32 = 16_819;
const FIX_2_562915447: i32 = 20_995;
const FIX_3_072711026: i32 = 25_172;

/// Turns the coefficients of a block, in natural order and multiplied by their quantisation steps, into samples at
/// `plane[start..]`, rows `stride` apart. `plane` must hold all eight rows. Arithmetic wraps: only nonsense overflows.
pub(super) fn inverse_dct(coefficients: &[i32; 64], plane: &mut [u8], start: usize, stride: usize) {
    let mut between = [0_i32; 64];
    for column in 0..8 {
        let input: [i32; 8] = std::array::from_fn(|row| coefficients[row * 8 + column]);
        let output = if input[1..].iter().all(|&value| value == 0) {
            [input[0].wrapping_shl(PASS_BITS); 8]
        } else {
            one_dimension(input, CONSTANT_BITS - PASS_BITS)
        };
        for (row, value) in output.into_iter().enumerate() {
            between[row * 8 + column] = value;
        }
    }
    for (row, input) in between.as_chunks::<8>().0.iter().enumerate() {
        let output = one_dimension(*input, CONSTANT_BITS + PASS_BITS + 3);
        let samples = &mut plane[start + row * stride..][..8];
        for (sample, value) in samples.iter_mut().zip(output) {
            *sample = value.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}

/// Eight values, scaled down by `2^shift` with rounding.
#[inline]
fn one_dimension(input: [i32; 8], shift: u32) -> [i32; 8] {
    let times = i32::wrapping_mul;
    let plus = i32::wrapping_add;
    let minus = i32::wrapping_sub;

    // Even part.
    let z1 = times(plus(input[2], input[6]), FIX_0_541196100);
    let even_2 = plus(z1, times(input[6], -FIX_1_847759065));
    let even_3 = plus(z1, times(input[2], FIX_0_765366865));
    let even_0 = plus(input[0], input[4]).wrapping_shl(CONSTANT_BITS);
    let even_1 = minus(input[0], input[4]).wrapping_shl(CONSTANT_BITS);
    let sums = [plus(even_0, even_3), plus(even_1, even_2), minus(even_1, even_2), minus(even_0, even_3)];

    // Odd part.
    let (a, b, c, d) = (input[7], input[5], input[3], input[1]);
    let z5 = times(plus(plus(a, c), plus(b, d)), FIX_1_175875602);
    let z1 = times(plus(a, d), -FIX_0_899976223);
    let z2 = times(plus(b, c), -FIX_2_562915447);
    let z3 = plus(times(plus(a, c), -FIX_1_961570560), z5);
    let z4 = plus(times(plus(b, d), -FIX_0_390180644), z5);
    let odd = [
        plus(times(d, FIX_1_501321110), plus(z1, z4)),
        plus(times(c, FIX_3_072711026), plus(z2, z3)),
        plus(times(b, FIX_2_053119869), plus(z2, z4)),
        plus(times(a, FIX_0_298631336), plus(z1, z3)),
    ];

    let descale = |value: i32| plus(value, 1 << (shift - 1)) >> shift;
    let mut output = [0; 8];
    for index in 0..4 {
        output[index] = descale(plus(sums[index], odd[index]));
        output[7 - index] = descale(minus(sums[index], odd[index]));
    }
    output
}
