//! Activations in the order in which the blocks of quantised weights come.

use crate::isa::{Kernel, VectorShape};
use crate::simd::Simd;
use crate::weight::QuantizedMatrix;
use crate::{Scratch, ThreadPool, Weight};

use super::decode::is_paired;
use super::gemv::Rows;
use super::{Product, Reduction, decoded, weights};
use crate::scratch::WorkerScratch;

/// What decides the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// Whether blocks are even columns and odd ones.
    paired: bool,
    columns: usize,
    group_size: usize,
}

impl Order {
    pub(super) const fn of(matrix: &QuantizedMatrix<'_>) -> Self {
        Self { paired: is_paired(matrix.format), columns: matrix.columns, group_size: matrix.group_size }
    }

    const fn groups(self) -> usize {
        match self.columns.checked_div(self.group_size) {
            Some(groups) => groups,
            None => 0,
        }
    }

    /// Length of a row, each group whole blocks of two vectors.
    const fn row_len(self, lanes: usize) -> usize {
        self.groups() * self.group_size.next_multiple_of(2 * lanes)
    }
}

/// Activations in an order, groups filled up with zeros, and their sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stage<'a> {
    order: Order,
    /// `[m, x_stride]`.
    pub(super) x: &'a [f32],
    pub(super) x_stride: usize,
    /// `[m, groups]`: the sum of the activations of each group.
    pub(super) sums: &'a [f32],
}

/// The activations of a step in every order that its weights need.
#[derive(Debug)]
pub(super) struct Stages<'a>(Vec<Stage<'a>>);

impl Stages<'_> {
    /// The activations for a weight, whose order [`stage`] has seen.
    pub(super) fn of(&self, matrix: &QuantizedMatrix<'_>) -> Stage<'_> {
        let order = Order::of(matrix);
        let found = self.0.iter().find(|stage| stage.order == order).copied();
        found.unwrap_or(Stage { order, x: &[], x_stride: 0, sums: &[] })
    }
}

/// Puts the activations into the orders that the products need whose weights are not decoded; each worker gets `each` numbers of memory besides.
pub(super) fn stage<'a>(
    pool: &ThreadPool,
    scratch: &'a mut Scratch,
    reduction: Reduction,
    x: &Rows<'_>,
    products: &[Product<'_>],
    each: usize,
) -> (Stages<'a>, WorkerScratch<'a>) {
    let mut orders: Vec<Order> = Vec::new();
    for weight in weights(products) {
        if let Weight::Quantized(matrix) = weight
            && !decoded::is_wanted(pool.isa(), reduction, matrix)
            && !orders.contains(&Order::of(matrix))
        {
            orders.push(Order::of(matrix));
        }
    }
    let (lanes, _) = pool.isa().dispatch(VectorShape);
    let len = |order: &Order| x.m * (order.row_len(lanes) + order.groups());
    let (mut memory, workers) = scratch.split(orders.iter().map(len).sum(), pool.threads(), each);
    let mut stages = Vec::with_capacity(orders.len());
    for order in orders {
        let (own, rest) = std::mem::take(&mut memory).split_at_mut(len(&order));
        memory = rest;
        let x_stride = order.row_len(lanes);
        let (staged, sums) = own.split_at_mut(x.m * x_stride);
        pool.isa().dispatch(Fill { order, x, staged, sums });
        stages.push(Stage { order, x: staged, x_stride, sums });
    }
    (Stages(stages), workers)
}

struct Fill<'a> {
    order: Order,
    x: &'a Rows<'a>,
    staged: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Order { paired, columns, group_size } = self.order;
        let block = 2 * S::LANES;
        let (groups, group_len) = (self.order.groups(), group_size.next_multiple_of(block));
        if groups == 0 {
            return;
        }
        let staged = self.staged.chunks_exact_mut(groups * group_len);
        for (t, (staged, sums)) in staged.zip(self.sums.chunks_exact_mut(groups)).enumerate() {
            let x = &self.x.x[t * self.x.stride..][..columns];
            let of_groups = x.chunks_exact(group_size).zip(staged.chunks_exact_mut(group_len)).zip(sums);
            for ((x, staged), sum) in of_groups {
                let mut total = s.splat(0.0);
                for (x, staged) in x.chunks(block).zip(staged.chunks_exact_mut(block)) {
                    if paired && x.len() == block {
                        let (even, odd) = staged.split_at_mut(S::LANES);
                        for ((pair, even), odd) in x.chunks_exact(2).zip(even).zip(odd) {
                            (*even, *odd) = (pair[0], pair[1]);
                        }
                    } else if paired {
                        staged.fill(0.0);
                        for (i, &x) in x.iter().enumerate() {
                            staged[i % 2 * S::LANES + i / 2] = x;
                        }
                    } else {
                        let (there, missing) = staged.split_at_mut(x.len());
                        there.copy_from_slice(x);
                        missing.fill(0.0);
                    }
                    // SAFETY: a block is two vectors.
                    unsafe {
                        let from = staged.as_ptr();
                        total = s.add(total, s.add(s.load(from), s.load(from.add(S::LANES))));
                    }
                }
                *sum = s.reduce_add(total);
            }
        }
    }
}
