//! Optimization profiles: what shapes an engine accepts, and for which its kernels are tuned.
//!
//! One profile takes 1 to the most new tokens. It is tuned for decode, one token of one sequence: that is what runs most,
//! and larger steps have the arithmetic to hide what is not tuned for them. Without a cache every step is the whole
//! sequence, and half of the longest is what it is on average. Two profiles are one for a single new token and one for
//! more, tuned for the longest prompt.

use std::collections::BTreeMap;

use roundhouse_engine::{CacheKind, Profiles};
use roundhouse_graph::{Dim, Graph, Origin, Symbol, SymbolId};
use roundhouse_tensorrt_network::{InputRange, Profile};

use crate::options::Options;

/// The values of a symbol.
#[derive(Debug, Clone, Copy)]
struct Range {
    min: i64,
    opt: i64,
    max: i64,
}

/// The profiles of a graph with the options' limits.
pub(crate) fn profiles(graph: &Graph, options: &Options) -> Vec<Profile> {
    let [batch, seq] = batch_and_seq(graph);
    let limit = |symbol: Option<SymbolId>, most: u32| -> Range {
        let range = symbol.and_then(|id| graph.symbols().get(id.0 as usize));
        let (min, max) = range.map_or((1, i64::from(most)), |range| (range.min, range.max));
        let max = max.min(i64::from(most)).max(min);
        Range { min, opt: min, max }
    };
    let batch_range = limit(batch, options.engine.max_batch_size);
    let seq_range = limit(seq, options.engine.max_seq_len);
    let whole = match options.engine.cache {
        CacheKind::None => Range { opt: midpoint(seq_range.min, seq_range.max), ..seq_range },
        CacheKind::StaticV1 | CacheKind::StaticV2 | CacheKind::InPlace => seq_range,
    };
    let decode = Range { opt: seq_range.min, max: seq_range.min, ..seq_range };
    let prefill = Range { min: seq_range.min + 1, opt: seq_range.max, max: seq_range.max };
    let seq_ranges = match options.tensorrt.profiles {
        Profiles::Two if prefill.min <= prefill.max => vec![decode, prefill],
        Profiles::One | Profiles::Two => vec![whole],
    };
    let profile = |new_tokens: Range| {
        let of = |id: SymbolId, symbol: &Symbol| -> Range {
            if Some(id) == batch {
                batch_range
            } else if Some(id) == seq {
                new_tokens
            } else {
                past(symbol, new_tokens, options)
            }
        };
        let ranges: Vec<Range> =
            (0..).map(SymbolId).zip(graph.symbols()).map(|(id, symbol)| of(id, symbol)).collect();
        Profile { inputs: inputs(graph, &ranges, options) }
    };
    seq_ranges.into_iter().map(profile).collect()
}

/// A symbol that is neither batch nor new tokens: how many tokens are in the cache. With `n` new ones at most
/// `max_seq_len − n`; half of that on average, but none before a prompt.
fn past(symbol: &Symbol, new_tokens: Range, options: &Options) -> Range {
    let most = i64::from(options.engine.max_seq_len) - new_tokens.min;
    let max = symbol.max.min(most).max(symbol.min);
    let is_prompt = new_tokens.opt > new_tokens.min;
    Range { min: symbol.min, opt: if is_prompt { symbol.min } else { midpoint(symbol.min, max) }, max }
}

fn midpoint(min: i64, max: i64) -> i64 {
    min + (max - min) / 2
}

/// The symbols of `input_ids [batch, seq]`.
fn batch_and_seq(graph: &Graph) -> [Option<SymbolId>; 2] {
    let shape = graph.find("input_ids").map(|id| &graph.value(id).shape[..]);
    match shape {
        Some([batch, seq]) => [batch.as_symbol(), seq.as_symbol()],
        _ => [None, None],
    }
}

/// The ranges of the inputs that need one: of dynamic dimensions, and of the numbers of index inputs.
fn inputs(graph: &Graph, ranges: &[Range], options: &Options) -> BTreeMap<String, InputRange> {
    let mut inputs = BTreeMap::new();
    for &id in graph.inputs() {
        let value = graph.value(id);
        let range = match &value.origin {
            Origin::Input { equals: Some(equals) } => {
                let mut range = evaluate(equals, ranges);
                // `start + seq`: its parts are not at their largest together.
                range.max = range.max.min(i64::from(options.engine.max_seq_len)).max(range.min);
                range.opt = range.opt.clamp(range.min, range.max);
                InputRange::Values { min: vec![range.min], opt: vec![range.opt], max: vec![range.max] }
            }
            _ if value.shape.iter().any(|dim| dim.as_constant().is_none()) => {
                let dims: Vec<Range> = value.shape.iter().map(|dim| evaluate(dim, ranges)).collect();
                InputRange::Dimensions {
                    min: dims.iter().map(|range| range.min).collect(),
                    opt: dims.iter().map(|range| range.opt).collect(),
                    max: dims.iter().map(|range| range.max).collect(),
                }
            }
            _ => continue,
        };
        inputs.insert(value.name.clone(), range);
    }
    inputs
}

/// The values of a dimension.
fn evaluate(dim: &Dim, ranges: &[Range]) -> Range {
    let with = |choose: &dyn Fn(Range, bool) -> i64| {
        let (constant, terms) = dim.parts();
        terms.iter().fold(constant, |sum, (id, &coefficient)| {
            let value = ranges.get(id.0 as usize).map_or(0, |range| choose(*range, coefficient > 0));
            sum.saturating_add(coefficient.saturating_mul(value))
        })
    };
    Range {
        min: with(&|range, grows| if grows { range.min } else { range.max }),
        opt: with(&|range, _| range.opt),
        max: with(&|range, grows| if grows { range.max } else { range.min }),
    }
}
