//! Attention and rotations.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Node, Op, RotaryAttributes, ValueId};

use super::fusion::{Heads, Site};
use super::{Compiler, Place, attend};
use crate::plan::Rows;
use crate::step::{Attend, HeadNorm, Prepare, Rotary, Step};
use crate::unsupported;
use crate::view::{Span, View};

impl Compiler<'_> {
    pub(super) fn attention(&mut self, site: &Site) -> Result<(), BackendError> {
        let attributes = &site.attributes;
        if attributes.has_mask {
            return Err(unsupported("attention with a mask"));
        }
        if !attributes.causal {
            return Err(unsupported("attention that is not causal"));
        }
        let (q, q_heads, head_dim) = self.side_by_side(site.query.base)?;
        let (k, kv_heads, key_dim) = self.side_by_side(site.key.base)?;
        let (v, value_heads, value_dim) = self.side_by_side(site.value)?;
        if kv_heads != value_heads || head_dim != key_dim || kv_heads == 0 || q_heads % kv_heads != 0 {
            return Err(unsupported("heads of keys that do not fit those of queries or values"));
        }
        let (q_norm, k_norm) = (self.head_norm(&site.query)?, self.head_norm(&site.key)?);
        let rotary = site.rotary.as_ref().map(|attributes| self.rotary(attributes, head_dim)).transpose()?;
        // Queries are changed where they are.
        let changed = q_norm.is_some() || rotary.is_some();
        let q = if changed && !site.query.private { self.copied(&q, self.dtype_of(q.span)) } else { q };
        let number = self.sites.len();
        let (q_span, k, v) = (q.span, k.span, v.span);
        self.steps.push(Step::Prepare(Prepare {
            q: q_span,
            k,
            v,
            q_heads,
            kv_heads,
            head_dim,
            value_dim,
            q_norm,
            k_norm,
            rotary,
            site: number,
        }));
        let buffer = self.buffer(Rows::Tokens, q_heads * value_dim, self.float(site.output)?);
        let window = attributes.window.and_then(|window| usize::try_from(window).ok());
        let step = Attend {
            q: q_span,
            to: Span::of(buffer),
            q_heads,
            kv_heads,
            head_dim,
            value_dim,
            site: number,
            scale: attributes.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
            soft_cap: attributes.soft_cap,
            window,
        };
        self.sites.push((attend(&step), window));
        self.steps.push(Step::Attend(step));
        let heads = View::of(buffer, 1, &[1, 1, q_heads, value_dim]).transpose(&[0, 2, 1, 3]);
        let heads = heads.ok_or_else(|| unsupported("attention of this layout"))?;
        self.places.insert(site.output, Place::View(heads));
        Ok(())
    }

    /// Heads `[1, heads, tokens, columns]` side by side: the view, how many, and their columns.
    fn side_by_side(&mut self, id: ValueId) -> Result<(View, usize, usize), BackendError> {
        let view = self.view(id)?;
        let [_, heads, _, last] = view.axes[..] else { return Err(unsupported("heads of this shape")) };
        if view.tokens != 2 {
            return Err(unsupported("heads of this layout"));
        }
        let packed = (last.size == 1 || last.stride == 1) && (heads.size == 1 || heads.stride == last.size);
        let view = if packed {
            view
        } else {
            // Tokens come first in a row's order, so that its heads lie one after the other.
            let rows = view.transpose(&[0, 2, 1, 3]).ok_or_else(|| unsupported("heads of this layout"))?;
            let copy = self.copied(&rows, self.dtype_of(rows.span));
            copy.transpose(&[0, 2, 1, 3]).ok_or_else(|| unsupported("heads of this layout"))?
        };
        Ok((view, heads.size, last.size))
    }

    fn head_norm(&mut self, heads: &Heads) -> Result<Option<HeadNorm>, BackendError> {
        let Some(node) = heads.norm.map(|id| self.graph.node(id)) else { return Ok(None) };
        let Op::RmsNorm { epsilon, unit_offset } = node.op else { return Ok(None) };
        Ok(Some(HeadNorm { weight: self.weight(node.inputs[1])?, epsilon, unit_offset }))
    }

    fn rotary(&mut self, attributes: &RotaryAttributes, head_dim: usize) -> Result<Rotary, BackendError> {
        if attributes.rotary_dim() > head_dim {
            return Err(unsupported("a rotation of more than a head"));
        }
        Ok(Rotary {
            inv_freq: self.constant(&attributes.inv_freq),
            rotary_dim: attributes.rotary_dim(),
            factor: attributes.attention_factor,
            interleaved: attributes.interleaved,
        })
    }

    /// A rotation by itself.
    pub(super) fn rotate(&mut self, node: &Node, attributes: &RotaryAttributes) -> Result<View, BackendError> {
        let (from, heads, head_dim) = self.side_by_side(node.inputs[0])?;
        let rotary = self.rotary(attributes, head_dim)?;
        let dtype = self.dtype_of(from.span);
        let buffer = self.buffer(self.rows_of(from.span), heads * head_dim, dtype);
        let (from, to) = (from.span, Span::of(buffer));
        self.steps.push(Step::Rotate { rotary, from, to, heads, head_dim });
        let view = View::of(buffer, 1, &[1, 1, heads, head_dim]).transpose(&[0, 2, 1, 3]);
        view.ok_or_else(|| unsupported("heads of this layout"))
    }
}
