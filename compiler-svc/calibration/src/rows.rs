//! Rounds rows of a matrix.

use roundhouse_backend::GroupSteps;
use roundhouse_graph::QuantizedLinearAttributes;

use crate::Triangle;

/// A row of a matrix `[N, K]` on the grids of its groups.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedRow {
    /// What its bytes stand for, `[K]`.
    pub numbers: Vec<f32>,
    /// The grid of each group, `[K / group_size]`.
    pub steps: Vec<GroupSteps>,
}

/// Rounds a row `[K]` column by column, each one making up for those before it. A group's steps are found for what its
/// columns would be unrounded, which counts by their importance. Columns beyond the last whole group stay as they are.
#[must_use]
pub fn round_row(triangle: &Triangle, attributes: QuantizedLinearAttributes, row: &[f32]) -> RoundedRow {
    let format = attributes.quantization.format;
    let steps = |wanted: &[f32], importance: &[f32]| GroupSteps::weighted(attributes, wanted, importance);
    let group_size = (attributes.quantization.group_size as usize).max(1);
    let (numbers, steps) =
        round(triangle, group_size, row, steps, |steps: &GroupSteps, x| steps.nearest(format, x));
    RoundedRow { numbers, steps }
}

/// As [`round_row`], on any grid: `steps` finds a group's, `nearest` is the number on it that is nearest to another.
fn round<S>(
    triangle: &Triangle,
    group_size: usize,
    row: &[f32],
    steps: impl Fn(&[f32], &[f32]) -> S,
    nearest: impl Fn(&S, f32) -> f32,
) -> (Vec<f32>, Vec<S>) {
    let mut numbers = row.to_vec();
    // By how much each column went down.
    let mut rounding = vec![0.0; row.len()];
    let (mut owed, mut wanted) = (vec![0.0; group_size], vec![0.0; group_size]);
    let mut grids = Vec::with_capacity(row.len() / group_size);
    for (group, importance) in triangle.importance().chunks_exact(group_size).enumerate() {
        let first = group * group_size;
        for (place, (owed, wanted)) in owed.iter_mut().zip(&mut wanted).enumerate() {
            let column = first + place;
            *owed = triangle.owed(column, 0, first, &rounding);
            // Unrounded, a column makes up for all that is owed.
            let all = *owed + triangle.owed(column, first, column, &rounding);
            rounding[column] = -all;
            *wanted = row[column] + all;
        }
        let grid = steps(&wanted, importance);
        for (place, owed) in owed.iter().enumerate() {
            let column = first + place;
            let target = row[column] + owed + triangle.owed(column, first, column, &rounding);
            numbers[column] = nearest(&grid, target);
            rounding[column] = row[column] - numbers[column];
        }
        grids.push(grid);
    }
    (numbers, grids)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use roundhouse_graph::{Quantization, WeightFormat};

    use super::*;
    use crate::test_support::{lost, moments, numbers};

    fn quarter(x: f32) -> f32 {
        (x * 4.0).round() / 4.0
    }

    fn differences(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a - b).collect()
    }

    /// The inverse, by Gauss and Jordan.
    fn inverse(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let size = matrix.len();
        let unit = |row: usize| (0..size).map(move |column| f64::from(u8::from(row == column)));
        let mut rows: Vec<Vec<f64>> = matrix
            .iter()
            .enumerate()
            .map(|(at, row)| row.iter().copied().chain(unit(at)).collect())
            .collect();
        for pivot in 0..size {
            let by = rows[pivot][pivot];
            rows[pivot].iter_mut().for_each(|x| *x /= by);
            let from = rows[pivot].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(at, _)| *at != pivot) {
                let factor = row[pivot];
                row.iter_mut().zip(&from).for_each(|(x, y)| *x -= factor * y);
            }
        }
        rows.into_iter().map(|row| row[size..].to_vec()).collect()
    }

    /// The paper's steps as they are written: the inverse of the columns that are left, anew for each.
    fn eliminated(moments: &[f32], row: &[f32]) -> Vec<f32> {
        let wide = |row: &[f32]| row.iter().copied().map(f64::from).collect::<Vec<_>>();
        let mut left: Vec<Vec<f64>> = moments.chunks(row.len()).map(wide).collect();
        let mut weights = wide(row);
        for column in 0..row.len() {
            let inverse = inverse(&left);
            let rounded = (weights[column] * 4.0).round() / 4.0;
            let error = (weights[column] - rounded) / inverse[0][0];
            weights[column..].iter_mut().zip(&inverse[0]).for_each(|(x, factor)| *x -= error * factor);
            weights[column] = rounded;
            left.remove(0);
            for row in &mut left {
                row.remove(0);
            }
        }
        weights.into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn a_row_is_rounded_as_by_eliminating_one_column_after_the_other() {
        let sums = moments(24, 100);
        let triangle = Triangle::new(&sums, 24, 0.0).unwrap();
        for (group_size, seed) in
            [1, 6, 24].into_iter().flat_map(|size| (10..30).map(move |seed| (size, seed)))
        {
            let weights = numbers(24, seed);
            let (found, _) = round(&triangle, group_size, &weights, |_, _| (), |(), x| quarter(x));
            assert_eq!(found, eliminated(&sums, &weights), "groups of {group_size}, seed {seed}");
        }
    }

    #[test]
    fn a_group_sees_the_best_that_its_columns_can_do() {
        let sums = moments(8, 60);
        let triangle = Triangle::new(&sums, 8, 0.0).unwrap();
        let weights = numbers(8, 3);
        let seen = RefCell::new(Vec::new());
        let steps = |wanted: &[f32], _: &[f32]| seen.borrow_mut().extend_from_slice(wanted);
        let (found, _) = round(&triangle, 4, &weights, steps, |(), x| quarter(x));
        let seen = seen.into_inner();
        assert_eq!(seen[..4], weights[..4]);
        // After the first half as it was rounded, every other second half loses more.
        let loss = |second: &[f32]| lost(&sums, &differences(&weights, &[&found[..4], second].concat()));
        for (column, by) in (0..4).flat_map(|column| [(column, -0.01), (column, 0.01)]) {
            let mut other = seen[4..].to_vec();
            other[column] += by;
            assert!(loss(&other) > loss(&seen[4..]), "column {column}");
        }
    }

    #[test]
    fn rows_of_four_bits_lose_less_than_rounded_by_themselves() {
        let sums = moments(64, 300);
        let triangle = Triangle::new(&sums, 64, 0.01).unwrap();
        for has_offsets in [true, false] {
            let quantization = Quantization { format: WeightFormat::Int4, group_size: 16 };
            let attributes = QuantizedLinearAttributes { quantization, has_offsets };
            let (mut alone, mut together) = (0.0, 0.0);
            for seed in 40..60 {
                let weights = numbers(64, seed);
                let rounded = round_row(&triangle, attributes, &weights);
                together += lost(&sums, &differences(&weights, &rounded.numbers));
                let groups = weights.chunks(16).flat_map(|group| {
                    let steps = GroupSteps::weighted(attributes, group, &[1.0; 16]);
                    group.iter().map(move |&x| steps.nearest(WeightFormat::Int4, x))
                });
                alone += lost(&sums, &differences(&weights, &groups.collect::<Vec<_>>()));
            }
            assert!(together * 1.5 < alone, "{has_offsets}: {together} {alone}");
        }
    }
}
