//! The text dump: one line a value, the same for equal graphs, made for snapshot tests and for reading.

use std::fmt::Write as _;

use crate::{
    AttentionAttributes, DType, Dim, ExpertAttributes, Graph, Node, Op, Origin, QuantizedLinearAttributes,
    RotaryAttributes, ValueId, WeightExpr,
};

impl Graph {
    /// As text: symbols, inputs, weights, nodes in execution order, outputs.
    ///
    /// ```text
    /// graph "tiny" (batch: 1..=4, seq: 1..=16)
    ///   %0 input_ids i64[batch, seq] = input
    ///   %1 embedding.weight f32[32, 8] = weight tensor("model.embed_tokens.weight")
    ///   %2 hidden f32[batch, seq, 8] = embedding(%0, %1)
    ///   return %2
    /// ```
    #[must_use]
    pub fn to_text(&self) -> String {
        let symbols: Vec<String> = self
            .symbols()
            .iter()
            .map(|symbol| format!("{}: {}..={}", symbol.name, symbol.min, symbol.max))
            .collect();
        let mut text = format!("graph {:?} ({})\n", self.name, symbols.join(", "));
        for &id in self.inputs() {
            let origin = match &self.value(id).origin {
                Origin::Input { equals: Some(equals) } => {
                    format!("input, equals {}", equals.display(self.symbols()))
                }
                _ => "input".to_owned(),
            };
            self.line(&mut text, id, &origin);
        }
        for (id, _, expr) in self.weights() {
            self.line(&mut text, id, &format!("weight {}", recipe(expr)));
        }
        for (_, node) in self.nodes() {
            self.line(&mut text, node.output, &self.call(node));
        }
        let outputs: Vec<String> = self.outputs().iter().map(|id| format!("%{}", id.0)).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  return {}", outputs.join(", "));
        text
    }

    fn line(&self, text: &mut String, id: ValueId, origin: &str) {
        let value = self.value(id);
        let _ = writeln!(
            text,
            "  %{} {} {} = {origin}",
            id.0,
            value.name,
            self.show_type(value.dtype, &value.shape)
        );
    }

    pub(super) fn show_type(&self, dtype: DType, shape: &[Dim]) -> String {
        format!("{dtype}{}", self.show_dims(shape))
    }

    fn show_dims(&self, shape: &[Dim]) -> String {
        let dims: Vec<String> = shape.iter().map(|dim| dim.display(self.symbols())).collect();
        format!("[{}]", dims.join(", "))
    }

    fn call(&self, node: &Node) -> String {
        let inputs = node.inputs.iter().map(|id| format!("%{}", id.0));
        let arguments: Vec<String> = inputs.chain(self.attributes(&node.op)).collect();
        format!("{}({})", node.op.name(), arguments.join(", "))
    }

