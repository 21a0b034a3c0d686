//! Parts of rows.

use serde::{Deserialize, Serialize};

use crate::plan::BufferId;

/// Axes of a row that a strided step can have.
pub const MAX_AXES: usize = 3;

/// Elements of every row of a buffer that lie side by side, from `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The buffer.
    pub buffer: BufferId,
    /// Elements before it in a row.
    pub offset: usize,
}

/// Elements of every row of a buffer in a grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strided {
    /// Where the first one is.
    pub span: Span,
    /// Elements along each axis, outermost first.
    pub sizes: Vec<usize>,
    /// From one to the next, in elements.
    pub strides: Vec<usize>,
}

/// An axis of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) size: usize,
    pub(crate) stride: usize,
}

/// A value of the graph as a part of rows: its axes but for the batch and the tokens, which are kept as axes of one
/// element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) span: Span,
    /// Which of the axes is that of the tokens.
    pub(crate) tokens: usize,
    pub(crate) axes: Vec<Axis>,
}

const ONE: Axis = Axis { size: 1, stride: 0 };

impl View {
    /// A whole buffer, with these sizes of the axes.
    pub(crate) fn of(buffer: BufferId, tokens: usize, sizes: &[usize]) -> Self {
        let span = Span { buffer, offset: 0 };
        Self { span, tokens, axes: row_major(sizes) }
    }

    /// Elements of a row.
    pub(crate) fn elements(&self) -> usize {
        self.axes.iter().map(|axis| axis.size).product()
    }

    /// Whether its elements lie side by side in order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        self.axes.iter().rev().filter(|axis| axis.size != 1).all(|axis| {
            let fits = axis.stride == stride;
            stride *= axis.size;
            fits
        })
    }

    pub(crate) fn transpose(&self, permutation: &[usize]) -> Option<Self> {
        let axes = permutation.iter().map(|&axis| self.axes.get(axis).copied()).collect::<Option<_>>()?;
        let tokens = permutation.iter().position(|&axis| axis == self.tokens)?;
        Some(Self { span: self.span, tokens, axes })
    }

    pub(crate) fn slice(&self, axis: usize, start: usize, end: usize) -> Option<Self> {
        let mut view = self.clone();
        let cut = view.axes.get_mut(axis).filter(|cut| start <= end && end <= cut.size)?;
        view.span.offset += start * cut.stride;
        cut.size = end - start;
        Some(view)
    }

    /// The same elements in another shape, its axis of the tokens `tokens`; `None` where they would have to move.
    pub(crate) fn reshape(&self, tokens: usize, sizes: &[usize]) -> Option<Self> {
        let (before, after) = (self.axes.get(..self.tokens)?, self.axes.get(self.tokens + 1..)?);
        let mut axes = regroup(before, sizes.get(..tokens)?)?;
        axes.push(ONE);
        axes.extend(regroup(after, sizes.get(tokens + 1..)?)?);
        Some(Self { span: self.span, tokens, axes })
    }

    /// For a strided step: neighbouring axes that are one run are one axis.
    pub(crate) fn strided(&self) -> Strided {
        let runs = runs(&self.axes);
        Strided {
            span: self.span,
            sizes: runs.iter().map(|axis| axis.size).collect(),
            strides: runs.iter().map(|axis| axis.stride).collect(),
        }
    }

    /// As the last axis' elements in groups: how many groups, from one to the next, and how many elements.
    pub(crate) fn groups(&self) -> Option<(usize, usize, usize)> {
        let (last, outer) = self.axes.split_last()?;
        if last.size != 1 && last.stride != 1 {
            return None;
        }
        match runs(outer)[..] {
            [] => Some((1, last.size, last.size)),
            [only] => Some((only.size, only.stride, last.size)),
            _ => None,
        }
    }
}

pub(crate) fn row_major(sizes: &[usize]) -> Vec<Axis> {
    let mut stride = 1;
    let mut axes: Vec<Axis> = sizes
        .iter()
        .rev()
        .map(|&size| {
            let axis = Axis { size, stride };
            stride *= size;
            axis
        })
        .collect();
    axes.reverse();
    axes
}

/// Axes of more than one element, those joined that are one run of memory.
fn runs(axes: &[Axis]) -> Vec<Axis> {
    let mut runs: Vec<Axis> = Vec::new();
    for axis in axes.iter().filter(|axis| axis.size != 1) {
        match runs.last_mut() {
            Some(last) if last.stride == axis.size * axis.stride => {
                *last = Axis { size: last.size * axis.size, stride: axis.stride };
            }
            _ => runs.push(*axis),
        }
    }
    runs
}

/// Splits runs of memory into axes of these sizes.
fn regroup(axes: &[Axis], sizes: &[usize]) -> Option<Vec<Axis>> {
    let mut runs = runs(axes);
    let mut regrouped = Vec::new();
    for &size in sizes.iter().rev() {
        if size == 1 {
            regrouped.push(ONE);
            continue;
        }
        let run = runs.last_mut()?;
        if run.size % size != 0 {
            return None;
        }
        regrouped.push(Axis { size, stride: run.stride });
        *run = Axis { size: run.size / size, stride: run.stride * size };
        if run.size == 1 {
            runs.pop();
        }
    }
    regrouped.reverse();
    runs.is_empty().then_some(regrouped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(width: usize) -> View {
        View::of(BufferId(0), 1, &[1, 1, width])
    }

    #[test]
    fn heads_split_and_joined_again_never_move() {
        let split = rows(12).reshape(1, &[1, 1, 3, 4]).unwrap().transpose(&[0, 2, 1, 3]).unwrap();
        assert_eq!(split.tokens, 2);
        assert_eq!(split.groups(), Some((3, 4, 4)));
        let joined = split.transpose(&[0, 2, 1, 3]).unwrap().reshape(1, &[1, 1, 12]).unwrap();
        assert!(joined.is_contiguous());
        assert_eq!(joined.elements(), 12);
    }

    #[test]
    fn columns_cut_out_of_rows_split_into_heads_without_moving() {
        let cut = rows(36).slice(2, 12, 24).unwrap();
        assert_eq!(cut.span.offset, 12);
        assert_eq!(cut.reshape(1, &[1, 1, 3, 4]).unwrap().groups(), Some((3, 4, 4)));
        assert!(rows(36).slice(2, 30, 37).is_none());
    }

    #[test]
    fn what_would_have_to_move_is_no_view() {
        let split = rows(12).reshape(1, &[1, 1, 3, 4]).unwrap();
        let turned = split.transpose(&[0, 1, 3, 2]).unwrap();
        assert!(!turned.is_contiguous());
        assert!(turned.reshape(1, &[1, 1, 12]).is_none());
        assert_eq!(turned.strided().strides, [1, 4]);
        let heads_first = split.transpose(&[0, 2, 1, 3]).unwrap();
        assert!(heads_first.reshape(1, &[1, 1, 12]).is_none(), "heads before the tokens are not columns");
    }
}
