//! Runs the plan of a component.

use roundhouse_backend::{BackendError, ComponentInputs, OutputTensor, TensorElements};

use super::{Executor, Workspace};
use crate::plan::{Role, Step};

impl Executor {
    /// Runs a component over its inputs.
    pub(crate) fn run_component(
        &self,
        inputs: &ComponentInputs<'_>,
        workspace: &mut Workspace,
    ) -> Result<OutputTensor, BackendError> {
        workspace.bind_symbols(&self.plan, &inputs.symbols)?;
        for (integers, role) in workspace.integers.iter_mut().zip(&self.plan.integer_inputs) {
            let Role::Tensor(tensor) = role else { continue };
            if let TensorElements::Integers(values) = inputs.tensors[*tensor].elements {
                integers.copy_from_slice(values);
            }
        }
        for planned in &self.plan.steps {
            match &planned.step {
                Step::Load { tensor, to } => {
                    let TensorElements::Floats(values) = inputs.tensors[*tensor].elements else { continue };
                    workspace.write(&self.plan, to, |_, memory| {
                        memory[..values.len()].copy_from_slice(values);
                    });
                }
                step => self.step(step, &mut [], workspace)?,
            }
        }
        let output = workspace.layout(&self.plan.output);
        let values = self.floats(self.plan.output.root, workspace);
        let values = values[output.offset..output.offset + output.elements()].to_vec();
        Ok(OutputTensor { shape: output.dims().to_vec(), values })
    }
}
