//! What TensorRT holds after a replay, compared with the network by TensorRT's own names and getters.
//!
//! Enum values are compared by name, as text: a value that the replay maps to another one is found, because nothing here
//! maps values.

use std::collections::BTreeMap;

use roundhouse_tensorrt_library::BuildSession;
use roundhouse_tensorrt_library::raw::LayerView;
use roundhouse_tensorrt_network::{
    Constant, FillDims, Layer, LayerKind, Network, Reshape, SliceOperand, TensorId,
};
use roundhouse_weights::MappedWeights;
use serde::Serialize;

use crate::ReplayError;
use crate::replay::Weights;

/// The attributes of a layer by the names of TensorRT's getters, enum values as [`plain`] text.
type Attributes = BTreeMap<&'static str, String>;

/// Compares every layer, its operands, attributes and constants, and the outputs.
///
/// # Errors
/// [`ReplayError::Held`] names the first difference.
pub fn compare(
    session: &BuildSession<'_>,
    network: &Network,
    weights: Weights<'_>,
) -> Result<(), ReplayError> {
    let views = session.layers()?;
    let count = |count: usize| format!("{count} layers");
    differ("the network", "", count(network.layers().len()), count(views.len()))?;
    for (layer, view) in network.layers().iter().zip(&views) {
        compare_layer(network, layer, view)?;
        if let LayerKind::Constant(constant) = &layer.kind {
            compare_constant(&layer.name, constant, view, weights)?;
        }
    }
    let outputs = network.outputs().iter().map(|output| network.tensor(output.tensor).name.clone());
    let ours = outputs.collect::<Vec<_>>().join(", ");
    differ("the network", "the outputs", ours, session.output_names()?.join(", "))
}

fn compare_layer(network: &Network, layer: &Layer, view: &LayerView<'_>) -> Result<(), ReplayError> {
    let name = layer.name.as_str();
    let (layer_type, expected) = describe(&layer.kind, &dims_of(network, layer))?;
    differ(name, "the name", name.to_owned(), view.name.clone())?;
    differ(name, "the type", layer_type.to_owned(), view.layer_type.clone())?;
    for (&attribute, found) in &view.attributes {
        let ours = expected.get(attribute).cloned().unwrap_or_else(|| "nothing".to_owned());
        if ours != ANY {
            differ(name, attribute, ours, plain(found))?;
        }
    }
    if let Some(missing) = expected.keys().find(|&&attribute| !view.attributes.contains_key(attribute)) {
        return Err(held(name, missing, "a value".to_owned(), "nothing".to_owned()));
    }
    let ours = trimmed(operands(network, layer));
    differ(name, "the operands", format!("{ours:?}"), format!("{:?}", trimmed(view.inputs.clone())))?;
    let tensor = network.tensor(layer.output);
    let ours = format!("{} {:?} {:?}", tensor.name, tensor.dtype.name(), tensor.dims);
    let theirs =
        view.output.as_ref().map(|output| format!("{} {:?} {:?}", output.name, output.dtype, output.dims));
    differ(name, "the output", ours, theirs.unwrap_or_default())
}

/// What stands where TensorRT's value has no meaning.
const ANY: &str = "any";

fn dims_of(network: &Network, layer: &Layer) -> [usize; 2] {
    let rank = |id: TensorId| network.tensor(id).dims.len();
    [layer.inputs.first().map_or(0, |&input| rank(input)), rank(layer.output)]
}

