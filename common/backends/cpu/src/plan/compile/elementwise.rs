//! Sums, products, activations, norms and softmax: in place where nothing else reads the input.

use roundhouse_backend::BackendError;
use roundhouse_graph::{DType, Node, Op};

use super::{Compiler, Place};
use crate::error::unsupported;
use crate::plan::step::{BinaryOp, Function, Norm, Step};
use crate::plan::view::{Root, View};

impl Compiler<'_> {
    pub(super) fn binary(&mut self, node: &Node) -> Result<Place, BackendError> {
        let op = match node.op {
            Op::Add => BinaryOp::Add,
            Op::Mul => BinaryOp::Mul,
            _ => BinaryOp::SiluMul,
        };
        let dims = self.dims(node.output);
        let a = self.view(node.inputs[0])?;
        let b = self.view(node.inputs[1])?;
        let (a, b) = (self.with_fp32(&a), self.with_fp32(&b));

        // An operand of the output's shape may become the output.
        let in_place = [(&a, &b), (&b, &a)].into_iter().find(|(to, other)| {
            let fits = op != BinaryOp::SiluMul && to.dims == dims && to.root != other.root;
            fits && to.is_dense(&mut self.sizes) && self.may_overwrite(to)
        });
        let target = in_place.map(|(to, other)| (to.clone(), other.clone()));
        if let Some((to, other)) = target {
            let b = other.broadcast(&dims, &mut self.sizes);
            self.push_to(Step::Binary { op, a: None, b, to: to.clone() }, &to);
            return Ok(Place::View(to));
        }
        let a = a.broadcast(&dims, &mut self.sizes);
        let b = b.broadcast(&dims, &mut self.sizes);
        // Lying like an operand keeps the memory of both walks in order.
        let to = match a.is_dense(&mut self.sizes) {
            true => self.new_view_like(&a),
            false => self.new_view(dims),
        };
        self.push_to(Step::Binary { op, a: Some(a), b, to: to.clone() }, &to);
        Ok(Place::View(to))
    }

    pub(super) fn map(&mut self, node: &Node) -> Result<Place, BackendError> {
        let function = match node.op {
            Op::Scale { factor } => Function::Scale(factor),
            Op::Gelu { approximation } => Function::Gelu(approximation),
            Op::SoftCap { cap } => Function::SoftCap(cap),
            Op::Sigmoid => Function::Sigmoid,
            _ => Function::Silu,
        };
        let x = self.view(node.inputs[0])?;
        Ok(Place::View(self.mapped(function, &x)))
    }

    fn mapped(&mut self, function: Function, x: &View) -> View {
        let x = self.dense(x);
        let (from, to) = match self.may_overwrite(&x) {
            true => (None, x),
            false => (Some(x.clone()), self.new_view_like(&x)),
        };
        self.push_to(Step::Map { function, from, to: to.clone() }, &to);
        to
    }

    pub(super) fn norm(&mut self, node: &Node) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let from = self.dense(&x);
        self.weight(node.inputs[1])?;
        let weight = self.constant(node.inputs[1]);
        let norm = match node.op {
            Op::RmsNorm { epsilon, unit_offset } => Norm::Rms { weight, epsilon, unit_offset },
            Op::LayerNorm { epsilon } => {
                let bias = node.inputs.get(2).map(|&bias| {
                    self.weight(bias)?;
                    Ok::<_, BackendError>(self.constant(bias))
                });
                Norm::Layer { weight, bias: bias.transpose()?, epsilon }
            }
            _ => return Err(unsupported("a norm of another kind")),
        };
        let to = self.new_view_like(&from);
        self.push_to(Step::Norm { norm, from, to: to.clone() }, &to);
        Ok(Place::View(to))
    }

    pub(super) fn softmax(&mut self, node: &Node, axis: usize) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let mut permutation: Vec<usize> = (0..x.dims.len()).collect();
        let last = permutation.len().saturating_sub(1);
        permutation.swap(axis, last);
        let x = x.transpose(&permutation);
        let reusable = x.is_contiguous(&mut self.sizes) && self.may_overwrite(&x);
        let to = if reusable { x } else { self.copy(&x) };
        self.push_to(Step::Softmax { to: to.clone() }, &to);
        Ok(Place::View(to.transpose(&permutation)))
    }

    /// A cast that is not from one float type to another: those are no steps.
    pub(super) fn cast(&mut self, node: &Node, target: DType) -> Result<Place, BackendError> {
        let source = self.dtype(node.inputs[0]);
        let x = match self.find(node.inputs[0])? {
            Place::Cache(tensor) if target.is_float() => return Ok(Place::Cache(tensor)),
            _ => self.view(node.inputs[0])?,
        };
        let integers = matches!(x.root, Root::Integers(_));
        let place = match (source, target) {
            (DType::I64, DType::I64) => x,
            (DType::I64, _) if integers => {
                let to = self.new_view_for(node.output);
                let truth = target == DType::Bool;
                self.push_to(Step::IntegersToFloat { from: x, to: to.clone(), truth }, &to);
                to
            }
            (_, DType::I64) => {
                let from = self.with_fp32(&x);
                let to = self.new_integers(node.output);
                self.push_to(Step::FloatToIntegers { from, to: to.clone() }, &to);
                to
            }
            (DType::F32 | DType::F16 | DType::Bf16, DType::Bool) => self.mapped(Function::Truth, &x),
            _ => x,
        };
        Ok(Place::View(place))
    }
}
