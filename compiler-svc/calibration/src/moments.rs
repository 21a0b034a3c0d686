//! Second moments of what matrices see.

use roundhouse_cpu_kernels::{Elements, LinearJob, Matrix, Reduction, Scratch, ThreadPool, linear};

/// Sums of `x · xᵀ` over inputs `x` of several matrices.
pub(crate) struct Moments {
    pool: ThreadPool,
    scratch: Scratch,
    widths: Vec<usize>,
    sums: Vec<Vec<f32>>,
}

impl Moments {
    /// Of inputs of these widths.
    pub(crate) fn new(threads: usize, widths: Vec<usize>) -> Self {
        let sums = widths.iter().map(|width| vec![0.0; width * width]).collect();
        Self { pool: ThreadPool::named("calibration", threads), scratch: Scratch::default(), widths, sums }
    }

    /// Adds tokens, each all inputs one after the other.
    pub(crate) fn add(&mut self, tokens: &[f32]) {
        let all: usize = self.widths.iter().sum();
        let count = tokens.len() / all.max(1);
        let mut first = 0;
        for (&width, sums) in self.widths.iter().zip(&mut self.sums) {
            let column = |column: usize| tokens.iter().skip(first + column).step_by(all).copied();
            let transposed: Vec<f32> = (0..width).flat_map(column).collect();
            let matrix = Matrix { elements: Elements::F32(&transposed), rows: width, columns: count };
            let mut job = LinearJob {
                weight: matrix.into(),
                bias: None,
                accumulate: true,
                out: sums,
                out_stride: width,
            };
            let job = std::slice::from_mut(&mut job);
            let order = Reduction::BatchInvariant;
            linear(&self.pool, &mut self.scratch, order, &transposed, width, count, job);
            first += width;
        }
    }

    /// The sums `[width, width]`, in the order of the inputs.
    pub(crate) fn finish(self) -> Vec<Vec<f32>> {
        self.sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_has_the_products_of_its_own_columns() {
        let mut moments = Moments::new(2, vec![2, 1]);
        moments.add(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        moments.add(&[1.0, 0.0, 10.0]);
        assert_eq!(moments.finish(), [vec![18.0, 22.0, 22.0, 29.0], vec![145.0]]);
    }
}
