//! Rotary embedding, attention and its cache.

use roundhouse_backend::BackendError;
use roundhouse_graph::{AttentionAttributes, DType, Node, RotaryAttributes};

use super::{Compiler, Place};
use crate::error::unsupported;
use crate::plan::step::{Attention, DenseAttention, Mask, RotaryTable, Step};
use crate::plan::view::View;

impl Compiler<'_> {
    pub(super) fn rotary(
        &mut self,
        node: &Node,
        attributes: &RotaryAttributes,
    ) -> Result<Place, BackendError> {
        let x = self.view(node.inputs[0])?;
        let positions = self.view(node.inputs[1])?;
        let positions = self.contiguous(&positions);
        if !self.sizes.is_one(x.dims[0]) {
            return Err(unsupported("a rotary embedding of a batch"));
        }
        let wanted = RotaryTable { attributes: attributes.clone(), positions };
        let table = match self.tables.iter().position(|table| *table == wanted) {
            Some(table) => table,
            None => {
                let table = self.tables.len();
                let positions = wanted.positions.clone();
                let elements = positions.elements(&mut self.sizes);
                self.tables.push(wanted);
                self.push(Step::RotaryTable { table, positions }, elements);
                table
            }
        };
        let reusable = x.has_contiguous_rows(&self.sizes) && self.may_overwrite(&x);
        let to = if reusable { x } else { self.copy_of_heads(&x) };
        self.push_to(Step::Rotary { table, to: to.clone() }, &to);
        Ok(Place::View(to))
    }

    /// A copy of `[1, heads, tokens, head_dim]` that lies by tokens, as linears make and take it.
    fn copy_of_heads(&mut self, x: &View) -> View {
        self.copy(&x.transpose(&[0, 2, 1, 3])).transpose(&[0, 2, 1, 3])
    }

    pub(super) fn kv_cache_update(&mut self, node: &Node) -> Result<Place, BackendError> {
        let Place::Cache(tensor) = self.find(node.inputs[0])? else {
            return Err(unsupported("an update of something that is no cache of a packed batch"));
        };
        let from = self.view(node.inputs[1])?;
        let from = self.with_contiguous_rows(&from);
        let elements = from.elements(&mut self.sizes);
        self.push(Step::StoreKv { tensor, from }, elements);
        Ok(Place::Cache(tensor))
    }

    pub(super) fn attention(
        &mut self,
        node: &Node,
        attributes: &AttentionAttributes,
    ) -> Result<Place, BackendError> {
        let q = self.view(node.inputs[0])?;
        let q = self.with_contiguous_rows(&q);
        let head_dim = self.fixed(q.dims[3], "a head dimension")?;
        let attention = Attention::new(attributes, head_dim);
        // By tokens, so that joining the heads again is a view.
        let dims = self.dims(node.output);
        let to = self.new_view(vec![dims[0], dims[2], dims[1], dims[3]]).transpose(&[0, 2, 1, 3]);

        let (key, value) = (self.find(node.inputs[1])?, self.find(node.inputs[2])?);
        if let (Place::Cache(key), Place::Cache(value)) = (&key, &value) {
            let step = Step::CachedAttention { q, key: *key, value: *value, attention, to: to.clone() };
            self.push_to(step, &to);
            return Ok(Place::View(to));
        }
        let (k, v) = (self.view(node.inputs[1])?, self.view(node.inputs[2])?);
        let (k, v) = (self.with_contiguous_rows(&k), self.with_contiguous_rows(&v));
        let batched = !self.sizes.is_one(q.dims[0]);
        if batched && (attributes.has_mask || attributes.has_kv_lengths) {
            return Err(unsupported("a mask or lengths of a batch that is not packed"));
        }
        let mut extra = node.inputs[3..].iter().copied();
        let mask = match extra.next().filter(|_| attributes.has_mask) {
            Some(id) => {
                let view = self.view(id)?;
                let view = self.with_fp32(&view);
                let dims = vec![q.dims[0], q.dims[1], q.dims[2], k.dims[2]];
                let view = view.broadcast(&dims, &mut self.sizes);
                Some(Mask { view, additive: self.dtype(id) != DType::Bool })
            }
            None => None,
        };
        let lengths = node.inputs.last().copied().filter(|_| attributes.has_kv_lengths);
        let kv_lengths = lengths.map(|id| self.view(id)).transpose()?;
        let segments = node.inputs.last().copied().filter(|_| attributes.has_segment_ids);
        let segment_ids = segments.map(|id| self.view(id)).transpose()?;
        let segment_ids = segment_ids.map(|view| self.contiguous(&view));
        let dense = DenseAttention { q, k, v, mask, kv_lengths, segment_ids, attention, to: to.clone() };
        self.push_to(Step::Attention(Box::new(dense)), &to);
        Ok(Place::View(to))
    }
}
