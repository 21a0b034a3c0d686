//! Planted mistakes: for every layer of a network, every attribute and operand that could be another.

use std::collections::HashMap;

use roundhouse_tensorrt_network::{
    Activation, CausalMask, Constant, DataType, ElementWise, FillDims, Layer, LayerKind, MatrixOp, Network,
    NetworkError, Reduce, Reshape, SliceOperand, TensorId, Unary, Values,
};

/// A mistake in one layer.
pub(super) struct Mutant {
    pub(super) layer: String,
    pub(super) what: String,
    /// The network with the mistake, or why it cannot be.
    pub(super) network: Result<Mutated, NetworkError>,
}

/// A network with a mistake.
pub(super) struct Mutated {
    pub(super) network: Network,
    /// What stands for each tensor of the network without it.
    pub(super) tensors: HashMap<TensorId, TensorId>,
}

/// What becomes of a layer.
enum Edit {
    /// Another kind with other operands.
    Change(LayerKind, Vec<TensorId>),
    /// Its readers read this operand of it instead.
    Bypass(TensorId),
}

/// All mutants of a network.
pub(super) fn mutants(network: &Network) -> impl Iterator<Item = Mutant> {
    let layers = network.layers().iter().enumerate();
    layers.flat_map(move |(index, layer)| {
        edits(network, layer).into_iter().map(move |(what, edit)| Mutant {
            layer: layer.name.clone(),
            what,
            network: rebuild(network, index, &edit),
        })
    })
}

/// The network again, layer by layer, with one edited.
fn rebuild(network: &Network, edited: usize, edit: &Edit) -> Result<Mutated, NetworkError> {
    let mut copy = Network::new(network.name.clone());
    copy.profiles.clone_from(&network.profiles);
    let mut ids = HashMap::new();
    for &input in network.inputs() {
        let tensor = network.tensor(input);
        ids.insert(input, copy.add_input(tensor.name.clone(), tensor.dtype, &tensor.dims)?);
    }
    for (index, layer) in network.layers().iter().enumerate() {
        let (kind, inputs) = match edit {
            Edit::Bypass(operand) if index == edited => {
                ids.insert(layer.output, ids[operand]);
                continue;
            }
            Edit::Change(kind, inputs) if index == edited => (kind, inputs),
            _ => (&layer.kind, &layer.inputs),
        };
        let inputs: Vec<TensorId> = inputs.iter().map(|id| ids[id]).collect();
        ids.insert(layer.output, copy.add_layer(layer.name.clone(), kind.clone(), &inputs)?);
    }
    for output in network.outputs() {
        let name = network.tensor(output.tensor).name.clone();
        copy.mark_output(ids[&output.tensor], name, output.aliases.clone())?;
    }
    Ok(Mutated { network: copy, tensors: ids })
}

fn edits(network: &Network, layer: &Layer) -> Vec<(String, Edit)> {
    let mut edits = Vec::new();
    for (what, kind) in other_kinds(network, layer) {
        edits.push((what, Edit::Change(kind, layer.inputs.clone())));
    }
    operands(network, layer, &mut edits);
    edits
}

