//! The operands of a layer, taken in TensorRT's order.

use roundhouse_tensorrt_library::{AttentionOperands, TensorHandle};

use crate::ReplayError;

pub(super) struct Operands<'a> {
    layer: &'a str,
    handles: std::vec::IntoIter<TensorHandle>,
}

impl<'a> Operands<'a> {
    pub(super) fn new(layer: &'a str, handles: Vec<TensorHandle>) -> Self {
        Self { layer, handles: handles.into_iter() }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Result<TensorHandle, ReplayError> {
        self.handles.next().ok_or_else(|| self.malformed("too few operands"))
    }

    /// All that are left.
    pub(super) fn rest(&mut self) -> Vec<TensorHandle> {
        self.handles.by_ref().collect()
    }

    /// Those of an attention.
    pub(super) fn attention(
        &mut self,
        has_mask: bool,
        has_kv_lengths: bool,
    ) -> Result<AttentionOperands, ReplayError> {
        Ok(AttentionOperands {
            query: self.next()?,
            key: self.next()?,
            value: self.next()?,
            mask: has_mask.then(|| self.next()).transpose()?,
            kv_lengths: has_kv_lengths.then(|| self.next()).transpose()?,
        })
    }

    /// None is left.
    pub(super) fn end(self) -> Result<(), ReplayError> {
        if self.handles.len() == 0 { Ok(()) } else { Err(self.malformed("too many operands")) }
    }

    fn malformed(&self, what: &str) -> ReplayError {
        ReplayError::Malformed { layer: self.layer.to_owned(), what: what.to_owned() }
    }
}
