//! Where a value lies: a strided view of a buffer.

use std::ops::Range;

use super::size::{SizeId, SizeTable, Sizes};

/// The most dimensions of a value.
pub(crate) const MAX_RANK: usize = 8;

/// Which buffer of fp32 activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BufferId(pub(crate) usize);

/// What a view is a view of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Root {
    /// Activations, fp32.
    Buffer(BufferId),
    /// A weight that is read as fp32, by its number among those.
    Constant(usize),
    /// A tensor of the sequence's cache, in the cache's dtype.
    CacheTensor(usize),
    /// Integers.
    Integers(usize),
}

/// A strided view: element `[i, j, …]` is at `offset + i · strides[0] + j · strides[1] + …`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    pub(crate) root: Root,
    pub(crate) offset: SizeId,
    pub(crate) dims: Vec<SizeId>,
    pub(crate) strides: Vec<SizeId>,
}

impl View {
    /// All of `root`, row-major.
    pub(crate) fn contiguous(root: Root, dims: Vec<SizeId>, sizes: &mut SizeTable) -> Self {
        let strides = row_major(&dims, sizes);
        Self { root, offset: sizes.constant(0), dims, strides }
    }

    /// How many elements it has.
    pub(crate) fn elements(&self, sizes: &mut SizeTable) -> SizeId {
        sizes.product(&self.dims)
    }

    /// Whether its elements lie in row-major order without gaps, whatever the symbols.
    pub(crate) fn is_contiguous(&self, sizes: &mut SizeTable) -> bool {
        let expected = row_major(&self.dims, sizes);
        self.dims
            .iter()
            .zip(self.strides.iter().zip(&expected))
            .all(|(&dim, (stride, expected))| sizes.is_one(dim) || stride == expected)
    }

    /// Whether its elements lie without gaps in the order of some permutation of its axes that leaves the last axis
    /// innermost: then a function of rows runs over the memory as it lies.
    pub(crate) fn is_dense(&self, sizes: &mut SizeTable) -> bool {
        let mut axes: Vec<usize> =
            (0..self.dims.len()).filter(|&axis| !sizes.is_one(self.dims[axis])).collect();
        let mut expected = sizes.constant(1);
        if let Some(last) = self.dims.len().checked_sub(1)
            && let Some(place) = axes.iter().position(|&axis| axis == last)
        {
            if self.strides[last] != expected {
                return false;
            }
            expected = self.dims[last];
            axes.remove(place);
        }
        while !axes.is_empty() {
            let Some(place) = axes.iter().position(|&axis| self.strides[axis] == expected) else {
                return false;
            };
            let axis = axes.remove(place);
            expected = sizes.multiply(expected, self.dims[axis]);
        }
        true
    }

    /// Whether neighbours along the last axis are neighbours in memory.
    pub(crate) fn has_contiguous_rows(&self, sizes: &SizeTable) -> bool {
        match (self.dims.last(), self.strides.last()) {
            (Some(&dim), Some(&stride)) => sizes.is_one(dim) || sizes.is_one(stride),
            _ => true,
        }
    }

    /// This view's layout over another root, from its beginning. Only for a dense view.
    pub(crate) fn like(&self, root: Root, sizes: &mut SizeTable) -> Self {
        Self { root, offset: sizes.constant(0), ..self.clone() }
    }

    pub(crate) fn transpose(&self, permutation: &[usize]) -> Self {
        Self {
            root: self.root,
            offset: self.offset,
            dims: permutation.iter().map(|&axis| self.dims[axis]).collect(),
            strides: permutation.iter().map(|&axis| self.strides[axis]).collect(),
        }
    }

    /// `start..end` of an axis. The sizes made on the way fail to evaluate where the range is outside of the axis.
    pub(crate) fn slice(&self, axis: usize, start: SizeId, end: SizeId, sizes: &mut SizeTable) -> Self {
        let mut view = self.clone();
        sizes.subtract(self.dims[axis], end);
        view.dims[axis] = sizes.subtract(end, start);
        let skipped = sizes.multiply(start, self.strides[axis]);
        view.offset = sizes.add(self.offset, skipped);
        view
    }

    /// Dims of 1 stretched, and missing leading ones added, to the shape `dims`.
    pub(crate) fn broadcast(&self, dims: &[SizeId], sizes: &mut SizeTable) -> Self {
        let missing = dims.len().saturating_sub(self.dims.len());
        let zero = sizes.constant(0);
        let mut strides = vec![zero; missing];
        for (axis, &stride) in self.strides.iter().enumerate() {
            let stretched =
                sizes.is_one(self.dims[axis]) && dims.get(missing + axis) != Some(&self.dims[axis]);
            strides.push(if stretched { zero } else { stride });
        }
        Self { root: self.root, offset: self.offset, dims: dims.to_vec(), strides }
    }