/// Operands exchanged, left out, or another tensor of the same type; the layer left out.
fn operands(network: &Network, layer: &Layer, edits: &mut Vec<(String, Edit)>) {
    let inputs = &layer.inputs;
    let kind = || layer.kind.clone();
    for first in 0..inputs.len() {
        for second in first + 1..inputs.len() {
            let commutes = matches!(
                layer.kind,
                LayerKind::ElementWise { operation } if !matches!(
                    operation,
                    ElementWise::Sub | ElementWise::Div | ElementWise::Less | ElementWise::Greater
                )
            );
            if !commutes && !is_same(network, inputs[first], inputs[second]) {
                let mut swapped = inputs.clone();
                swapped.swap(first, second);
                edits.push((
                    format!("operands {first} and {second} exchanged"),
                    Edit::Change(kind(), swapped),
                ));
            }
        }
        let operand = network.tensor(inputs[first]);
        let alike = network.tensors().filter(|(id, tensor)| {
            *id < layer.output
                && (tensor.dtype, &tensor.dims) == (operand.dtype, &operand.dims)
                && !is_same(network, *id, inputs[first])
        });
        // The nearest before it are what a converter has at hand.
        let mut alike: Vec<_> = alike.map(|(id, tensor)| (id, tensor.name.clone())).collect();
        alike.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for (id, name) in alike.into_iter().take(2) {
            let mut other = inputs.clone();
            other[first] = id;
            edits.push((format!("operand {first} is {name}"), Edit::Change(kind(), other)));
        }
    }
    if let LayerKind::Attention { causal, decomposable, has_mask, has_kv_lengths } = layer.kind {
        let without = inputs[..inputs.len() - 1].to_vec();
        if has_kv_lengths {
            let kind = LayerKind::Attention { causal, decomposable, has_mask, has_kv_lengths: false };
            edits.push(("no lengths".to_owned(), Edit::Change(kind, without)));
        } else if has_mask {
            let kind = LayerKind::Attention { causal, decomposable, has_mask: false, has_kv_lengths };
            edits.push(("no mask".to_owned(), Edit::Change(kind, without)));
        }
    }
    if matches!(layer.kind, LayerKind::Concatenation { .. }) {
        for left_out in 0..inputs.len() {
            let mut fewer = inputs.clone();
            fewer.remove(left_out);
            edits.push((format!("part {left_out} left out"), Edit::Change(kind(), fewer)));
        }
    }
    for (index, &operand) in inputs.iter().enumerate() {
        edits.push((format!("left out, operand {index} instead"), Edit::Bypass(operand)));
    }
}

/// Whether two tensors hold the same numbers, but for rounding: casts of one, or equal constants.
fn is_same(network: &Network, a: TensorId, b: TensorId) -> bool {
    let layer = |id| network.layers().iter().find(|layer| layer.output == id);
    let source = |mut id| {
        while let Some(Layer { kind: LayerKind::Cast { .. }, inputs, .. }) = layer(id) {
            id = inputs[0];
        }
        id
    };
    let (a, b) = (source(a), source(b));
    let constant =
        |id| layer(id).map(|layer| &layer.kind).filter(|kind| matches!(kind, LayerKind::Constant(_)));
    a == b || (constant(a).is_some() && constant(a) == constant(b))
}

