//! Brings attention into one form: the op `scaled_dot_product_attention`, its scale given, over as few key and value
//! heads as there are, and without a mask that says what `causal` and `window` say.

use roundhouse_engine::EngineOptions;
use roundhouse_graph::{
    AttentionAttributes, Dim, Graph, GraphError, NodeId, Op, PassReport, Rewriter, ValueId,
};

use crate::LoweringError;
use crate::attention_patterns::{decomposed_attention, repeated_heads};
use crate::literal::literal;

pub(crate) const NAME: &str = "sdpa";

/// A number that, added to a score, leaves the key no weight: `exp` of it is zero in fp32, and exporters use anything
/// from here (GPT-2) to the dtype's least number.
const MASKED: f32 = -1e4;

pub(crate) fn run(graph: Graph, _: &EngineOptions) -> Result<(Graph, PassReport), LoweringError> {
    let mut rewriter = Rewriter::new(graph);
    let mut patterns = 0;
    for id in rewriter.nodes_where(|node| matches!(node.op, Op::MatMul { .. })) {
        patterns += u64::from(compose(&mut rewriter, id)?);
    }
    let attentions = rewriter.nodes_where(|node| matches!(node.op, Op::ScaledDotProductAttention(_)));
    let (mut scales, mut masks, mut repetitions) = (0, 0, 0);
    for &id in &attentions {
        scales += u64::from(fill_scale(&mut rewriter, id)?);
        masks += u64::from(drop_mask(&mut rewriter, id)?);
        repetitions += u64::from(fold_repetition(&mut rewriter, id)?);
    }
    let counts = [
        ("attention_nodes", attentions.len() as u64),
        ("composed_patterns", patterns),
        ("filled_scales", scales),
        ("dropped_masks", masks),
        ("folded_repetitions", repetitions),
    ];
    Ok((rewriter.finish()?, PassReport::new(NAME, counts)))
}

/// Turns a matrix product that ends a written-out attention into the op.
fn compose(rewriter: &mut Rewriter, id: NodeId) -> Result<bool, GraphError> {
    let Some(found) = decomposed_attention(rewriter, id) else { return Ok(false) };
    let [query, key, value] = [found.query, found.key, found.value].map(|id| rewriter.value(id));
    let output = rewriter.value(rewriter.node(id).output);
    let one_dtype = [key, value, output].iter().all(|other| other.dtype == query.dtype);
    // A mask with more dimensions than the scores would have widened them.
    let same_shape = match (&query.shape[..], &value.shape[..]) {
        ([batch, heads, seq, _], [.., value_dim]) => {
            output.shape[..] == [batch, heads, seq, value_dim].map(Dim::clone)
        }
        _ => false,
    };
    if !(one_dtype && same_shape) {
        return Ok(false);
    }
    let mut attributes = AttentionAttributes {
        scale: Some(found.scale),
        soft_cap: found.soft_cap,
        ..AttentionAttributes::full()
    };
    let mut inputs = vec![found.query, found.key, found.value];
    if let Some(mask) = found.mask {
        match visibility(rewriter, mask, [found.query, found.key]) {
            Some(visibility) => visibility.apply(&mut attributes),
            None if fits_as_mask(rewriter, mask, [found.query, found.key]) => {
                attributes.has_mask = true;
                inputs.push(mask);
            }
            None => return Ok(false),
        }
    }
    rewriter.set_node(id, Op::ScaledDotProductAttention(attributes), &inputs)?;
    Ok(true)
}

/// Whether a value has the shape and dtype of the op's mask input.
fn fits_as_mask(rewriter: &Rewriter, mask: ValueId, [query, key]: [ValueId; 2]) -> bool {
    let (mask, query, key) = (rewriter.value(mask), rewriter.value(query), rewriter.value(key));
    let one = Dim::constant(1);
    match (&mask.shape[..], &query.shape[..], &key.shape[..]) {
        ([b, n, s, l], [batch, heads, seq, _], [_, _, length, _]) => {
            let broadcasts = (b == batch || *b == one) && (n == heads || *n == one);
            broadcasts && (s, l) == (seq, length) && mask.dtype == query.dtype
        }
        _ => false,
    }
}

fn fill_scale(rewriter: &mut Rewriter, id: NodeId) -> Result<bool, LoweringError> {
    let Some((mut attributes, inputs)) = attention(rewriter, id) else { return Ok(false) };
    if attributes.scale.is_some() {
        return Ok(false);
    }
    let query = rewriter.value(inputs[0]);
    let head_dim = query.shape.get(3).and_then(Dim::as_constant).filter(|&dim| dim > 0);
    let head_dim = head_dim.ok_or_else(|| LoweringError::Unsupported {
        pass: NAME,
        what: format!("{:?} has no static head dimension", query.name),
    })?;
    attributes.scale = Some((1.0 / (head_dim as f64).sqrt()) as f32);
    rewriter.set_op(id, Op::ScaledDotProductAttention(attributes))?;
    Ok(true)
}

