//! The plan: what a graph becomes when it is loaded, once.
//!
//! A plan is a list of [`Step`]s, calls of kernels over strided views of fp32 buffers. Reshapes, transposes, slices and
//! casts between float types are views, not steps, wherever strides can say them. Buffers that are not alive at the
//! same time share a slot. All sizes are expressions over the graph's symbols, evaluated once a step of the model, so
//! that activations take no new memory once the slots have grown.

mod compile;
mod group;
mod packed;
mod ring;
mod signature;
mod size;
mod slots;
mod step;
mod view;

use roundhouse_backend::BackendError;
use roundhouse_engine::CacheKind;
use roundhouse_graph::{Graph, SymbolId, ValueId};

use crate::limits::StepLimits;

pub(crate) use ring::Ring;
pub(crate) use signature::{CacheShape, Role, Signature};
pub(crate) use size::{SizeId, SizeTable, Sizes};
pub(crate) use step::{
    Attention, BinaryOp, DenseAttention, Experts, Function, LinearPart, LinearWeight, Mask, Norm,
    RotaryTable, Step, WeightId,
};
pub(crate) use view::{BufferId, Layout, Root, View};

/// A compiled graph.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) signature: Signature,
    pub(crate) steps: Vec<PlannedStep>,
    pub(crate) sizes: SizeTable,
    /// By [`BufferId`].
    pub(crate) buffers: Vec<Buffer>,
    /// How many slots the buffers share.
    pub(crate) slots: usize,
    /// The lengths of the integer buffers; the graph's integer inputs are the first.
    pub(crate) integers: Vec<SizeId>,
    /// The inputs among the integer buffers, in their order.
    pub(crate) integer_inputs: Vec<Role>,
    /// By [`WeightId`].
    pub(crate) weights: Vec<ValueId>,
    /// Weights that are read as fp32.
    pub(crate) constants: Vec<ValueId>,
    pub(crate) tables: Vec<RotaryTable>,
    /// The logits, or a component's output; contiguous.
    pub(crate) output: View,
    /// How many rows of logits are wanted; a symbol of the plan's own.
    pub(crate) rows: SymbolId,
    /// Whether the graph selects rows. Else it computes the logits of every token.
    pub(crate) selects_rows: bool,
    /// The sizes of the largest step, or of the largest inputs that a component takes.
    pub(crate) largest: Sizes,
}

/// A step and when it runs.
#[derive(Debug)]
pub(crate) struct PlannedStep {
    pub(crate) step: Step,
    /// Whether it works on selected rows: it is skipped where no logits are wanted.
    pub(crate) on_selected_rows: bool,
}

/// A buffer of activations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) elements: SizeId,
    pub(crate) slot: usize,
}

/// What the kernels' blocks of weights, keys and partial results take, all threads together: they are made for a
/// core's own cache.
const KERNEL_BLOCK_BYTES: usize = 4 << 20;

impl Plan {
    /// Compiles a graph.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] names the first node that the runtime cannot run.
    pub(crate) fn new(graph: &Graph, limits: StepLimits) -> Result<Self, BackendError> {
        let signature = Signature::new(graph)?;
        if signature.mode == CacheKind::InPlace {
            packed::check_packed(graph, &signature)?;
        }
        compile::compile(graph, signature, Largest::Step(limits))
    }

    /// Compiles a component's graph.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub(crate) fn of_component(graph: &Graph) -> Result<Self, BackendError> {
        compile::compile(graph, Signature::of_component(graph)?, Largest::Ranges)
    }

    /// The values of the symbols in a step.
    pub(crate) fn bind(
        &self,
        tokens: usize,
        rows: usize,
        past: usize,
    ) -> impl Fn(SymbolId) -> Option<i64> + '_ {
        let number = |value: usize| i64::try_from(value).ok();
        move |symbol| {
            if Some(symbol) == self.signature.seq {
                return number(tokens);
            }
            if symbol == self.rows {
                return number(rows);
            }
            let (role, _) = self.signature.indices.iter().find(|(_, dim)| dim.as_symbol() == Some(symbol))?;
            match role {
                Role::Start => number(past),
                Role::End => number(past + tokens),
                _ => None,
            }
        }
    }

    /// Bytes of activations in the largest step.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        let sizes = &self.largest;
        let mut slots = vec![0; self.slots];
        for buffer in &self.buffers {
            slots[buffer.slot] = sizes.get(buffer.elements).max(slots[buffer.slot]);
        }
        let integers: usize = self.integers.iter().map(|&size| sizes.get(size) * size_of::<i64>()).sum();
        let tables: usize = self
            .tables
            .iter()
            .map(|table| {
                let tokens = table.positions.resolve(sizes).elements() / table.attributes.axes();
                tokens * table.attributes.rotary_dim() * size_of::<f32>()
            })
            .sum();
        (slots.iter().sum::<usize>() * size_of::<f32>() + integers + tables) as u64
    }

    /// Bytes that kernels need beside them: a product of many rows packs its input.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        let sizes = &self.largest;
        let inputs = self.steps.iter().filter_map(|planned| match &planned.step {
            Step::Linear { x, .. } | Step::LinearSiluMul { x, .. } => Some(x.resolve(sizes).elements()),
            _ => None,
        });
        (inputs.max().unwrap_or(0) * size_of::<f32>() + KERNEL_BLOCK_BYTES) as u64
    }
}

/// What a plan's memory is planned for.
#[derive(Debug, Clone, Copy)]
enum Largest {
    /// A step within these limits.
    Step(StepLimits),
    /// Symbols that are each as large as its range allows.
    Ranges,
}

#[cfg(test)]
mod tests;
