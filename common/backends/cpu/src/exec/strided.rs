//! Walks over strided views.

use crate::plan::Layout;

/// The most axes that are walked.
const MAX_RANK: usize = 8;

/// A run along the innermost axis: where it starts in each operand, how many elements it has, and how far apart they
/// are in each.
pub(super) struct Run<const N: usize> {
    pub(super) offsets: [usize; N],
    pub(super) length: usize,
    pub(super) strides: [usize; N],
}

/// Calls `visit` for runs that together are all elements of operands of one shape, each once, in the order in which the
/// first operand lies. Axes that lie alike in all operands are walked as one.
pub(super) fn for_each_run<const N: usize>(operands: [&Layout; N], mut visit: impl FnMut(Run<N>)) {
    let dims = operands[0].dims();
    if dims.contains(&0) {
        return;
    }
    let mut axes: [(usize, [usize; N]); MAX_RANK] = [(1, [0; N]); MAX_RANK];
    let mut rank = 0;
    for (axis, &dim) in dims.iter().enumerate().filter(|(_, dim)| **dim != 1) {
        axes[rank] = (dim, operands.map(|operand| operand.strides()[axis]));
        rank += 1;
    }
    axes[..rank].sort_by_key(|(_, strides)| std::cmp::Reverse(strides[0]));
    let mut merged = 0;
    for axis in 1..rank {
        let (dim, strides) = axes[axis];
        let (outer_dim, outer) = axes[merged];
        if (0..N).all(|operand| outer[operand] == strides[operand] * dim) {
            axes[merged] = (outer_dim * dim, strides);
        } else {
            merged += 1;
            axes[merged] = (dim, strides);
        }
    }
    let (outer, (length, strides)) = match rank {
        0 => (&axes[..0], (1, [1; N])),
        _ => (&axes[..merged], axes[merged]),
    };
    let mut index = [0_usize; MAX_RANK];
    let mut offsets = operands.map(|operand| operand.offset);
    loop {
        visit(Run { offsets, length, strides });
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            let (dim, steps) = outer[axis];
            index[axis] += 1;
            if index[axis] < dim {
                (0..N).for_each(|operand| offsets[operand] += steps[operand]);
                break;
            }
            index[axis] = 0;
            (0..N).for_each(|operand| offsets[operand] -= steps[operand] * (dim - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::plan::{BufferId, Root, SizeTable, Sizes, View};

    use super::*;

    fn layout(dims: &[usize], strides: &[usize], offset: usize) -> Layout {
        let sizes = &mut SizeTable::new(HashMap::new());
        let mut ids = |numbers: &[usize]| numbers.iter().map(|&number| sizes.constant(number)).collect();
        let (dims, strides) = (ids(dims), ids(strides));
        let view = View { root: Root::Buffer(BufferId(0)), offset: sizes.constant(offset), dims, strides };
        let mut values = Sizes::default();
        sizes.evaluate(|_| None, &mut values).unwrap();
        view.resolve(&values)
    }

    fn pairs(a: &Layout, b: &Layout) -> (usize, Vec<(usize, usize)>) {
        let (mut runs, mut pairs) = (0, Vec::new());
        for_each_run([a, b], |run| {
            runs += 1;
            pairs.extend(
                (0..run.length)
                    .map(|i| (run.offsets[0] + i * run.strides[0], run.offsets[1] + i * run.strides[1])),
            );
        });
        (runs, pairs)
    }

    #[test]
    fn views_that_lie_alike_are_one_run() {
        let transposed = layout(&[1, 3, 2, 4], &[24, 4, 12, 1], 0);
        let (runs, pairs) = pairs(&transposed, &transposed);
        assert_eq!(runs, 1);
        assert_eq!(pairs, (0..24).map(|i| (i, i)).collect::<Vec<_>>());
    }

    #[test]
    fn every_element_of_a_transpose_is_visited_once() {
        let (runs, pairs) = pairs(&layout(&[2, 3], &[3, 1], 10), &layout(&[2, 3], &[1, 2], 0));
        assert_eq!(runs, 2);
        assert_eq!(pairs, [(10, 0), (11, 2), (12, 4), (13, 1), (14, 3), (15, 5)]);
    }

    #[test]
    fn broadcast_operands_stand_still() {
        let (_, pairs) = pairs(&layout(&[2, 2], &[2, 1], 0), &layout(&[2, 2], &[0, 1], 0));
        assert_eq!(pairs, [(0, 0), (1, 1), (2, 0), (3, 1)]);
    }

    #[test]
    fn scalars_are_visited_and_nothing_is_not() {
        assert_eq!(pairs(&layout(&[], &[], 5), &layout(&[], &[], 0)).1, [(5, 0)]);
        assert_eq!(pairs(&layout(&[2, 0], &[0, 1], 0), &layout(&[2, 0], &[0, 1], 0)).1, []);
    }
}
