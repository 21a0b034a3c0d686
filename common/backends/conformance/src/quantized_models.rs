//! Decoders whose products multiply with quantised weights of random bytes.

use roundhouse_graph::{
    DType, Graph, GraphError, Op, Origin, Quantization, QuantizedLinearAttributes, Rewriter, WeightExpr,
    WeightFormat,
};

use crate::{MemoryWeights, Rng};

/// A graph in which each product's weight is of the form that `form` has for its name, or as it was where it has none. Adds
/// bytes, scales and offsets to `weights`; scales are such that products keep the variance of their input.
///
/// # Errors
/// When the sizes do not fit each other: groups have to divide the columns.
pub fn quantize(
    graph: Graph,
    weights: &mut MemoryWeights,
    form: &dyn Fn(&str) -> Option<QuantizedLinearAttributes>,
) -> Result<Graph, GraphError> {
    let mut rewriter = Rewriter::new(graph);
    let mut rng = Rng::new(0xB17);
    for id in rewriter.nodes_where(|node| node.op == Op::Linear) {
        let node = rewriter.node(id).clone();
        let value = rewriter.value(node.inputs[1]);
        let sizes: Vec<i64> = value.shape.iter().filter_map(|dim| dim.as_constant()).collect();
        let name = value.name.clone();
        let [rows, columns] = sizes[..] else { continue };
        let Some(attributes) = form(&name).filter(|_| matches!(value.origin, Origin::Weight { .. })) else {
            continue;
        };
        let Quantization { format, group_size } = attributes.quantization;
        let groups = columns / i64::from(group_size.max(1));
        let width = columns * i64::from(format.bits()) / 8;
        let mut inputs = vec![node.inputs[0]];
        let mut add = |part: &str, dtype, columns: i64, numbers: Vec<f32>| {
            let name = format!("{name}.{part}");
            weights.insert(&name, &[rows as usize, columns as usize], numbers);
            inputs.push(rewriter.add_weight(&name, dtype, &[rows, columns], WeightExpr::tensor(&name)));
        };
        let bytes = (0..rows * width).map(|_| random_byte(&mut rng, format)).collect();
        add("values", DType::U8, width, bytes);
        let size = (3.0 / columns as f32).sqrt();
        let count = (rows * groups) as usize;
        add("scales", DType::F32, groups, rng.uniform_vec(count, 0.0, size / largest(format)));
        if attributes.has_offsets {
            add("offsets", DType::F32, groups, rng.uniform_vec(count, 0.0, size));
        }
        inputs.extend(&node.inputs[2..]);
        rewriter.set_node(id, Op::QuantizedLinear(attributes), &inputs)?;
    }
    rewriter.remove_dead();
    rewriter.finish()
}

/// A number by which scales of a format are divided, about as large as its largest.
pub(crate) const fn largest(format: WeightFormat) -> f32 {
    match format {
        WeightFormat::Int8 => 127.0,
        WeightFormat::Int4 => 8.0,
        WeightFormat::Fp8 => 200.0,
    }
}

/// A byte as a number, with every code of the format but those that are not numbers.
pub(crate) fn random_byte(rng: &mut Rng, format: WeightFormat) -> f32 {
    loop {
        let byte = rng.below(256);
        if format != WeightFormat::Fp8 || byte & 0x7f != 0x7f {
            return byte as f32;
        }
    }
}