/// Drops a mask whose numbers are known to say no more than the attributes can.
fn drop_mask(rewriter: &mut Rewriter, id: NodeId) -> Result<bool, GraphError> {
    let Some((mut attributes, mut inputs)) = attention(rewriter, id) else { return Ok(false) };
    // With lengths, the queries are the last of each sequence's own keys, and not of the mask's columns.
    if !attributes.has_mask || attributes.has_kv_lengths {
        return Ok(false);
    }
    let Some(visibility) = visibility(rewriter, inputs[3], [inputs[0], inputs[1]]) else { return Ok(false) };
    let windows = attributes.window.is_some() && matches!(visibility, Visibility::Causal { window: Some(_) });
    if windows {
        return Ok(false);
    }
    visibility.apply(&mut attributes);
    attributes.has_mask = false;
    inputs.remove(3);
    rewriter.set_node(id, Op::ScaledDotProductAttention(attributes), &inputs)?;
    Ok(true)
}

/// Makes grouped-query attention read the heads that were repeated for it.
fn fold_repetition(rewriter: &mut Rewriter, id: NodeId) -> Result<bool, GraphError> {
    let Some((_, mut inputs)) = attention(rewriter, id) else { return Ok(false) };
    match (repeated_heads(rewriter, inputs[1]), repeated_heads(rewriter, inputs[2])) {
        (Some((key, key_times)), Some((value, value_times))) if key_times == value_times => {
            (inputs[1], inputs[2]) = (key, value);
            rewriter.set_inputs(id, &inputs)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn attention(rewriter: &Rewriter, id: NodeId) -> Option<(AttentionAttributes, Vec<ValueId>)> {
    let node = rewriter.node(id);
    match &node.op {
        Op::ScaledDotProductAttention(attributes) => Some((attributes.clone(), node.inputs.clone())),
        _ => None,
    }
}

/// What a mask lets queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    /// All keys.
    All,
    /// Keys up to the query's own, aligned bottom-right; of those the last `window`.
    Causal { window: Option<u32> },
}

impl Visibility {
    fn apply(self, attributes: &mut AttentionAttributes) {
        if let Self::Causal { window } = self {
            attributes.causal = true;
            attributes.window = attributes.window.or(window);
        }
    }
}

/// What an additive mask of known numbers says, if that is all keys or a causal band.
fn visibility(rewriter: &Rewriter, mask: ValueId, [query, key]: [ValueId; 2]) -> Option<Visibility> {
    let numbers = literal(rewriter, mask)?;
    if numbers.iter().all(|&number| number == 0.0) {
        return Some(Visibility::All);
    }
    let size = |id: ValueId| {
        rewriter.value(id).shape.get(2).and_then(Dim::as_constant).and_then(|size| usize::try_from(size).ok())
    };
    let (rows, columns) = (size(query)?, size(key)?);
    let [.., mask_rows, mask_columns] = &rewriter.value(mask).shape[..] else { return None };
    let whole = *mask_rows == Dim::from(rows) && *mask_columns == Dim::from(columns);
    if !whole || columns < rows || !numbers.iter().all(|&number| number == 0.0 || number <= MASKED) {
        return None;
    }
    let seen = |row: &[f32]| row.iter().filter(|&&number| number == 0.0).count();
    let widest = numbers.chunks_exact(columns).map(seen).max()?;
    let window = if widest == columns { None } else { Some(u32::try_from(widest).ok()?) };
    let is_band = numbers.chunks_exact(columns).enumerate().all(|(index, row)| {
        let last = index % rows + columns - rows;
        row.iter().enumerate().all(|(column, &number)| {
            let visible = column <= last && window.is_none_or(|window| last - column < window as usize);
            visible == (number == 0.0)
        })
    });
    is_band.then_some(Visibility::Causal { window })
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::{DType, WeightExpr};

    use super::*;

    /// What a mask `[1, 1, rows, columns]` of zeros and -1e9 is taken for.
    fn seen(rows: usize, columns: usize, visible: impl Fn(usize, usize) -> bool) -> Option<Visibility> {
        let mut graph = Graph::new("mask");
        let shape =
            |length: usize| vec![Dim::constant(1), Dim::constant(1), Dim::from(length), Dim::constant(4)];
        let query = graph.add_input("query", DType::F32, shape(rows));
        let key = graph.add_input("key", DType::F32, shape(columns));
        let cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let values = cells.map(|(row, column)| if visible(row, column) { 0.0 } else { -1e9 }).collect();
        let dims = [1, 1, i64::try_from(rows).unwrap(), i64::try_from(columns).unwrap()];
        let mask = graph.add_weight("mask", DType::F32, &dims, WeightExpr::Literal { values });
        visibility(&Rewriter::new(graph), mask, [query, key])
    }

    #[test]
    fn bands_are_recognised_and_nothing_else_is() {
        let causal = |window| Some(Visibility::Causal { window });
        assert_eq!(seen(3, 3, |_, _| true), Some(Visibility::All));
        assert_eq!(seen(3, 3, |row, column| column <= row), causal(None));
        assert_eq!(seen(2, 5, |row, column| column <= row + 3), causal(None), "bottom-right");
        assert_eq!(seen(5, 5, |row, column| column <= row && row - column < 2), causal(Some(2)));
        assert_eq!(seen(1, 4, |_, column| column >= 2), causal(Some(2)), "a decode step in a window");
        assert_eq!(seen(2, 5, |row, column| column <= row), None, "top-left");
        assert_eq!(seen(3, 3, |row, column| column >= row), None);
        assert_eq!(seen(4, 4, |row, column| column <= row && (row, column) != (3, 1)), None, "a hole");
    }
}
