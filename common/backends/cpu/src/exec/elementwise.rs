//! Sums, products and activations.

use roundhouse_cpu_kernels as kernels;
use roundhouse_graph::GeluApproximation;

use super::strided::{Run, for_each_run};
use super::{Executor, Workspace};
use crate::plan::{BinaryOp, Function, Layout, View};

impl Executor {
    /// A [`Step::Binary`](crate::plan::Step::Binary).
    pub(super) fn binary(
        &self,
        op: BinaryOp,
        a: Option<&View>,
        b: &View,
        to: &View,
        workspace: &mut Workspace,
    ) {
        workspace.write(&self.plan, to, |workspace, memory| {
            let (to, b_layout) = (workspace.layout(to), workspace.layout(b));
            let b = self.floats(b.root, workspace);
            match a {
                Some(a) => {
                    let a_layout = workspace.layout(a);
                    let a = self.floats(a.root, workspace);
                    self.zip(op, a, b, memory, [&to, &a_layout, &b_layout]);
                }
                None => self.zip_assign(op, b, memory, [&to, &b_layout]),
            }
        });
    }

    fn zip(&self, op: BinaryOp, a: &[f32], b: &[f32], memory: &mut [f32], layouts: [&Layout; 3]) {
        let isa = self.pool.isa();
        for_each_run(layouts, |Run { offsets: [to, from_a, from_b], length, strides }| {
            if strides == [1; 3] {
                let (a, b) = (&a[from_a..from_a + length], &b[from_b..from_b + length]);
                let out = &mut memory[to..to + length];
                match op {
                    BinaryOp::Add => kernels::add(isa, a, b, out),
                    BinaryOp::Mul => kernels::mul(isa, a, b, out),
                    BinaryOp::SiluMul => kernels::silu_mul(isa, a, b, out),
                }
                return;
            }
            for index in 0..length {
                let (a, b) = (a[from_a + index * strides[1]], b[from_b + index * strides[2]]);
                memory[to + index * strides[0]] = combine(op, a, b);
            }
        });
    }

    fn zip_assign(&self, op: BinaryOp, b: &[f32], memory: &mut [f32], layouts: [&Layout; 2]) {
        let isa = self.pool.isa();
        for_each_run(layouts, |Run { offsets: [to, from], length, strides }| match (op, strides) {
            (BinaryOp::Add, [1, 1]) => {
                kernels::add_assign(isa, &mut memory[to..to + length], &b[from..from + length]);
            }
            (BinaryOp::Mul, [1, 1]) => {
                kernels::mul_assign(isa, &mut memory[to..to + length], &b[from..from + length]);
            }
            _ => {
                for index in 0..length {
                    let place = to + index * strides[0];
                    memory[place] = combine(op, memory[place], b[from + index * strides[1]]);
                }
            }
        });
    }

    /// A [`Step::Map`](crate::plan::Step::Map): its views are dense.
    pub(super) fn map(&self, function: Function, from: Option<&View>, to: &View, workspace: &mut Workspace) {
        let isa = self.pool.isa();
        workspace.write(&self.plan, to, |workspace, memory| {
            let to = workspace.layout(to);
            let x = &mut memory[to.offset..to.offset + to.elements()];
            if let Some(from) = from {
                let layout = workspace.layout(from);
                let from = self.floats(from.root, workspace);
                x.copy_from_slice(&from[layout.offset..layout.offset + layout.elements()]);
            }
            match function {
                Function::Scale(factor) => kernels::scale(isa, x, factor),
                Function::Silu => kernels::silu(isa, x),
                Function::Sigmoid => kernels::sigmoid(isa, x),
                Function::Gelu(GeluApproximation::None) => kernels::gelu_erf(isa, x),
                Function::Gelu(GeluApproximation::Tanh) => kernels::gelu_tanh(isa, x),
                Function::SoftCap(cap) => kernels::soft_cap(isa, x, cap),
                Function::Truth => x.iter_mut().for_each(|x| *x = f32::from(*x != 0.0)),
            }
        });
    }
}

fn combine(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Mul => a * b,
        BinaryOp::SiluMul => a / (1.0 + (-a).exp()) * b,
    }
}
