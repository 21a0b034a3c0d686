//! Attention and rotations.

use roundhouse_backend::BackendError;
use roundhouse_graph::{Node, Op, RotaryAttributes, ValueId};

use super::fusion::Site;
use super::{Compiler, Place, attend};
use crate::plan::Rows;
use crate::step::{Attend, Function, HeadNorm, Prepare, Rotary, Step};
use crate::unsupported;
use crate::view::{Span, Strided, View, row_major};

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
        if kv_heads != value_heads || kv_heads == 0 || q_heads % kv_heads != 0 {
            return Err(unsupported("heads of keys that do not fit those of queries or values"));
        }
        if head_dim != key_dim || head_dim != value_dim {
            return Err(unsupported("queries, keys and values of different widths"));
        }
        let norm = self.head_norm(site)?;
        let rotary = site.rotary.as_ref().map(|attributes| self.rotary(attributes, head_dim)).transpose()?;
        let changed = norm.is_some() || rotary.is_some();
        let qkv = self.joined([q, k, v], changed && !site.query.private);
        let number = self.sites.len();
        self.steps.push(Step::Prepare(Prepare {
            qkv,
            q_heads,
            kv_heads,
            head_dim,
            norm,
            rotary,
            site: number,
        }));
        let buffer = self.buffer(Rows::Tokens, q_heads * head_dim, self.float(site.output)?);
        let window = attributes.window.and_then(|window| usize::try_from(window).ok());
        let step = Attend {
            q: qkv,
            to: Span::of(buffer),
            q_heads,
            kv_heads,
            head_dim,
            site: number,
            scale: attributes.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
            soft_cap: attributes.soft_cap,
            window,
        };
        self.sites.push((attend(&step), window));
        self.steps.push(Step::Attend(step));
        let heads = View::of(buffer, 1, &[1, 1, q_heads, head_dim]).transpose(&[0, 2, 1, 3]);
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

    /// Queries, keys and values side by side: where they are, or in a copy. Queries are changed in place, which `copies`
    /// forbids.
    fn joined(&mut self, parts: [View; 3], copies: bool) -> Span {
        let [q, k, v] = &parts;
        let follows = |a: &View, b: &View| {
            a.span.buffer == b.span.buffer && a.span.offset + a.elements() == b.span.offset
        };
        if follows(q, k) && follows(k, v) && q.span.offset == 0 && !copies {
            return q.span;
        }
        let width = parts.iter().map(View::elements).sum();
        let buffer = self.buffer(self.rows_of(q.span), width, self.dtype_of(q.span));
        let mut offset = 0;
        for part in &parts {
            // Heads before columns, whatever the axes' order.
            let from = part.strided();
            let to = Strided {
                span: Span { buffer, offset },
                strides: row_major_strides(&from.sizes),
                sizes: from.sizes.clone(),
            };
            offset += part.elements();
            self.steps.push(Step::Map { function: Function::Copy, from, to });
        }
        Span::of(buffer)
    }

    fn head_norm(&mut self, site: &Site) -> Result<Option<HeadNorm>, BackendError> {
        let (Some(q), Some(k)) = (site.query.norm, site.key.norm) else { return Ok(None) };
        let (q, k) = (self.graph.node(q), self.graph.node(k));
        let Op::RmsNorm { epsilon, unit_offset } = q.op else { return Ok(None) };
        Ok(Some(HeadNorm {
            q: self.weight(q.inputs[1])?,
            k: self.weight(k.inputs[1])?,
            epsilon,
            unit_offset,
        }))
    }

    fn rotary(&mut self, attributes: &RotaryAttributes, head_dim: usize) -> Result<Rotary, BackendError> {
        if attributes.rotary_dim() > head_dim {
            return Err(unsupported("a rotation of more than a head"));
        }
        if !attributes.sections.is_empty() {
            return Err(unsupported("positions along several axes"));
        }
        Ok(Rotary {
            inv_freq: self.constant(&attributes.inv_freq),
            rotary_dim: attributes.rotary_dim(),
            factor: attributes.attention_factor,
            interleaved: attributes.interleaved,
        })
    }

    /// A rotation by itself.
    pub(super) fn rotate(
        &mut self,
        node: &Node,
        attributes: &RotaryAttributes,
    ) -> Result<View, BackendError> {
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

fn row_major_strides(sizes: &[usize]) -> Vec<usize> {
    row_major(sizes).iter().map(|axis| axis.stride).collect()
}
