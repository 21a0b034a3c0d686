//! Mixtures of experts.

use roundhouse_backend::BackendError;
use roundhouse_graph::{ExpertAttributes, Node};

use super::linear::buffer_of;
use super::{Compiler, Place};
use crate::plan::step::{Experts, Step};

impl Compiler<'_> {
    pub(super) fn experts(
        &mut self,
        node: &Node,
        attributes: ExpertAttributes,
    ) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let x = self.contiguous(&x);
        let router_logits = self.view(node.inputs[1])?;
        let router_logits = self.contiguous(&router_logits);
        let (gate_up, down) = (self.weight(node.inputs[2])?, self.weight(node.inputs[3])?);
        let to = self.new_view_for(node.output);
        let buffer = buffer_of(&to)?;
        let experts = Experts { x, router_logits, gate_up, down, attributes, to: buffer };
        self.push_to(Step::Experts(Box::new(experts)), &to);
        Ok(Place::View(to))
    }
}
