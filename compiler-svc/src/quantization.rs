//! How the weights of an engine's products are kept: what was asked for, or what is best, as passes over its graph.

use std::collections::BTreeSet;

use roundhouse_backend::{BackendError, Builder, WeightSource};
use roundhouse_engine::{EngineOptions, WeightQuantization};
use roundhouse_graph::{
    Graph, Node, Op, Origin, PassReport, QuantizedLinearAttributes, ValueId, WeightFormat,
};
use roundhouse_lowering::{calibrated_quantization, packed_weights, weight_only_quantization};

use crate::pipeline::CompileError;

/// The most numbers in the weights of products that are calibrated where a request does not say.
const MOST_CALIBRATED: i64 = 1 << 30;

/// A graph whose products have the weights that its engine keeps.
#[derive(Debug)]
pub(crate) struct Quantized {
    pub(crate) graph: Graph,
    /// What the engine's options say.
    pub(crate) quantization: WeightQuantization,
    /// What the pass did, where one ran.
    pub(crate) report: Option<PassReport>,
    /// For people.
    pub(crate) notes: Vec<String>,
}

impl Quantized {
    fn decoded(graph: Graph) -> Self {
        Self { graph, quantization: WeightQuantization::None, report: None, notes: Vec::new() }
    }
}

/// Quantises the weights of a lowered graph as was `asked`, with whether to calibrate them. Where nothing was, they stay as
/// the checkpoint has them if the backend multiplies with any so; an engine in which it does not is the same as one that was asked for without.
///
/// # Errors
/// What was asked for by name and cannot be.
pub(crate) fn quantize(
    graph: Graph,
    (asked, calibration): (Option<WeightQuantization>, Option<bool>),
    options: &EngineOptions,
    source: &dyn WeightSource,
    builder: &dyn Builder,
) -> Result<Quantized, CompileError> {
    match asked {
        Some(WeightQuantization::None) => Ok(Quantized::decoded(graph)),
        Some(WeightQuantization::Compiler(attributes)) => {
            by_compiler(graph, (attributes, calibration), options, source, builder)
        }
        Some(WeightQuantization::Calibrated(attributes)) => {
            by_compiler(graph, (attributes, Some(true)), options, source, builder)
        }
        Some(WeightQuantization::Checkpoint) => {
            let found = as_in_checkpoint(graph, options, source, builder)?;
            let packed = found.quantization == WeightQuantization::Checkpoint;
            if packed { Ok(found) } else { Err(not_packed(&found, builder)) }
        }
        None => as_in_checkpoint(graph, options, source, builder),
    }
}

fn as_in_checkpoint(
    graph: Graph,
    options: &EngineOptions,
    source: &dyn WeightSource,
    builder: &dyn Builder,
) -> Result<Quantized, CompileError> {
    if !weights_of_products(&graph).any(|(_, tensors)| is_quantized(source, &tensors)) {
        return Ok(Quantized::decoded(graph));
    }
    let options = EngineOptions { quantization: WeightQuantization::Checkpoint, ..*options };
    let accepts = |attributes| builder.multiplies_quantized(attributes, &options);
    let (packed, report) = packed_weights(graph.clone(), source, &accepts)?;
    let count = |name: &str| report.counts.get(name).copied().unwrap_or(0);
    let mut notes = Vec::new();
    if count("left_by_backend") > 0 {
        notes.push(format!(
            "{} quantised weights of the checkpoint are decoded: the {} backend does not multiply with them as they are",
            count("left_by_backend"),
            builder.kind()
        ));
    }
    let any = count("packed_linears") > 0;
    let (graph, quantization) = match any {
        true => (packed, WeightQuantization::Checkpoint),
        false => (graph, WeightQuantization::None),
    };
    Ok(Quantized { graph, quantization, report: Some(report), notes })
}

