//! Attention.

use roundhouse_backend::BackendError;

use super::{Active, Executor, Workspace};
use crate::plan::{Attention, Mask, View};

impl Executor {
    pub(super) fn cached_attention(&self, _q: &View, _kv: [usize; 2], _attention: &Attention, _to: &View, _batch: &mut [Active<'_>], _workspace: &mut Workspace) {}
    pub(super) fn attention(&self, [q, k, v]: [&View; 3], mask: Option<&Mask>, _lengths: Option<&View>, attention: &Attention, to: &View, workspace: &mut Workspace) -> Result<(), BackendError> {
        if let Some(mask) = mask {
            self.masked_attention([q, k, v], mask, 1, attention, to, workspace);
        }
        Ok(())
    }
}