    /// The attributes of an op as `name=value`, those of no effect left out.
    pub(super) fn attributes(&self, op: &Op) -> Vec<String> {
        let show = |dim: &Dim| dim.display(self.symbols());
        match op {
            Op::MatMul { transpose_b } => flag("transpose_b", *transpose_b),
            Op::Scale { factor } => vec![format!("factor={factor}")],
            Op::Gelu { approximation } => {
                vec![format!("approximation={}", format!("{approximation:?}").to_lowercase())]
            }
            Op::SoftCap { cap } => vec![format!("cap={cap}")],
            Op::RmsNorm { epsilon, unit_offset } => {
                [vec![format!("epsilon={epsilon:e}")], flag("unit_offset", *unit_offset)].concat()
            }
            Op::LayerNorm { epsilon } => vec![format!("epsilon={epsilon:e}")],
            Op::RotaryEmbedding(attributes) => rotary(attributes),
            Op::ScaledDotProductAttention(attributes) => attention(attributes),
            Op::Cat { axis } | Op::Gather { axis } | Op::Softmax { axis } => vec![format!("axis={axis}")],
            Op::Slice { axis, start, end } => {
                vec![format!("axis={axis}"), format!("{}..{}", show(start), show(end))]
            }
            Op::Reshape { shape } => vec![format!("shape={}", self.show_dims(shape))],
            Op::Transpose { permutation } => vec![format!("permutation={permutation:?}")],
            Op::MixtureOfExperts(ExpertAttributes { top_k, normalize }) => {
                [vec![format!("top_k={top_k}")], flag("normalize", *normalize)].concat()
            }
            Op::QuantizedLinear(QuantizedLinearAttributes { quantization, has_offsets }) => {
                let (format, group_size) = (quantization.format.name(), quantization.group_size);
                [
                    vec![format!("format={format}"), format!("group_size={group_size}")],
                    flag("offsets", *has_offsets),
                ]
                .concat()
            }
            Op::Cast { to } => vec![format!("to={to}")],
            Op::Embedding
            | Op::ReplaceRows
            | Op::Linear
            | Op::Add
            | Op::Mul
            | Op::Silu
            | Op::Sigmoid
            | Op::SiluMul
            | Op::KvCacheUpdate
            | Op::LastToken => Vec::new(),
        }
    }
}

fn flag(name: &str, set: bool) -> Vec<String> {
    if set { vec![name.to_owned()] } else { Vec::new() }
}

fn rotary(attributes: &RotaryAttributes) -> Vec<String> {
    let angles = format!("inv_freq=[{}]", list(&attributes.inv_freq));
    let factor = attributes.attention_factor;
    let factor = (factor != 1.0).then(|| format!("attention_factor={factor}"));
    let sections = (!attributes.sections.is_empty()).then(|| format!("sections={:?}", attributes.sections));
    let numbers: Vec<String> = [Some(angles), factor, sections].into_iter().flatten().collect();
    [numbers, flag("interleaved", attributes.interleaved)].concat()
}

fn attention(attributes: &AttentionAttributes) -> Vec<String> {
    let mut shown = flag("causal", attributes.causal);
    shown.extend(attributes.window.map(|window| format!("window={window}")));
    shown.extend(attributes.scale.map(|scale| format!("scale={scale}")));
    shown.extend(attributes.soft_cap.map(|cap| format!("soft_cap={cap}")));
    shown.extend(flag("mask", attributes.has_mask));
    shown.extend(flag("kv_lengths", attributes.has_kv_lengths));
    shown.extend(flag("segment_ids", attributes.has_segment_ids));
    shown
}

fn recipe(expr: &WeightExpr) -> String {
    match expr {
        WeightExpr::Tensor { name } => format!("tensor({name:?})"),
        WeightExpr::Matrix { name } => format!("matrix({name:?})"),
        WeightExpr::Flattened { name } => format!("flattened({name:?})"),
        WeightExpr::Transpose { of } => format!("transpose({})", recipe(of)),
        WeightExpr::Rows { of, start, end } => format!("rows({}, {start}..{end})", recipe(of)),
        WeightExpr::Concat { parts } => {
            let parts: Vec<String> = parts.iter().map(recipe).collect();
            format!("concat({})", parts.join(", "))
        }
        WeightExpr::Quantized { of, attributes, part } => {
            let quantization = attributes.quantization;
            let (format, part) = (quantization.format.name(), format!("{part:?}").to_lowercase());
            let offsets = if attributes.has_offsets { ", offsets" } else { "" };
            format!("{format}_{part}({}, group_size={}{offsets})", recipe(of), quantization.group_size)
        }
        WeightExpr::Literal { values } => format!("literal({})", list(values)),
    }
}

/// Numbers, of many only the first and the last.
fn list(values: &[f32]) -> String {
    match values {
        [first, .., last] if values.len() > 4 => format!("{first}, … {} …, {last}", values.len()),
        _ => values.iter().map(f32::to_string).collect::<Vec<_>>().join(", "),
    }
}