/// The layer with one attribute changed.
fn other_kinds(network: &Network, layer: &Layer) -> Vec<(String, LayerKind)> {
    let rank = layer.inputs.first().map_or(0, |&id| network.tensor(id).dims.len());
    let mut kinds = Vec::new();
    let mut push = |what: String, kind: LayerKind| kinds.push((what, kind));
    match &layer.kind {
        LayerKind::Constant(constant) => {
            for (what, values) in other_values(&constant.values) {
                push(what, LayerKind::Constant(Constant { values, ..constant.clone() }));
            }
        }
        LayerKind::Activation { function } => {
            use Activation::{GeluErf, GeluTanh, Sigmoid, Tanh};
            for other in others([Sigmoid, Tanh, GeluErf, GeluTanh], *function) {
                push(format!("{other:?}"), LayerKind::Activation { function: other });
            }
        }
        LayerKind::Unary { function } => {
            for other in others([Unary::Sqrt, Unary::Recip, Unary::Not, Unary::IsInf], *function) {
                push(format!("{other:?}"), LayerKind::Unary { function: other });
            }
        }
        LayerKind::ElementWise { operation } => {
            use ElementWise::{And, Div, Equal, Greater, Less, Max, Min, Or, Prod, Sub, Sum};
            for other in others([Sum, Prod, Sub, Div, Max, Min, Less, Greater, Equal, And, Or], *operation) {
                push(format!("{other:?}"), LayerKind::ElementWise { operation: other });
            }
        }
        LayerKind::Cast { to } => {
            use DataType::{Bf16, Bool, Float, Half, Int32, Int64};
            for other in others([Float, Half, Bf16, Int32, Int64, Bool], *to) {
                push(format!("to {other}"), LayerKind::Cast { to: other });
            }
        }
        LayerKind::Shuffle { first_transpose, reshape, second_transpose } => {
            let shuffle = |first_transpose: Option<Vec<usize>>, reshape: Option<Reshape>| {
                LayerKind::Shuffle { first_transpose, reshape, second_transpose: second_transpose.clone() }
            };
            for permutation in first_transpose.iter().flat_map(|permutation| exchanges(permutation)) {
                push(format!("transposed {permutation:?}"), shuffle(Some(permutation), reshape.clone()));
            }
            if let Some(Reshape::Static(dims)) = reshape {
                for dims in exchanges(dims) {
                    let what = format!("reshaped to {dims:?}");
                    push(what, shuffle(first_transpose.clone(), Some(Reshape::Static(dims))));
                }
            }
        }
        LayerKind::Slice { start, size } => {
            for (what, start) in other_bounds(start) {
                push(format!("start {what}"), LayerKind::Slice { start, size: size.clone() });
            }
            for (what, size) in other_bounds(size) {
                push(format!("size {what}"), LayerKind::Slice { start: start.clone(), size });
            }
        }
        LayerKind::Concatenation { axis } => {
            for axis in others(0..rank, *axis) {
                push(format!("axis {axis}"), LayerKind::Concatenation { axis });
            }
        }
        LayerKind::MatrixMultiply { op_a, op_b } => {
            let other = |op: &MatrixOp| match op {
                MatrixOp::None => MatrixOp::Transpose,
                MatrixOp::Transpose => MatrixOp::None,
            };
            push("other op_a".to_owned(), LayerKind::MatrixMultiply { op_a: other(op_a), op_b: *op_b });
            push("other op_b".to_owned(), LayerKind::MatrixMultiply { op_a: *op_a, op_b: other(op_b) });
            push("both other".to_owned(), LayerKind::MatrixMultiply { op_a: other(op_a), op_b: other(op_b) });
        }
        LayerKind::Gather { axis } => {
            for axis in others(0..rank, *axis) {
                push(format!("axis {axis}"), LayerKind::Gather { axis });
            }
        }
        LayerKind::Reduce { operation, axes } => {
            for other in others([Reduce::Sum, Reduce::Max, Reduce::Avg], *operation) {
                push(format!("{other:?}"), LayerKind::Reduce { operation: other, axes: axes.clone() });
            }
            for axis in (0..rank).filter(|axis| !axes.contains(axis)) {
                let (operation, axes) = (*operation, vec![axis]);
                push(format!("axis {axis}"), LayerKind::Reduce { operation, axes });
            }
        }
        LayerKind::SoftMax { axis } => {
            for axis in others(0..rank, *axis) {
                push(format!("axis {axis}"), LayerKind::SoftMax { axis });
            }
        }
        LayerKind::Iota { length: FillDims::Static(length), dtype } => {
            for other in [length - 1, length + 1] {
                let length = FillDims::Static(other);
                push(format!("length {other}"), LayerKind::Iota { length, dtype: *dtype });
            }
        }
        LayerKind::Iota { length: FillDims::Input, .. } | LayerKind::Shape | LayerKind::Select => {}
        LayerKind::RotaryEmbedding { interleaved, dim } => {
            let (interleaved, dim) = (*interleaved, *dim);
            push("other pairs".to_owned(), LayerKind::RotaryEmbedding { interleaved: !interleaved, dim });
            for other in [dim - 2, dim + 2] {
                push(format!("{other} rotated"), LayerKind::RotaryEmbedding { interleaved, dim: other });
            }
        }
        LayerKind::KvCacheUpdate => {}
        LayerKind::Attention { causal, decomposable, has_mask, has_kv_lengths } => {
            let (has_mask, has_kv_lengths) = (*has_mask, *has_kv_lengths);
            let other = match causal {
                CausalMask::None => CausalMask::LowerRight,
                CausalMask::LowerRight => CausalMask::None,
            };
            let decomposable = *decomposable;
            push(
                format!("causal {other:?}"),
                LayerKind::Attention { causal: other, decomposable, has_mask, has_kv_lengths },
            );
            let kind = LayerKind::Attention {
                causal: *causal,
                decomposable: !decomposable,
                has_mask,
                has_kv_lengths,
            };
            push("not decomposable".to_owned(), kind);
        }
    }
    kinds
}