/// The type and attributes that TensorRT should have for a layer. `ranks` are of its first operand and its output.
fn describe(kind: &LayerKind, ranks: &[usize; 2]) -> Result<(&'static str, Attributes), ReplayError> {
    let order = |order: &Option<Vec<usize>>, rank: usize| match order {
        Some(order) => format!("{order:?}"),
        None => format!("{:?}", (0..rank).collect::<Vec<_>>()),
    };
    let operand = |operand: &SliceOperand| match operand {
        SliceOperand::Static(dims) => format!("{dims:?}"),
        SliceOperand::Input { .. } => ANY.to_owned(),
    };
    let (layer_type, attributes): (_, Vec<(&'static str, String)>) = match kind {
        LayerKind::Constant(constant) => (
            "kCONSTANT",
            vec![
                ("Dimensions", format!("{:?}", constant.dims)),
                ("Type", plain(constant.dtype.name())),
                ("Count", constant.len().to_string()),
            ],
        ),
        LayerKind::Activation { function } => ("kACTIVATION", vec![("ActivationType", value(function)?)]),
        LayerKind::Unary { function } => ("kUNARY", vec![("Operation", value(function)?)]),
        LayerKind::ElementWise { operation } => ("kELEMENTWISE", vec![("Operation", value(operation)?)]),
        LayerKind::Cast { to } => ("kCAST", vec![("ToType", plain(to.name()))]),
        LayerKind::Shuffle { first_transpose, reshape, second_transpose } => (
            "kSHUFFLE",
            vec![
                ("FirstTranspose", order(first_transpose, ranks[0])),
                (
                    "ReshapeDimensions",
                    match reshape {
                        Some(Reshape::Static(dims)) => format!("{dims:?}"),
                        Some(Reshape::Input { .. }) | None => ANY.to_owned(),
                    },
                ),
                ("SecondTranspose", order(second_transpose, ranks[1])),
                ("ZeroIsPlaceholder", "true".to_owned()),
            ],
        ),
        LayerKind::Slice { start, size } => (
            "kSLICE",
            vec![
                ("Start", operand(start)),
                ("Size", operand(size)),
                ("Stride", format!("{:?}", vec![1; ranks[0]])),
                ("Mode", "strictbounds".to_owned()),
            ],
        ),
        LayerKind::Concatenation { axis } => ("kCONCATENATION", vec![("Axis", axis.to_string())]),
        LayerKind::MatrixMultiply { op_a, op_b } => {
            ("kMATRIX_MULTIPLY", vec![("Operation0", value(op_a)?), ("Operation1", value(op_b)?)])
        }
        LayerKind::Gather { axis } => (
            "kGATHER",
            vec![
                ("GatherAxis", axis.to_string()),
                ("NbElementWiseDims", "0".to_owned()),
                ("Mode", "default".to_owned()),
            ],
        ),
        LayerKind::Reduce { operation, axes } => {
            let mut axes = axes.clone();
            axes.sort_unstable();
            (
                "kREDUCE",
                vec![
                    ("Operation", value(operation)?),
                    ("ReduceAxes", format!("{axes:?}")),
                    ("KeepDimensions", "true".to_owned()),
                ],
            )
        }
        LayerKind::SoftMax { axis } => ("kSOFTMAX", vec![("Axes", format!("[{axis}]"))]),
        LayerKind::Shape => ("kSHAPE", Vec::new()),
        LayerKind::Iota { length, dtype } => (
            "kFILL",
            vec![
                ("Operation", "linspace".to_owned()),
                (
                    "Dimensions",
                    match length {
                        FillDims::Static(length) => format!("[{length}]"),
                        FillDims::Input => ANY.to_owned(),
                    },
                ),
                ("Alpha", "0".to_owned()),
                ("Beta", "1".to_owned()),
                ("ToType", plain(dtype.name())),
            ],
        ),
        LayerKind::Select => ("kSELECT", Vec::new()),
        LayerKind::RotaryEmbedding { interleaved, dim } => (
            "kROTARY_EMBEDDING",
            vec![("Interleaved", interleaved.to_string()), ("RotaryEmbeddingDim", dim.to_string())],
        ),
        LayerKind::KvCacheUpdate => ("kKVCACHE_UPDATE", vec![("CacheMode", "linear".to_owned())]),
        LayerKind::Attention { causal, decomposable, .. } => (
            "kATTENTION_OUTPUT",
            vec![
                ("NormalizationOperation", "softmax".to_owned()),
                ("CausalKind", value(causal)?),
                ("Decomposable", decomposable.to_string()),
                ("QueryLengths", plain("None")),
            ],
        ),
    };
    Ok((layer_type, attributes.into_iter().collect()))
}

/// The names of a layer's operands, each at TensorRT's index.
fn operands(network: &Network, layer: &Layer) -> Vec<Option<String>> {
    let mut given = layer.inputs.iter().map(|&input| network.tensor(input).name.clone());
    match &layer.kind {
        LayerKind::Slice { start, size } => {
            let x = given.next();
            let mut at = |operand: &SliceOperand| match operand {
                SliceOperand::Static(_) => None,
                SliceOperand::Input { .. } => given.next(),
            };
            vec![x, at(start), at(size)]
        }
        LayerKind::Attention { has_mask, has_kv_lengths, .. } => {
            let mut operands: Vec<_> = given.by_ref().take(3).map(Some).collect();
            operands.push(if *has_mask { given.next() } else { None });
            operands.push(if *has_kv_lengths { given.next() } else { None });
            operands
        }
        _ => given.map(Some).collect(),
    }
}

fn trimmed(mut operands: Vec<Option<String>>) -> Vec<Option<String>> {
    while operands.last().is_some_and(Option::is_none) {
        operands.pop();
    }
    operands
}

fn compare_constant(
    name: &str,
    constant: &Constant,
    view: &LayerView<'_>,
    weights: Weights<'_>,
) -> Result<(), ReplayError> {
    let what = "the bytes";
    match (constant.bytes(), constant.weight(), weights) {
        (Some(bytes), _, _) if view.constant == Some(&bytes[..]) => Ok(()),
        (Some(bytes), _, _) => {
            Err(held(name, what, format!("{bytes:02x?}"), format!("{:02x?}", view.constant)))
        }
        (None, Some(weight), Weights::Mapped(file)) => {
            // The very bytes of the file: comparing them by content would read all weights once more.
            let ours = address_in(file, weight);
            differ(name, what, format!("{ours:?}"), format!("{:?}", view.constant.map(<[u8]>::as_ptr_range)))
        }
        (None, _, _) => {
            let theirs = view.constant.map_or_else(|| "none".to_owned(), |bytes| bytes.len().to_string());
            differ(name, what, "none".to_owned(), theirs)
        }
    }
}

fn address_in(file: &MappedWeights, weight: &str) -> Option<std::ops::Range<*const u8>> {
    file.tensor(weight).map(|tensor| file.bytes(tensor).as_ptr_range())
}

/// A value by its name in JSON.
fn value(value: &impl Serialize) -> Result<String, ReplayError> {
    let json = serde_json::to_value(value).ok();
    let name = json.as_ref().and_then(serde_json::Value::as_str).map(plain);
    name.ok_or_else(|| ReplayError::Malformed {
        layer: String::new(),
        what: "a value without a name".to_owned(),
    })
}

/// A name without what TensorRT's and ours differ in: `kGELU_ERF` and `gelu_erf` are `geluerf`.
fn plain(name: &str) -> String {
    let name = match name.strip_prefix('k') {
        Some(rest) if rest.starts_with(|letter: char| letter.is_ascii_uppercase()) => rest,
        _ => name,
    };
    name.replace('_', "").to_lowercase()
}

fn held(layer: &str, what: &str, ours: String, theirs: String) -> ReplayError {
    ReplayError::Held { layer: layer.to_owned(), what: what.to_owned(), ours, theirs }
}

fn differ(layer: &str, what: &str, ours: String, theirs: String) -> Result<(), ReplayError> {
    if ours == theirs { Ok(()) } else { Err(held(layer, what, ours, theirs)) }
}