/// Why nothing is kept as the checkpoint has it.
fn not_packed(found: &Quantized, builder: &dyn Builder) -> CompileError {
    let count = |name: &str| found.report.as_ref().and_then(|report| report.counts.get(name)).copied();
    let why = match count("left_by_backend") {
        Some(left @ 1..) => {
            format!("the {} backend multiplies with none of its {left} quantised weights", builder.kind())
        }
        _ => "the checkpoint has no weights of products that are quantised in whole groups".to_owned(),
    };
    CompileError::Option {
        field: "quantization.format",
        found: WeightQuantization::Checkpoint.to_string(),
        allowed: format!("none, int8, int4 or fp8: {why}"),
    }
}

fn by_compiler(
    graph: Graph,
    (attributes, calibration): (QuantizedLinearAttributes, Option<bool>),
    options: &EngineOptions,
    source: &dyn WeightSource,
    builder: &dyn Builder,
) -> Result<Quantized, CompileError> {
    let asked = WeightQuantization::Compiler(attributes);
    let options = EngineOptions { quantization: asked, ..*options };
    if !builder.multiplies_quantized(attributes, &options) {
        return Err(CompileError::Options(BackendError::Unsupported {
            backend: builder.kind().name(),
            what: format!("products with weights of {asked} in {} engines", options.precision),
        }));
    }
    let mut notes = Vec::new();
    if weights_of_products(&graph).any(|(_, tensors)| is_quantized(source, &tensors)) {
        notes.push(format!(
            "the checkpoint's weights are quantised already: {asked} is made of the numbers that they decode to"
        ));
    }
    let columns: BTreeSet<i64> = weights_of_products(&graph)
        .filter_map(|(weight, _)| graph.value(weight).shape.last()?.as_constant())
        .collect();
    let calibrate = calibration.unwrap_or_else(|| numbers_of_products(&graph) <= MOST_CALIBRATED);
    let calibrated = match attributes.quantization.format {
        WeightFormat::Int4 if calibrate => Some(calibrated_quantization(graph.clone(), attributes)?),
        _ => None,
    };
    let multiplies = |node: &Node| match node.op {
        Op::QuantizedLinear(attributes) => builder.multiplies_quantized(attributes, &options),
        _ => true,
    };
    let (quantization, (graph, report)) = match calibrated {
        Some(made) if made.0.nodes().all(|(_, node)| multiplies(node)) => {
            (WeightQuantization::Calibrated(attributes), made)
        }
        Some(_) if calibration == Some(true) => {
            return Err(CompileError::Options(BackendError::Unsupported {
                backend: builder.kind().name(),
                what: format!(
                    "products with weights of int8 beside {asked} in {} engines",
                    options.precision
                ),
            }));
        }
        _ => (asked, weight_only_quantization(graph, attributes)?),
    };
    if report.counts.get("quantized_linears").copied().unwrap_or(0) == 0 {
        let columns: Vec<_> = columns.iter().map(ToString::to_string).collect();
        return Err(CompileError::Option {
            field: "quantization.group_size",
            found: attributes.quantization.group_size.to_string(),
            allowed: format!("what divides the columns of its weights ({})", columns.join(", ")),
        });
    }
    Ok(Quantized { graph, quantization, report: Some(report), notes })
}

/// How many numbers the weights of products have.
fn numbers_of_products(graph: &Graph) -> i64 {
    let count = |(weight, _): (ValueId, Vec<&str>)| {
        let dims = graph.value(weight).shape.iter().filter_map(roundhouse_graph::Dim::as_constant);
        dims.fold(1, i64::saturating_mul)
    };
    weights_of_products(graph).map(count).fold(0, i64::saturating_add)
}

fn is_quantized(source: &dyn WeightSource, tensors: &[&str]) -> bool {
    tensors.iter().any(|tensor| source.quantized(tensor).is_some())
}

/// The weights that products multiply with, and the tensors that they are made of.
fn weights_of_products(graph: &Graph) -> impl Iterator<Item = (ValueId, Vec<&str>)> {
    let weight = |node: &Node| node.inputs.get(1).copied().filter(|_| node.op == Op::Linear);
    graph.nodes().filter_map(move |(_, node)| {
        let id = weight(node)?;
        match &graph.value(id).origin {
            Origin::Weight { expr } => Some((id, expr.tensors())),
            Origin::Input { .. } | Origin::Node => None,
        }
    })
}