    /// The same elements in the shape `dims`; `None` where they would have to move.
    pub(crate) fn reshape(&self, dims: &[SizeId], sizes: &mut SizeTable) -> Option<Self> {
        if self.is_contiguous(sizes) {
            let strides = row_major(dims, sizes);
            return Some(Self { root: self.root, offset: self.offset, dims: dims.to_vec(), strides });
        }
        let old: Vec<usize> = (0..self.dims.len()).filter(|&axis| !sizes.is_one(self.dims[axis])).collect();
        let new: Vec<usize> = (0..dims.len()).filter(|&axis| !sizes.is_one(dims[axis])).collect();
        let equal = |pair: &(&usize, &usize)| self.dims[*pair.0] == dims[*pair.1];
        let front = old.iter().zip(&new).take_while(equal).count();
        let back = old[front..].iter().rev().zip(new[front..].iter().rev()).take_while(equal).count();
        let (old_middle, new_middle) = (&old[front..old.len() - back], &new[front..new.len() - back]);

        // The axes between must be one run of memory, which the new axes then split anew.
        for pair in old_middle.windows(2) {
            if self.strides[pair[0]] != sizes.multiply(self.strides[pair[1]], self.dims[pair[1]]) {
                return None;
            }
        }
        let one = sizes.constant(1);
        let mut strides = vec![one; dims.len()];
        for (&a, &b) in
            old[..front].iter().zip(&new).chain(old[old.len() - back..].iter().zip(&new[new.len() - back..]))
        {
            strides[b] = self.strides[a];
        }
        let mut stride = old_middle.last().map_or(one, |&axis| self.strides[axis]);
        for &axis in new_middle.iter().rev() {
            strides[axis] = stride;
            stride = sizes.multiply(stride, dims[axis]);
        }
        Some(Self { root: self.root, offset: self.offset, dims: dims.to_vec(), strides })
    }

    /// Its numbers in one step.
    pub(crate) fn resolve(&self, sizes: &Sizes) -> Layout {
        let mut layout = Layout {
            offset: sizes.get(self.offset),
            rank: self.dims.len(),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
        };
        for (axis, (&dim, &stride)) in self.dims.iter().zip(&self.strides).enumerate() {
            layout.dims[axis] = sizes.get(dim);
            layout.strides[axis] = sizes.get(stride);
        }
        layout
    }
}

/// A view with its sizes evaluated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) offset: usize,
    rank: usize,
    dims: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
}

impl Layout {
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub(crate) fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    pub(crate) fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// A range of an axis.
    pub(crate) fn narrow(mut self, axis: usize, range: Range<usize>) -> Self {
        self.offset += range.start * self.strides[axis];
        self.dims[axis] = range.len();
        self
    }

    /// The same shape without gaps, from 0 on.
    pub(crate) fn row_major(&self) -> Self {
        let mut layout = Self { offset: 0, ..*self };
        let mut stride = 1;
        for axis in (0..self.rank).rev() {
            layout.strides[axis] = stride;
            stride *= self.dims[axis];
        }
        layout
    }
}

fn row_major(dims: &[SizeId], sizes: &mut SizeTable) -> Vec<SizeId> {
    let mut stride = sizes.constant(1);
    let mut strides = vec![stride; dims.len()];
    for (axis, &dim) in dims.iter().enumerate().rev() {
        strides[axis] = stride;
        stride = sizes.multiply(stride, dim);
    }
    strides
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use roundhouse_graph::{Dim, SymbolId};

    use super::*;

    /// `[1, seq, 12]`, row-major.
    fn rows(sizes: &mut SizeTable) -> View {
        let dims = vec![sizes.constant(1), sizes.dim(&Dim::symbol(SymbolId(0))), sizes.constant(12)];
        View::contiguous(Root::Buffer(BufferId(0)), dims, sizes)
    }

    fn heads(sizes: &mut SizeTable) -> Vec<SizeId> {
        vec![sizes.constant(1), sizes.dim(&Dim::symbol(SymbolId(0))), sizes.constant(3), sizes.constant(4)]
    }

    #[test]
    fn heads_split_and_joined_again_never_move() {
        let sizes = &mut SizeTable::new(HashMap::new());
        let rows = rows(sizes);
        let split = rows.reshape(&heads(sizes), sizes).unwrap().transpose(&[0, 2, 1, 3]);
        assert!(!split.is_contiguous(sizes));
        assert!(split.is_dense(sizes));
        let joined = split.transpose(&[0, 2, 1, 3]).reshape(&rows.dims, sizes).unwrap();
        assert_eq!(joined, rows);
    }

    #[test]
    fn columns_cut_out_of_rows_split_into_heads_without_moving() {
        let sizes = &mut SizeTable::new(HashMap::new());
        let dims = vec![sizes.constant(1), sizes.dim(&Dim::symbol(SymbolId(0))), sizes.constant(36)];
        let wide = View::contiguous(Root::Buffer(BufferId(0)), dims, sizes);
        let (start, end) = (sizes.constant(12), sizes.constant(24));
        let cut = wide.slice(2, start, end, sizes);
        assert!(!cut.is_dense(sizes));
        let split = cut.reshape(&heads(sizes), sizes).unwrap();
        assert_eq!(split.strides[1], sizes.constant(36));
        assert_eq!(split.strides[2], sizes.constant(4));
        assert_eq!(split.offset, start);
    }

    #[test]
    fn a_transposed_matrix_cannot_be_flattened_in_place() {
        let sizes = &mut SizeTable::new(HashMap::new());
        let split = rows(sizes).reshape(&heads(sizes), sizes).unwrap().transpose(&[0, 2, 1, 3]);
        let flat = split.elements(sizes);
        assert!(split.reshape(&[flat], sizes).is_none());
    }

    #[test]
    fn broadcasting_repeats_only_dims_of_one() {
        let sizes = &mut SizeTable::new(HashMap::new());
        let rows = rows(sizes);
        let bias = View::contiguous(Root::Constant(0), vec![sizes.constant(12)], sizes);
        let bias = bias.broadcast(&rows.dims, sizes);
        let (zero, one) = (sizes.constant(0), sizes.constant(1));
        assert_eq!(bias.strides, [zero, zero, one]);
        assert_eq!(rows.broadcast(&rows.dims.clone(), sizes).strides, rows.strides);
    }
}
