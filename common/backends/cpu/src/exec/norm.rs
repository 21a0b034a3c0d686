//! Norms and softmax of rows.

use roundhouse_cpu_kernels as kernels;

use super::{Executor, Workspace};
use crate::plan::{Norm, View};

impl Executor {
    /// A [`Step::Norm`](crate::plan::Step::Norm): its views are dense and lie alike.
    pub(super) fn norm(&self, norm: &Norm, from: &View, to: &View, workspace: &mut Workspace) {
        workspace.write(&self.plan, to, |workspace, memory| {
            let (layout, to) = (workspace.layout(from), workspace.layout(to));
            let elements = layout.elements();
            let x = &self.floats(from.root, workspace)[layout.offset..layout.offset + elements];
            let out = &mut memory[to.offset..to.offset + elements];
            match *norm {
                Norm::Rms { weight, epsilon, unit_offset } => {
                    kernels::rms_norm_rows(&self.pool, x, &self.constants[weight], epsilon, unit_offset, out);
                }
                Norm::Layer { weight, bias, epsilon } => {
                    let bias = bias.map(|bias| &self.constants[bias][..]);
                    kernels::layer_norm_rows(&self.pool, x, &self.constants[weight], bias, epsilon, out);
                }
            }
        });
    }

    /// A [`Step::Softmax`](crate::plan::Step::Softmax) over the last axis of a contiguous view.
    pub(super) fn softmax(&self, to: &View, workspace: &mut Workspace) {
        workspace.write(&self.plan, to, |workspace, memory| {
            let to = workspace.layout(to);
            let width = to.dims().last().copied().unwrap_or(1).max(1);
            for row in memory[to.offset..to.offset + to.elements()].chunks_exact_mut(width) {
                kernels::softmax(self.pool.isa(), row);
            }
        });
    }
}
