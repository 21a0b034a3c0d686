//! The memory of a step.

use std::ops::Range;

use roundhouse_backend::BackendError;
use roundhouse_cpu_kernels::Scratch;
use roundhouse_graph::SymbolId;

use super::experts::ExpertMemory;
use crate::plan::{BufferId, Layout, Plan, Root, Sizes, View};

/// The memory of a step: it grows to what the largest one needed and is used again by the next.
#[derive(Default)]
pub(crate) struct Workspace {
    slots: Vec<Vec<f32>>,
    pub(super) integers: Vec<Vec<i64>>,
    /// Cosines and sines of each rotary table, `[tokens, rotary_dim / 2]` each.
    pub(super) tables: Vec<(Vec<f32>, Vec<f32>)>,
    sizes: Sizes,
    /// The rows whose logits are wanted.
    pub(crate) selected: Vec<usize>,
    /// Where the logits of each sequence are among the computed ones.
    pub(super) logits_rows: Vec<Range<usize>>,
    /// What a mask adds to the scores of one head.
    pub(super) mask: Vec<f32>,
    pub(super) experts: ExpertMemory,
    /// Working memory of the kernels.
    pub(super) scratch: Scratch,
}

impl Workspace {
    /// Evaluates the plan's sizes for a step and makes room.
    ///
    /// # Errors
    /// [`BackendError::InvalidArgument`] for numbers that the graph cannot run with.
    pub(crate) fn bind(&mut self, plan: &Plan, tokens: usize, past: usize) -> Result<(), BackendError> {
        let rows = self.selected.len();
        plan.sizes
            .evaluate(plan.bind(tokens, rows, past), &mut self.sizes)
            .map_err(|what| BackendError::InvalidArgument(format!("{tokens} tokens after {past}: {what}")))?;
        self.make_room(plan);
        Ok(())
    }

    /// As [`Workspace::bind`], for a component whose symbols have these values.
    pub(super) fn bind_symbols(&mut self, plan: &Plan, symbols: &[i64]) -> Result<(), BackendError> {
        let value = |id: SymbolId| symbols.get(usize::try_from(id.0).ok()?).copied();
        plan.sizes.evaluate(value, &mut self.sizes).map_err(BackendError::InvalidArgument)?;
        self.make_room(plan);
        Ok(())
    }

    fn make_room(&mut self, plan: &Plan) {
        self.slots.resize_with(plan.slots, Vec::new);
        for buffer in &plan.buffers {
            let (slot, elements) = (&mut self.slots[buffer.slot], self.sizes.get(buffer.elements));
            if slot.len() < elements {
                // Not twice as much as is needed, as a vector grows by itself.
                slot.reserve_exact(elements - slot.len());
                slot.resize(elements, 0.0);
            }
        }
        self.integers.resize_with(plan.integers.len(), Vec::new);
        for (integers, &size) in self.integers.iter_mut().zip(&plan.integers) {
            integers.resize(self.sizes.get(size), 0);
        }
        self.tables.resize_with(plan.tables.len(), Default::default);
    }

    /// Bytes of activations, without the kernels' own.
    pub(crate) fn activation_bytes(&self) -> usize {
        let floats: usize = self.slots.iter().map(Vec::capacity).sum();
        let tables: usize = self.tables.iter().map(|(cos, sin)| cos.capacity() + sin.capacity()).sum();
        let integers: usize = self.integers.iter().map(Vec::len).sum();
        (floats + tables + self.mask.capacity() + self.experts.floats()) * size_of::<f32>()
            + integers * size_of::<i64>()
    }

    /// All bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.activation_bytes() + self.scratch.bytes()
    }

    pub(super) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The numbers of a view.
    pub(super) fn layout(&self, view: &View) -> Layout {
        view.resolve(&self.sizes)
    }

    pub(super) fn buffer(&self, plan: &Plan, id: BufferId) -> &[f32] {
        let buffer = plan.buffers[id.0];
        &self.slots[buffer.slot][..self.sizes.get(buffer.elements)]
    }

    /// Takes a buffer's memory out, to write it while others are read; [`Workspace::put`] gives it back.
    pub(super) fn take(&mut self, plan: &Plan, id: BufferId) -> Vec<f32> {
        std::mem::take(&mut self.slots[plan.buffers[id.0].slot])
    }

    pub(super) fn put(&mut self, plan: &Plan, id: BufferId, memory: Vec<f32>) {
        self.slots[plan.buffers[id.0].slot] = memory;
    }

    /// Calls `write` with the memory of the buffer that a view is of.
    pub(super) fn write(&mut self, plan: &Plan, view: &View, write: impl FnOnce(&mut Self, &mut [f32])) {
        if let Root::Buffer(id) = view.root {
            let mut memory = self.take(plan, id);
            write(self, &mut memory);
            self.put(plan, id, memory);
        }
    }
}
