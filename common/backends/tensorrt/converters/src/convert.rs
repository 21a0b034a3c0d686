//! The walk over a graph.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{Graph, Symbol, Value, verify};
use roundhouse_tensorrt_network::{DYNAMIC, DataType, Dims, Network, Tensor};

use crate::context::Context;
use crate::converters::attention::AttentionChoice;
use crate::coverage::uncovered;
use crate::options::Options;
use crate::site::Site;
use crate::{ConvertError, profiles, registry, signature};

/// A converted graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The network with its profiles.
    pub network: Network,
    /// How each attention is expressed, in execution order.
    pub attention: Vec<AttentionChoice>,
}

/// Converts a lowered graph. `options.tensorrt` unset is the default; `options.targets` empty is any GPU.
///
/// # Errors
/// [`ConvertError::Unsupported`] for all nodes that have no converter in their form, [`ConvertError::Option`] for
/// options that cannot be, [`ConvertError::Graph`] for a graph that does not verify; any other is a mistake in here.
pub fn convert(graph: &Graph, options: &EngineOptions) -> Result<Converted, ConvertError> {
    verify(graph)?;
    let options = Options::new(options);
    options.check(graph)?;
    let uncovered = uncovered(graph, &options);
    if !uncovered.is_empty() {
        return Err(ConvertError::Unsupported(uncovered));
    }
    let mut context = Context::new(graph, &options);
    signature::inputs(&mut context)?;
    for (_, node) in graph.nodes() {
        let site = Site { graph, node, options: &options };
        let converter = registry::find(&node.op).ok_or_else(|| site.wrong_converter())?;
        context.enter(site.name());
        let tensor = (converter.convert)(&mut context, &site)?;
        check(context.network.tensor(tensor), site.output(), graph.symbols())?;
        context.bind(node.output, tensor);
    }
    signature::outputs(&mut context)?;
    let mut network = context.network;
    network.profiles = profiles::profiles(graph, &options);
    Ok(Converted { network, attention: context.attention })
}

/// A tensor is what the graph says: a dimension is known exactly where the graph knows it.
fn check(tensor: &Tensor, value: &Value, symbols: &[Symbol]) -> Result<(), ConvertError> {
    let dims: Dims = value.shape.iter().map(|dim| dim.as_constant().unwrap_or(DYNAMIC)).collect();
    let dtype = DataType::from(value.dtype);
    if tensor.dtype == dtype && tensor.dims == dims {
        return Ok(());
    }
    let shape: Vec<String> = value.shape.iter().map(|dim| dim.display(symbols)).collect();
    Err(ConvertError::Type {
        node: value.name.clone(),
        expected: format!("{dtype} {dims:?} for {}[{}]", value.dtype, shape.join(", ")),
        found: format!("{} {:?}", tensor.dtype, tensor.dims),
    })
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{DType, Dim, Origin, SymbolId};

    use super::*;

    #[test]
    fn layers_that_make_something_else_are_a_mistake_that_names_both() {
        let symbols = [Symbol { name: "batch".to_owned(), min: 1, max: 4 }];
        let value = Value {
            name: "x".to_owned(),
            dtype: DType::F16,
            shape: vec![Dim::symbol(SymbolId(0)), 8_i64.into()],
            origin: Origin::Node,
        };
        let made = |dtype, dims: &[i64]| {
            check(&Tensor { name: "y".to_owned(), dtype, dims: dims.to_vec() }, &value, &symbols)
        };
        assert_eq!(made(DataType::Half, &[DYNAMIC, 8]), Ok(()));
        for (dtype, dims, found) in [
            (DataType::Float, [DYNAMIC, 8], "kFLOAT [-1, 8]"),
            (DataType::Half, [DYNAMIC, DYNAMIC], "kHALF [-1, -1]"),
            (DataType::Half, [4, 8], "kHALF [4, 8]"),
            (DataType::Half, [DYNAMIC, 9], "kHALF [-1, 9]"),
        ] {
            let message = made(dtype, &dims).unwrap_err().to_string();
            assert!(message.contains("\"x\""), "{message}");
            assert!(message.contains(found), "{message}");
            assert!(message.contains("kHALF [-1, 8] for f16[batch, 8]"), "{message}");
        }
    }
}
