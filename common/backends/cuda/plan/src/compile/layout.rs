//! Other shapes, parts and orders of the same elements.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Dim, Node};

use super::Compiler;
use crate::plan::Rows;
use crate::step::{Function, Step};
use crate::unsupported;
use crate::view::{Span, View};

impl Compiler<'_> {
    pub(super) fn select(&mut self, node: &Node) -> Result<View, BackendError> {
        let from = self.contiguous(node.inputs[0])?;
        let width = from.elements();
        let buffer = self.buffer(Rows::Selected, width, self.dtype_of(from.span));
        self.steps.push(Step::Select { from: from.span, to: Span::of(buffer), width });
        Ok(View::of(buffer, from.tokens, &self.sizes(node.output)?))
    }

    pub(super) fn reshape(&mut self, node: &Node) -> Result<View, BackendError> {
        let from = self.view(node.inputs[0])?;
        let sizes = self.sizes(node.output)?;
        // The tokens of selected rows are an axis of one element, which stays where it is.
        let tokens = self.token_axis(node.output).unwrap_or(from.tokens);
        if let Some(view) = from.reshape(tokens, &sizes) {
            return Ok(view);
        }
        let copy = self.contiguous(node.inputs[0])?;
        copy.reshape(tokens, &sizes).ok_or_else(|| unsupported("a reshape across the tokens"))
    }

    pub(super) fn transpose(&mut self, node: &Node, permutation: &[usize]) -> Result<View, BackendError> {
        let from = self.view(node.inputs[0])?;
        from.transpose(permutation).ok_or_else(|| unsupported("a transpose of this form"))
    }

    pub(super) fn slice(
        &mut self,
        node: &Node,
        axis: usize,
        start: &Dim,
        end: &Dim,
    ) -> Result<View, BackendError> {
        let from = self.view(node.inputs[0])?;
        let bound = |dim: &Dim| dim.as_constant().and_then(|bound| usize::try_from(bound).ok());
        let (Some(start), Some(end)) = (bound(start), bound(end)) else {
            return Err(unsupported("a slice whose bounds depend on the length of the sequence"));
        };
        let cut = if axis == from.tokens { None } else { from.slice(axis, start, end) };
        cut.ok_or_else(|| unsupported("a slice of the tokens"))
    }

    pub(super) fn cat(&mut self, node: &Node, axis: usize) -> Result<View, BackendError> {
        let parts = node.inputs.iter().map(|&id| self.view(id)).collect::<Result<Vec<_>, _>>()?;
        let first = parts.first().cloned().ok_or_else(|| unsupported("a cat of nothing"))?;
        let alike =
            |part: &View| part.tokens == first.tokens && self.rows_of(part.span) == self.rows_of(first.span);
        if axis == first.tokens || !parts.iter().all(alike) {
            return Err(unsupported("a cat of tokens"));
        }
        let to = self.output(node.output, &first)?;
        let mut start = 0;
        for part in &parts {
            let size = part.axes.get(axis).map_or(0, |axis| axis.size);
            let place =
                to.slice(axis, start, start + size).ok_or_else(|| unsupported("a cat of this form"))?;
            start += size;
            self.push_map(Function::Copy, part, &place)?;
        }
        Ok(to)
    }
}