fn others<T: PartialEq>(all: impl IntoIterator<Item = T>, one: T) -> Vec<T> {
    all.into_iter().filter(|other| *other != one).collect()
}

/// The list with two unequal elements exchanged, for each such pair.
fn exchanges<T: PartialEq + Clone>(list: &[T]) -> Vec<Vec<T>> {
    let pairs = (0..list.len()).flat_map(|first| (first + 1..list.len()).map(move |second| (first, second)));
    let unequal = pairs.filter(|&(first, second)| list[first] != list[second]);
    unequal
        .map(|(first, second)| {
            let mut exchanged = list.to_vec();
            exchanged.swap(first, second);
            exchanged
        })
        .collect()
}

/// Each element one more and one less.
fn neighbours(list: &[i64]) -> Vec<(String, Vec<i64>)> {
    let changes = (0..list.len()).flat_map(|at| [(at, -1), (at, 1)]);
    changes
        .map(|(at, by)| {
            let mut changed = list.to_vec();
            changed[at] += by;
            (format!("{changed:?}"), changed)
        })
        .collect()
}

fn other_bounds(bounds: &SliceOperand) -> Vec<(String, SliceOperand)> {
    match bounds {
        SliceOperand::Static(dims) => {
            neighbours(dims).into_iter().map(|(what, dims)| (what, SliceOperand::Static(dims))).collect()
        }
        SliceOperand::Input { .. } => Vec::new(),
    }
}

fn other_values(values: &Values) -> Vec<(String, Values)> {
    let number = |value: f32| {
        // Half as much again would be infinite, which is no mistake that anyone makes.
        if value.abs() > 1e4 { vec![0.0, value.abs()] } else { vec![value * 1.5, value + 1.0, -value - 1.0] }
    };
    match values {
        // Its values are the checkpoint's, its name is what its layer is called.
        Values::Weight { .. } => Vec::new(),
        Values::Floats { values } => {
            let mut all = Vec::new();
            for (at, &value) in values.iter().enumerate() {
                for other in number(value).into_iter().filter(|other| *other != value) {
                    let mut values = values.clone();
                    values[at] = other;
                    all.push((format!("{other}"), Values::Floats { values }));
                }
            }
            all
        }
        Values::Integers { values } => {
            let others = neighbours(values).into_iter();
            others.map(|(what, values)| (what, Values::Integers { values })).collect()
        }
        Values::RotaryCos(table) | Values::RotarySin(table) => {
            let mut tables = Vec::new();
            let mut other = table.clone();
            other.attention_factor *= 1.5;
            tables.push(("attention factor", other));
            for pair in 0..table.inv_freq.len() {
                let mut other = table.clone();
                other.inv_freq[pair] *= 1.5;
                tables.push(("frequency", other));
            }
            let mut other = table.clone();
            other.positions -= 1;
            tables.push(("positions", other));
            let is_cos = matches!(values, Values::RotaryCos(_));
            let make =
                |table, cos: bool| if cos { Values::RotaryCos(table) } else { Values::RotarySin(table) };
            let tables = tables.into_iter().map(|(what, table)| (what.to_owned(), make(table, is_cos)));
            tables.chain([("the other function".to_owned(), make(table.clone(), !is_cos))]).collect()
        }
    }
}
