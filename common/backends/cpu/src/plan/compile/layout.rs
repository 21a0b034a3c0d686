//! Ops that move elements, or only say that they lie otherwise.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Dim, Node};

use super::{Compiler, Place};
use crate::error::unsupported;
use crate::plan::step::Step;
use crate::plan::view::{Root, View};

impl Compiler<'_> {
    pub(super) fn cat(&mut self, node: &Node, axis: usize) -> Result<Place, BackendError> {
        let parts = node.inputs.iter().map(|&id| self.view(id)).collect::<Result<Vec<View>, _>>()?;
        let integers = parts.iter().all(|part| matches!(part.root, Root::Integers(_)));
        let to = if integers { self.new_integers(node.output) } else { self.new_view_for(node.output) };
        let mut start = self.sizes.constant(0);
        for from in parts {
            let end = self.sizes.add(start, from.dims[axis]);
            let to = to.slice(axis, start, end, &mut self.sizes);
            let step = match integers {
                true => Step::CopyIntegers { from, to: to.clone() },
                false => Step::Copy { from, to: to.clone() },
            };
            self.push_to(step, &to);
            start = end;
        }
        Ok(Place::View(to))
    }

    pub(super) fn slice(
        &mut self,
        node: &Node,
        axis: usize,
        start: &Dim,
        end: &Dim,
    ) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let (start, end) = (self.sizes.dim(start), self.sizes.dim(end));
        Ok(Place::View(x.slice(axis, start, end, &mut self.sizes)))
    }

    pub(super) fn reshape(&mut self, node: &Node) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let dims = self.dims(node.output);
        if let Some(view) = x.reshape(&dims, &mut self.sizes) {
            return Ok(Place::View(view));
        }
        let copied = self.copy(&x);
        let view = copied.reshape(&dims, &mut self.sizes);
        view.map(Place::View).ok_or_else(|| unsupported("a reshape of a contiguous value"))
    }

    pub(super) fn transpose(&mut self, node: &Node, permutation: &[usize]) -> Result<Place, BackendError> {
        Ok(Place::View(self.view(node.inputs[0])?.transpose(permutation)))
    }

    pub(super) fn gather(&mut self, node: &Node, axis: usize) -> Result<Place, BackendError> {
        let ids = self.view(node.inputs[1])?;
        let ids = self.contiguous(&ids);
        if axis == 0
            && self.dims(node.inputs[0]).len() == 2
            && let Place::Weight(table) = self.find(node.inputs[0])?
        {
            let to = self.new_view_for(node.output);
            if let Root::Buffer(buffer) = to.root {
                self.push_to(Step::Embedding { ids, table, to: buffer }, &to);
            }
            return Ok(Place::View(to));
        }
        let x = self.view(node.inputs[0])?;
        if matches!(x.root, Root::Integers(_)) {
            return Err(unsupported("gather of integers"));
        }
        let x = self.with_fp32(&x);
        let to = self.new_view_for(node.output);
        self.push_to(Step::Gather { x, ids, axis, to: to.clone() }, &to);
        Ok(Place::View(to))
    }

    pub(super) fn replace_rows(&mut self, node: &Node) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let reusable = x.is_contiguous(&mut self.sizes) && self.may_overwrite(&x);
        let to = if reusable { x } else { self.copy(&x) };
        let step = match self.find(node.inputs[1])? {
            Place::PerSequence => Step::ImageRows { to: to.clone() },
            _ => {
                let (rows, indices) = (self.view(node.inputs[1])?, self.view(node.inputs[2])?);
                let (rows, indices) = (self.with_contiguous_rows(&rows), self.contiguous(&indices));
                Step::ReplaceRows { rows, indices, to: to.clone() }
            }
        };
        self.push_to(step, &to);
        Ok(Place::View(to))
    }

    pub(super) fn select_rows(&mut self, node: &Node) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let from = self.with_contiguous_rows(&x);
        let to = self.new_view_for(node.output);
        self.push_to(Step::SelectRows { from, to: to.clone() }, &to);
        Ok(Place::View(to))
    }
}
