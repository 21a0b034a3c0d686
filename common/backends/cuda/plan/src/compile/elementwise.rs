//! Functions of one and two elements, softmax and casts.

use roundhouse_backend::BackendError;
use roundhouse_graph::{DType, Node, Op, ValueId};

use super::{Compiler, Place, aligned, fusion};
use crate::plan::Rows;
use crate::step::{BinaryOp, Function, Operand, Step};
use crate::unsupported;
use crate::view::{Axis, MAX_AXES, Span, Strided, View};

impl Compiler<'_> {
    pub(super) fn map(&mut self, node: &Node) -> Result<View, BackendError> {
        let function = match node.op {
            Op::Scale { factor } => Function::Scale(factor),
            Op::Sigmoid => Function::Sigmoid,
            Op::SoftCap { cap } => Function::SoftCap(cap),
            ref op => {
                let activation = fusion::activation(op).ok_or_else(|| unsupported(op.name()))?;
                Function::Activation(activation)
            }
        };
        let from = self.view(node.inputs[0])?;
        let to = self.output(node.output, &from)?;
        self.push_map(function, &from, &to)?;
        Ok(to)
    }

    pub(super) fn push_map(
        &mut self,
        function: Function,
        from: &View,
        to: &View,
    ) -> Result<(), BackendError> {
        let (from, to) = aligned(from, to);
        if to.sizes.len() > MAX_AXES {
            return Err(unsupported(format!("more than {MAX_AXES} axes")));
        }
        self.steps.push(Step::Map { function, from, to });
        Ok(())
    }

    pub(super) fn binary(&mut self, node: &Node) -> Result<View, BackendError> {
        let op = match node.op {
            Op::Add => BinaryOp::Add,
            Op::Mul => BinaryOp::Mul,
            _ => BinaryOp::SiluMul,
        };
        let views: Vec<View> = node.inputs.iter().filter_map(|&id| self.view(id).ok()).collect();
        let like = views
            .first()
            .cloned()
            .ok_or_else(|| unsupported("two operands that are the same for all rows"))?;
        let to = self.output(node.output, &like)?;
        if views.iter().any(|view| self.rows_of(view.span) != self.rows_of(like.span)) {
            return Err(unsupported("rows of different tokens"));
        }
        let operands = node.inputs.iter().map(|&id| self.operand(id, &to)).collect::<Result<Vec<_>, _>>()?;
        // Axes of one element are dropped everywhere alike.
        let kept: Vec<usize> = (0..to.axes.len()).filter(|&axis| to.axes[axis].size != 1).collect();
        if kept.len() > MAX_AXES {
            return Err(unsupported(format!("more than {MAX_AXES} axes")));
        }
        let pick = |axes: &[Axis]| -> (Vec<usize>, Vec<usize>) {
            (
                kept.iter().map(|&axis| to.axes[axis].size).collect(),
                kept.iter().map(|&axis| axes[axis].stride).collect(),
            )
        };
        let mut operands = operands.into_iter().map(|(source, axes)| {
            let (sizes, strides) = pick(&axes);
            match source {
                Source::Rows(span) => Operand::Rows(Strided { span, sizes, strides }),
                Source::Weight(weight) => Operand::Weight { weight, strides },
            }
        });
        let (Some(a), Some(b)) = (operands.next(), operands.next()) else {
            return Err(unsupported("an operand that is missing"));
        };
        let (sizes, strides) = pick(&to.axes);
        self.steps.push(Step::Binary { op, a, b, to: Strided { span: to.span, sizes, strides } });
        Ok(to)
    }

    /// An operand with the axes of the result, and a stride of 0 where it repeats.
    fn operand(&mut self, id: ValueId, to: &View) -> Result<(Source, Vec<Axis>), BackendError> {
        let (source, axes) = match self.places.get(&id) {
            Some(Place::View(view)) => {
                let from_end = |view: &View| view.axes.len() - view.tokens;
                if from_end(view) != from_end(to) {
                    return Err(unsupported("operands whose tokens are along different axes"));
                }
                (Source::Rows(view.span), view.axes.clone())
            }
            _ => {
                let sizes = self.sizes(id)?;
                // A dimension along the tokens is that of a table, not of a row.
                let past_tokens = to.axes.len() - to.tokens - 1;
                if sizes.iter().rev().skip(past_tokens).any(|&size| size != 1) {
                    return Err(unsupported("a weight with a dimension along the tokens"));
                }
                (Source::Weight(self.weight(id)?), crate::view::row_major(&sizes))
            }
        };
        let missing =
            to.axes.len().checked_sub(axes.len()).ok_or_else(|| unsupported("operands of this shape"))?;
        let repeated = |size: usize| Axis { size, stride: 0 };
        let mut all: Vec<Axis> = to.axes[..missing].iter().map(|axis| repeated(axis.size)).collect();
        for (axis, to) in axes.iter().zip(&to.axes[missing..]) {
            all.push(if axis.size == to.size { *axis } else { repeated(to.size) });
        }
        Ok((source, all))
    }

    pub(super) fn softmax(&mut self, node: &Node, axis: usize) -> Result<View, BackendError> {
        let from = self.contiguous(node.inputs[0])?;
        if axis + 1 != from.axes.len() || axis == from.tokens {
            return Err(unsupported("a softmax along another axis than the last"));
        }
        let to = self.output(node.output, &from)?;
        let (groups, _, width) = from.groups().ok_or_else(|| unsupported("a softmax of this layout"))?;
        self.steps.push(Step::Softmax { from: from.span, to: to.span, groups, width });
        Ok(to)
    }

    pub(super) fn cast(&mut self, node: &Node, to: DType) -> Result<View, BackendError> {
        if !to.is_float() {
            return Err(unsupported(format!("a cast to {to}")));
        }
        if let Some(Place::Ids(ids)) = self.places.get(&node.inputs[0]).cloned() {
            let tokens = self.token_axis(node.output).ok_or_else(|| unsupported("numbers without tokens"))?;
            let buffer = self.buffer(Rows::Tokens, 1, to);
            self.steps.push(Step::Numbers { ids, to: Span::of(buffer) });
            return Ok(View::of(buffer, tokens, &self.sizes(node.output)?));
        }
        let from = self.view(node.inputs[0])?;
        if self.dtype_of(from.span) == to {
            return Ok(from);
        }
        let result = self.output(node.output, &from)?;
        self.push_map(Function::Copy, &from, &result)?;
        Ok(result)
    }
}

/// Where an operand is.
enum Source {
    Rows(Span),
    Weight(crate::plan::WeightId),
}
