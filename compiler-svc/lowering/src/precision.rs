//! Gives weights, activations and float inputs the engine's dtype.
//!
//! Ops compute in fp32 and round once, when they store, so norms, softmax and sums need nothing here. Float outputs
//! are cast back to f32: sampling works on fp32 logits in every precision.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{DType, Graph, Op, PassReport, Rewriter, ValueId};

use crate::LoweringError;

pub(crate) const NAME: &str = "precision";

pub(crate) fn run(graph: Graph, options: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let dtype = options.precision.dtype();
    let mut rewriter = Rewriter::new(graph);
    let other = |graph: &Graph, id: ValueId| {
        let found = graph.value(id).dtype;
        found.is_float() && found != dtype
    };

    let graph = rewriter.graph();
    let weights: Vec<ValueId> = graph.weights().map(|(id, ..)| id).filter(|&id| other(graph, id)).collect();
    let inputs: Vec<ValueId> = graph.inputs().iter().copied().filter(|&id| other(graph, id)).collect();
    for &id in weights.iter().chain(&inputs) {
        rewriter.set_dtype(id, dtype)?;
    }
    rewriter.reinfer()?;

    let graph = rewriter.graph();
    let halves = |id: &ValueId| matches!(graph.value(*id).dtype, DType::F16 | DType::Bf16);
    let outputs: Vec<ValueId> = graph.outputs().iter().copied().filter(halves).collect();
    for &output in &outputs {
        // The output's name goes to the cast, and the cast's to what it casts.
        let name = format!("{}_{dtype}", rewriter.value(output).name);
        let cast = rewriter.append(&name, Op::Cast { to: DType::F32 }, &[output])?;
        if let Some(node) = rewriter.producer(cast) {
            rewriter.replace_uses_after(node, output, cast)?;
        }
    }
    let counts = [
        ("converted_weights", weights.len() as u64),
        ("converted_inputs", inputs.len() as u64),
        ("cast_outputs", outputs.len() as u64),
    ];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}
