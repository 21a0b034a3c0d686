//! Products with quantised weights.

use roundhouse_backend::LogitsRequest;
use roundhouse_engine::CacheKind;
use roundhouse_graph::{DType, Op, Quantization, QuantizedLinearAttributes, ValueId, WeightFormat};

use super::compare::{Expected, equal};
use super::engine::{Engine, Source, options, step_together};
use super::failure::InCase as _;
use super::op_graphs::{HIDDEN, OpGraph, Result};
use super::{Backend, Failure};
use crate::Rng;
use crate::quantized_models::{largest, random_byte};

/// Columns and group sizes: common ones, one that fits no vector, and one group a row.
const SHAPES: [(usize, usize); 6] = [(96, 32), (128, 64), (256, 128), (40, 8), (72, 72), (256, 256)];

/// Rows of a weight: no multiple of anything.
const ROWS: usize = 45;

/// Lengths of the sequences that run in one step, one step after the other: one token, few and many.
const STEPS: [&[usize]; 3] = [&[1], &[5, 3], &[38, 1]];

/// A graph with quantised weights of one kind.
struct Case {
    name: String,
    attributes: QuantizedLinearAttributes,
    source: Source,
}

/// Products with weights of every format that the builder [multiplies
/// with](roundhouse_backend::Builder::multiplies_quantized), in groups of several sizes, with and without offsets and
/// bias, beside plain weights, gated and added to a residual, in every precision without a cache.
///
/// # Errors
/// When a product is something else.
pub fn quantized_products_equal_the_reference(backend: &Backend<'_>) -> std::result::Result<(), Failure> {
    for &precision in &backend.precisions {
        let options = options(backend, precision, CacheKind::None, true);
        for case in cases(precision.dtype())? {
            if !backend.builder.multiplies_quantized(case.attributes, &options) {
                continue;
            }
            let engine = Engine::new(backend, &case.name, &case.source, &options)?;
            let expected = Expected::new(&engine.case, &case.source.graph, &case.source.weights, precision)?;
            let mut rng = Rng::new(7);
            for lengths in STEPS {
                let vocab_size = engine.model.vocab_size();
                let tokens: Vec<Vec<u32>> =
                    lengths.iter().map(|&length| rng.tokens(length, vocab_size)).collect();
                let mut sessions =
                    lengths.iter().map(|_| engine.session()).collect::<std::result::Result<Vec<_>, _>>()?;
                let mut batch: Vec<_> = sessions
                    .iter_mut()
                    .zip(&tokens)
                    .map(|(session, tokens)| (session, &tokens[..], LogitsRequest::All))
                    .collect();
                let found = step_together(&engine, &mut batch).in_case(&engine.case)?;
                for (found, tokens) in found.iter().zip(&tokens) {
                    equal(&engine.case, precision, found, &expected.logits(&engine.case, tokens)?)?;
                }
            }
        }
    }
    Ok(())
}

fn cases(dtype: DType) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for format in [WeightFormat::Int8, WeightFormat::Int4, WeightFormat::Fp8] {
        for (columns, group_size) in SHAPES {
            for has_offsets in [false, true] {
                let quantization = Quantization { format, group_size: group_size as u32 };
                let attributes = QuantizedLinearAttributes { quantization, has_offsets };
                let offsets = if has_offsets { " offsets" } else { "" };
                let mut case = |form: &str, make: &dyn Fn(&mut OpGraph) -> Result<ValueId>| {
                    let name = format!("{form} {} {columns} by {group_size}{offsets}", format.name());
                    let source = OpGraph::source(&name, dtype, make)?;
                    cases.push(Case { name, attributes, source });
                    Ok(())
                };
                case("quantized_linear", &|g| {
                    let x = g.wide(columns)?;
                    g.quantized(x, attributes, ROWS, false)
                })?;
                case("quantized_linears_of_one_input", &|g| {
                    let x = g.wide(columns)?;
                    let weight = g.matrix(ROWS, columns);
                    let parts = [
                        g.quantized(x, attributes, ROWS, false)?,
                        g.node(Op::Linear, &[x, weight])?,
                        g.quantized(x, attributes, 7, true)?,
                    ];
                    g.node(Op::Cat { axis: 2 }, &parts)
                })?;
                case("quantized_gate_and_up", &|g| {
                    let x = g.wide(columns)?;
                    let gate = g.quantized(x, attributes, ROWS, false)?;
                    let up = g.quantized(x, attributes, ROWS, false)?;
                    g.node(Op::SiluMul, &[gate, up])
                })?;
                case("quantized_linear_and_residual", &|g| {
                    let x = g.wide(columns)?;
                    let y = g.quantized(x, attributes, columns, true)?;
                    g.node(Op::Add, &[x, y])
                })?;
            }
        }
    }
    Ok(cases)
}

impl OpGraph {
    /// The tokens projected to so many columns.
    fn wide(&mut self, columns: usize) -> Result<ValueId> {
        let weight = self.matrix(columns, HIDDEN);
        self.node(Op::Linear, &[self.x, weight])
    }

    /// A product with a quantised weight of so many rows, about as large as those of [`OpGraph::matrix`].
    fn quantized(
        &mut self,
        x: ValueId,
        attributes: QuantizedLinearAttributes,
        rows: usize,
        with_bias: bool,
    ) -> Result<ValueId> {
        let columns = self.graph.value(x).shape[2].as_constant().unwrap_or(0) as usize;
        let Quantization { format, group_size } = attributes.quantization;
        let groups = columns / group_size as usize;
        let bytes = rows * columns * format.bits() as usize / 8;
        let bytes = (0..bytes).map(|_| random_byte(&mut self.rng, format)).collect();
        let values = self.weight_of(DType::U8, &[rows, columns * format.bits() as usize / 8], bytes);
        let size = (3.0 / columns as f32).sqrt();
        let scales = self.rng.uniform_vec(rows * groups, 0.0, size / largest(format));
        let mut inputs = vec![x, values, self.weight_of(self.dtype, &[rows, groups], scales)];
        if attributes.has_offsets {
            let offsets = self.rng.uniform_vec(rows * groups, 0.0, size);
            inputs.push(self.weight_of(self.dtype, &[rows, groups], offsets));
        }
        if with_bias {
            inputs.push(self.vector(rows, 0.0));
        }
        self.node(Op::QuantizedLinear(attributes), &inputs)
    }
}
