//! The memory of caches.
//!
//! A cache in place is a row of a slab, and a step's rows are bound where they lie: input and output are the same
//! memory. A static cache is a slab of its own that a step copies: its output goes to a spare slab, which then is the
//! cache, and the old one is the spare.

use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_engine::CacheKind;

use crate::DeviceError;
use crate::device::{Device, Execution};
use crate::executor::Step;
use crate::signature::Signature;
use crate::slots::Slots;

/// The buffers of a slab, in the order of the cache tensors.
struct Slab<D: Device> {
    /// Unlike any other's of the engine.
    id: u64,
    buffers: Vec<D::Buffer>,
    /// Rows that something was written into.
    written: Vec<bool>,
}

/// Where an execution's cache tensors are: the slabs of inputs and outputs, and the first row in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    inputs: u64,
    outputs: u64,
    row: usize,
}

/// The memory of an engine's caches.
pub(crate) struct Slabs<D: Device> {
    signature: Arc<Signature>,
    slots: Arc<Mutex<Slots>>,
    open: Vec<Option<Slab<D>>>,
    /// Where static caches are copied to.
    spare: Option<Slab<D>>,
    next_id: u64,
    /// What each execution is bound to.
    bound: Vec<Option<Bound>>,
}

impl<D: Device> Slabs<D> {
    pub(crate) fn new(signature: Arc<Signature>, slots: Arc<Mutex<Slots>>, executions: usize) -> Self {
        Self { signature, slots, open: Vec::new(), spare: None, next_id: 0, bound: vec![None; executions] }
    }

    fn is_static(&self) -> bool {
        matches!(self.signature.cache, CacheKind::StaticV1 | CacheKind::StaticV2)
    }

    fn allocate(&mut self, device: &mut D) -> Result<Slab<D>, DeviceError> {
        let rows = self.signature.rows_per_slab();
        let sizes = self.signature.caches.iter().map(|cache| rows.saturating_mul(cache.row_bytes));
        let buffers = sizes.map(|bytes| device.allocate(bytes)).collect::<Result<_, _>>()?;
        self.next_id += 1;
        Ok(Slab { id: self.next_id, buffers, written: vec![false; rows] })
    }

    /// Gives a slab memory if it has none.
    pub(crate) fn open(&mut self, device: &mut D, slab: usize) -> Result<(), DeviceError> {
        if self.is_static() && self.spare.is_none() {
            self.spare = Some(self.allocate(device)?);
        }
        if self.open.get(slab).is_none_or(Option::is_none) {
            let opened = self.allocate(device)?;
            self.open.resize_with(self.open.len().max(slab + 1), || None);
            self.open[slab] = Some(opened);
        }
        Ok(())
    }

    /// Frees the memory of slabs that nobody uses.
    pub(crate) fn close_unwanted<E>(&mut self, executions: &mut [E]) -> Result<(), DeviceError>
    where
        E: Execution<Buffer = D::Buffer>,
    {
        {
            let slots = self.slots.lock();
            for (index, slab) in self.open.iter_mut().enumerate() {
                if !slots.is_wanted(index) {
                    *slab = None;
                }
            }
        }
        // An execution holds on to the memory that it was bound to.
        let Some(left) = self.open.iter().flatten().next() else { return Ok(()) };
        for (execution, bound) in executions.iter_mut().zip(&mut self.bound) {
            let kept = |id: u64| self.open.iter().flatten().chain(&self.spare).any(|slab| slab.id == id);
            if bound.is_some_and(|bound| !kept(bound.inputs) || !kept(bound.outputs)) {
                rebind(&self.signature, execution, bound, (left, self.spare.as_ref().unwrap_or(left)), 0)?;
            }
        }
        Ok(())
    }

    /// Binds an execution, of this number, to the rows of a step. What an earlier sequence left in the rows of new ones
    /// is wiped: masked values weigh nothing, but nothing times infinity would still be no number.
    pub(crate) fn bind<E>(
        &mut self,
        device: &mut D,
        execution: &mut E,
        index: usize,
        step: &Step,
    ) -> Result<(), DeviceError>
    where
        E: Execution<Buffer = D::Buffer>,
    {
        if self.signature.caches.is_empty() {
            return Ok(());
        }
        self.open(device, step.slab)?;
        let is_static = self.is_static();
        let slab = self.open.get_mut(step.slab).and_then(Option::as_mut);
        let slab =
            slab.ok_or_else(|| DeviceError::Engine(format!("the cache {} has no memory", step.slab)))?;
        if is_static {
            let spare = self.spare.as_ref();
            let spare = spare.ok_or_else(|| DeviceError::Engine("static caches have no spare".to_owned()))?;
            return rebind(&self.signature, execution, &mut self.bound[index], (slab, spare), 0);
        }
        for (row, place) in step.rows.iter().zip(step.first_row..) {
            let Some(written) = slab.written.get_mut(place) else {
                return Err(DeviceError::Engine(format!("the cache {} has no row {place}", step.slab)));
            };
            if mem::replace(written, true) && row.past == 0 && !row.tokens.is_empty() {
                for (cache, buffer) in self.signature.caches.iter().zip(&slab.buffers) {
                    device.zero(buffer, place * cache.row_bytes..(place + 1) * cache.row_bytes)?;
                }
            }
        }
        rebind(&self.signature, execution, &mut self.bound[index], (slab, slab), step.first_row)
    }

    /// A step went well: what a static cache was copied to is the cache now.
    pub(crate) fn ran(&mut self, step: &Step) {
        if self.is_static()
            && let Some(Some(slab)) = self.open.get_mut(step.slab)
            && let Some(spare) = &mut self.spare
        {
            mem::swap(slab, spare);
        }
    }
}

/// Binds all cache tensors to rows of a slab of inputs and one of outputs, unless they are.
fn rebind<D: Device, E: Execution<Buffer = D::Buffer>>(
    signature: &Signature,
    execution: &mut E,
    bound: &mut Option<Bound>,
    (inputs, outputs): (&Slab<D>, &Slab<D>),
    row: usize,
) -> Result<(), DeviceError> {
    let wanted = Bound { inputs: inputs.id, outputs: outputs.id, row };
    if *bound == Some(wanted) {
        return Ok(());
    }
    *bound = None;
    for ((cache, input), output) in signature.caches.iter().zip(&inputs.buffers).zip(&outputs.buffers) {
        execution.bind_input(&cache.input, input, row * cache.row_bytes)?;
        execution.bind_output(&cache.output, output, row * cache.row_bytes)?;
    }
    *bound = Some(wanted);
    Ok(())
}
