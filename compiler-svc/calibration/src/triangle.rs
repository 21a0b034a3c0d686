//! How much of one column's rounding another can make up for.

/// Rows that are finished before the others hear of them: what stays in a core's cache.
const BLOCK: usize = 32;

/// A triangle `M` with `MᵀM = H`, the damped second moments `[K, K]` of a matrix's inputs; its rows are divided by their
/// diagonal. What a row of weights loses by the rounding `e [K]` is
/// `e·H·eᵀ = Σ_j importance[j] · (e[j] + Σ_{i<j} e[i] · row(j)[i])²`: column by column from the first on, each can bring its
/// square to zero but for its own rounding. It is GPTQ's order of elimination without an inverse.
#[derive(Debug)]
pub struct Triangle {
    columns: usize,
    /// `[K, K]`, row-major; what is after the diagonal is never read.
    rows: Vec<f32>,
    importance: Vec<f32>,
}

impl Triangle {
    /// Of the sums of `x · xᵀ` over inputs `x`, `moments [columns, columns]`. `damping`, in means of their diagonal, is
    /// added to it: columns that are always zero, or repeat others, then round by themselves.
    ///
    /// `None` where nothing was summed up, or something that is not finite.
    #[must_use]
    pub fn new(moments: &[f32], columns: usize, damping: f64) -> Option<Self> {
        let mut rows: Vec<f64> = moments.iter().map(|&sum| f64::from(sum)).collect();
        let mean = rows.iter().step_by(columns + 1).sum::<f64>() / columns.max(1) as f64;
        if !mean.is_finite() || mean <= 0.0 {
            return None;
        }
        rows.iter_mut().step_by(columns + 1).for_each(|x| *x += damping * mean);
        let mut end = columns;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            let (before, block) = rows.split_at_mut(start * columns);
            let block = &mut block[..(end - start) * columns];
            finish(block, start, columns)?;
            for (place, row) in before.chunks_exact_mut(columns).enumerate() {
                for done in block.chunks_exact(columns) {
                    subtract(done[place], &done[..=place], &mut row[..=place]);
                }
            }
            end = start;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded to the precision of the weights")]
        let single = |x: f64| x as f32;
        let importance = rows.iter().step_by(columns + 1).map(|x| single(x * x)).collect();
        for (place, row) in rows.chunks_exact_mut(columns).enumerate() {
            let scale = 1.0 / row[place];
            row.iter_mut().for_each(|x| *x *= scale);
        }
        Some(Self { columns, rows: rows.into_iter().map(single).collect(), importance })
    }

    /// What each column's own rounding counts, once those after it make up for it.
    #[must_use]
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// What column `column` should add for the rounding of the columns from `from` on that are before it.
    pub(crate) fn owed(&self, column: usize, from: usize, until: usize, rounding: &[f32]) -> f32 {
        let row = &self.rows[column * self.columns..];
        dot(&row[from..until], &rounding[from..until])
    }
}

/// Finishes a block's rows, the last one first.
fn finish(block: &mut [f64], start: usize, columns: usize) -> Option<()> {
    for at in (0..block.len() / columns).rev() {
        let (before, row) = block.split_at_mut(at * columns);
        let row = &mut row[..columns];
        let diagonal = row[start + at].sqrt();
        if !diagonal.is_finite() || diagonal <= 0.0 {
            return None;
        }
        row[..=start + at].iter_mut().for_each(|x| *x /= diagonal);
        for (place, other) in before.chunks_exact_mut(columns).enumerate() {
            let place = start + place;
            subtract(row[place], &row[..=place], &mut other[..=place]);
        }
    }
    Some(())
}

fn subtract(factor: f64, of: &[f64], from: &mut [f64]) {
    from.iter_mut().zip(of).for_each(|(x, y)| *x -= factor * y);
}

/// In lanes, which a compiler makes vectors of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{lost, moments, numbers};

    #[test]
    fn its_squares_are_what_a_rounding_loses() {
        for columns in [1, 5, 32, 70] {
            let sums = moments(columns, 200);
            let triangle = Triangle::new(&sums, columns, 0.0).unwrap();
            for seed in 2..6 {
                let rounding = numbers(columns, seed);
                let square = |j: usize| {
                    let whole = rounding[j] + triangle.owed(j, 0, j, &rounding);
                    f64::from(triangle.importance[j]) * f64::from(whole).powi(2)
                };
                let (found, expected) = ((0..columns).map(square).sum::<f64>(), lost(&sums, &rounding));
                // The triangle is kept in fp32.
                assert!((found / expected - 1.0).abs() < 1e-4, "{columns}: {found} {expected}");
            }
        }
    }

    #[test]
    fn columns_that_are_zero_or_repeat_others_need_damping() {
        let sums = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        assert!(Triangle::new(&sums, 3, 0.0).is_none());
        let triangle = Triangle::new(&sums, 3, 0.01).unwrap();
        assert_eq!(triangle.owed(2, 0, 2, &[1.0, 1.0, 0.0]), 0.0);
    }

    #[test]
    fn no_inputs_or_none_that_are_numbers_make_no_triangle() {
        for sums in [[0.0; 4], [f32::NAN; 4], [f32::INFINITY; 4]] {
            assert!(Triangle::new(&sums, 2, 0.01).is_none());
        }
    }
}
