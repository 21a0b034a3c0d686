//! Numbers for tests.

/// From -1 to 1.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(next).collect()
}

/// Second moments of inputs whose neighbours move together.
pub(crate) fn moments(columns: usize, tokens: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns * columns];
    for token in numbers(columns * tokens, 1).chunks_mut(columns) {
        for column in 1..columns {
            token[column] = 0.8 * token[column - 1] + 0.6 * token[column];
        }
        for (a, row) in token.iter().zip(sums.chunks_mut(columns)) {
            row.iter_mut().zip(&*token).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sums
}

/// `rounding · moments · roundingᵀ`.
pub(crate) fn lost(moments: &[f32], rounding: &[f32]) -> f64 {
    let rows = moments.chunks(rounding.len()).zip(rounding);
    let row = |(row, a): (&[f32], &f32)| {
        let products = row.iter().zip(rounding).map(|(x, b)| f64::from(*x) * f64::from(*b));
        f64::from(*a) * products.sum::<f64>()
    };
    rows.map(row).sum()
}
