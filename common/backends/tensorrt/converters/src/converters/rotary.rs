//! Rotary position embedding.

use roundhouse_graph::{Op, RotaryAttributes};
use roundhouse_tensorrt_network::{Constant, DataType, LayerKind, RotaryTable, TensorId, Values};

use crate::ConvertError;
use crate::context::Context;
use crate::site::Site;

/// Nodes of equal frequencies, factor and dtype share their tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TableKey {
    inv_freq: Vec<u32>,
    attention_factor: u32,
    dtype: DataType,
}

pub(crate) fn validate(site: &Site<'_>) -> Result<(), String> {
    match site.op() {
        Op::RotaryEmbedding(attributes) if !attributes.sections.is_empty() => {
            Err("positions along several axes".to_owned())
        }
        _ => Ok(()),
    }
}

/// `IRotaryEmbeddingLayer` with tables that `position_ids` index, one row for each position that a sequence can have.
pub(crate) fn rotary_embedding(context: &mut Context<'_>, site: &Site<'_>) -> Result<TensorId, ConvertError> {
    let Op::RotaryEmbedding(attributes) = site.op() else { return Err(site.wrong_converter()) };
    let x = context.operand(site, 0)?;
    let position_ids = context.operand(site, 1)?;
    let [cos, sin] = tables(context, attributes, DataType::from(site.output().dtype))?;
    let kind =
        LayerKind::RotaryEmbedding { interleaved: attributes.interleaved, dim: attributes.rotary_dim() };
    context.layer("rotary_embedding", kind, &[x, cos, sin, position_ids])
}

fn tables(
    context: &mut Context<'_>,
    attributes: &RotaryAttributes,
    dtype: DataType,
) -> Result<[TensorId; 2], ConvertError> {
    let key = TableKey {
        inv_freq: attributes.inv_freq.iter().map(|frequency| frequency.to_bits()).collect(),
        attention_factor: attributes.attention_factor.to_bits(),
        dtype,
    };
    if let Some(&tables) = context.shared.tables.get(&key) {
        return Ok(tables);
    }
    let table = RotaryTable {
        positions: context.options.engine.max_seq_len,
        inv_freq: attributes.inv_freq.clone(),
        attention_factor: attributes.attention_factor,
    };
    let pairs = i64::try_from(table.inv_freq.len()).unwrap_or(i64::MAX);
    let dims = vec![i64::from(table.positions), pairs];
    let mut constant = |what: &str, values: Values| {
        context.layer(what, LayerKind::Constant(Constant { dtype, dims: dims.clone(), values }), &[])
    };
    let tables =
        [constant("cos", Values::RotaryCos(table.clone()))?, constant("sin", Values::RotarySin(table))?];
    context.shared.tables.insert(key, tables);
    Ok(tables)
}
