//! Narrows the ranges of `batch` and `seq` to the engine's.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Dim, Graph, PassReport, Rewriter, SymbolId};

use crate::LoweringError;

pub(crate) const NAME: &str = "symbol_ranges";

pub(crate) fn run(graph: Graph, options: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let [batch, seq] = batch_and_seq(&graph, NAME)?;
    let mut rewriter = Rewriter::new(graph);
    let asked = [
        ("max_batch_size", batch, i64::from(options.max_batch_size)),
        ("max_seq_len", seq, i64::from(options.max_seq_len)),
    ];
    let mut narrowed = 0;
    for (option, symbol, max) in asked {
        let limits = &rewriter.graph().symbols()[symbol.0 as usize];
        let (least, most) = (limits.min.max(1), limits.max);
        if !(least..=most).contains(&max) {
            let expected = format!("{least} to {most}, which is what the model takes");
            return Err(LoweringError::Options { option, found: max.to_string(), expected });
        }
        narrowed += u64::from(max < most);
        rewriter.set_symbol_range(symbol, least, max);
    }
    Ok((rewriter.finish()?, PassReport::new(NAME, [("narrowed_symbols", narrowed)])))
}

/// The symbols of `input_ids [batch, seq]`.
pub(crate) fn batch_and_seq(graph: &Graph, pass: &'static str) -> Result<[SymbolId; 2], LoweringError> {
    let shape = graph.find("input_ids").map(|id| graph.value(id).shape.as_slice());
    let symbols = match shape {
        Some([batch, seq]) => batch.as_symbol().zip(seq.as_symbol()),
        _ => None,
    };
    let (batch, seq) = symbols.ok_or_else(|| LoweringError::Unsupported {
        pass,
        what: "the graph has no input input_ids [batch, seq] with two symbols".to_owned(),
    })?;
    Ok([batch, seq])
}

/// As dimensions.
pub(crate) fn batch_and_seq_dims(graph: &Graph, pass: &'static str) -> Result<[Dim; 2], LoweringError> {
    Ok(batch_and_seq(graph, pass)?.map(Dim::symbol))
}
