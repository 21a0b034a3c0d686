//! Embedding and matrix products.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Node, Op, ValueId};

use super::{Compiler, Place};
use crate::error::unsupported;
use crate::plan::group::bias;
use crate::plan::step::{LinearPart, LinearWeight, Step};
use crate::plan::view::{BufferId, Root, View};

impl Compiler<'_> {
    pub(super) fn embedding(&mut self, node: &Node) -> Result<Place, BackendError> {
        let ids = self.view(node.inputs[0])?;
        let ids = self.contiguous(&ids);
        let table = self.weight(node.inputs[1])?;
        let to = self.new_view_for(node.output);
        let buffer = buffer_of(&to)?;
        self.push_to(Step::Embedding { ids, table, to: buffer }, &to);
        Ok(Place::View(to))
    }

    /// Linears of one input.
    pub(super) fn linears(&mut self, nodes: &[&Node]) -> Result<(), BackendError> {
        let Some(first) = nodes.first() else { return Ok(()) };
        let x = self.view(first.inputs[0])?;
        let x = self.contiguous(&x);
        let mut parts = Vec::new();
        let mut elements = self.sizes.constant(0);
        for node in nodes {
            let to = self.new_view_for(node.output);
            parts.push(self.linear_part(node, &to, false)?);
            let added = to.elements(&mut self.sizes);
            elements = self.sizes.add(elements, added);
            self.place(node.output, Place::View(to));
        }
        self.push(Step::Linear { x, parts }, elements);
        Ok(())
    }

    pub(super) fn linear_silu_mul(&mut self, gate: &Node, up: &Node, mul: &Node) -> Result<(), BackendError> {
        let x = self.view(gate.inputs[0])?;
        let x = self.contiguous(&x);
        let (gate, up) = (self.linear_weight(gate)?, self.linear_weight(up)?);
        let to = self.new_view_for(mul.output);
        let buffer = buffer_of(&to)?;
        self.push_to(Step::LinearSiluMul { x, gate, up, to: buffer }, &to);
        self.place(mul.output, Place::View(to));
        Ok(())
    }

    pub(super) fn linear_add(
        &mut self,
        linear: &Node,
        residual: ValueId,
        add: &Node,
    ) -> Result<(), BackendError> {
        let x = self.view(linear.inputs[0])?;
        let x = self.contiguous(&x);
        let residual = self.view(residual)?;
        let whole = residual.is_contiguous(&mut self.sizes) && self.is_whole(&residual);
        let reusable = whole && residual.root != x.root && self.may_overwrite(&residual);
        let to = if reusable { residual } else { self.copy(&residual) };
        let part = self.linear_part(linear, &to, true)?;
        self.push_to(Step::Linear { x, parts: vec![part] }, &to);
        self.place(add.output, Place::View(to));
        Ok(())
    }

    /// Whether a contiguous view is all of its buffer.
    fn is_whole(&mut self, view: &View) -> bool {
        let elements = view.elements(&mut self.sizes);
        let Root::Buffer(id) = view.root else { return false };
        view.offset == self.sizes.constant(0) && self.buffers[id.0] == elements
    }

    fn linear_part(&mut self, node: &Node, to: &View, accumulate: bool) -> Result<LinearPart, BackendError> {
        let weight = self.linear_weight(node)?;
        let bias = bias(node).map(|bias| {
            self.weight(bias)?;
            Ok::<_, BackendError>(self.constant(bias))
        });
        Ok(LinearPart { weight, bias: bias.transpose()?, to: buffer_of(to)?, accumulate })
    }

    /// The weight of a linear, quantised or not.
    fn linear_weight(&mut self, node: &Node) -> Result<LinearWeight, BackendError> {
        let first = self.weight(node.inputs[1])?;
        let Op::QuantizedLinear(attributes) = node.op else { return Ok(LinearWeight::Plain(first)) };
        let scales = self.weight(node.inputs[2])?;
        let offsets = attributes.has_offsets.then(|| self.weight(node.inputs[3])).transpose()?;
        Ok(LinearWeight::Quantized { values: first, scales, offsets, quantization: attributes.quantization })
    }

    pub(super) fn matmul(&mut self, node: &Node, transpose_b: bool) -> Result<Place, BackendError> {
        let a = self.view(node.inputs[0])?;
        let b = self.view(node.inputs[1])?;
        let (a, mut b) = (self.with_fp32(&a), self.with_fp32(&b));
        if transpose_b {
            let mut permutation: Vec<usize> = (0..b.dims.len()).collect();
            let rank = permutation.len();
            permutation.swap(rank - 2, rank - 1);
            b = b.transpose(&permutation);
        }
        let to = self.new_view_for(node.output);
        self.push_to(Step::MatMul { a, b, to: to.clone() }, &to);
        Ok(Place::View(to))
    }

    /// The view itself, however it lies, if it is fp32, else a copy.
    pub(super) fn with_fp32(&mut self, view: &View) -> View {
        if matches!(view.root, Root::CacheTensor(_)) { self.copy(view) } else { view.clone() }
    }
}

pub(super) fn buffer_of(view: &View) -> Result<BufferId, BackendError> {
    match view.root {
        Root::Buffer(id) => Ok(id),
        _ => Err(unsupported("writing into something that is no activation")),
    }
}
