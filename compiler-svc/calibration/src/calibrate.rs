//! Quantises a model half a layer at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use roundhouse_backend::{WeightSource, evaluate_rows, expr_shape};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{
    Dim, Graph, Node, Op, Origin, QuantizedLinearAttributes, QuantizedPart, ValueId, WeightExpr, WeightFormat,
};

use crate::engine::{Engines, options};
use crate::moments::Moments;
use crate::overlay::{Overlay, Table};
use crate::rounded::{CalibratedWeights, Rounded, recipe};
use crate::stage::{HIDDEN_STATES, Stage, stages};
use crate::{CalibrationError, Progress, Text, Triangle, text};

/// What is added to the second moments' diagonal, in means of it.
const DAMPING: f64 = 0.01;
/// Matrices of more columns are rounded by themselves: the work for the inputs' second moments grows with the cube.
const MOST_COLUMNS: usize = 1 << 14;

/// A model to calibrate.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The model's own, before any pass.
    pub graph: &'a Graph,
    /// Its weights.
    pub source: &'a dyn WeightSource,
    /// The matrices of its products, as [`targets`] finds them.
    pub targets: &'a [(WeightExpr, QuantizedLinearAttributes)],
}

/// The matrices that were rounded together.
#[derive(Debug, Default)]
pub struct Calibrated {
    /// By recipe.
    matrices: BTreeMap<String, Rounded>,
}

impl Calibrated {
    /// The checkpoint with these matrices.
    #[must_use]
    pub const fn weights<'a>(&'a self, source: &'a dyn WeightSource) -> CalibratedWeights<'a> {
        CalibratedWeights::new(source, &self.matrices)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.matrices.len()
    }
}

/// The matrices that a lowered graph has quantised by the compiler, and how.
#[must_use]
pub fn targets(graph: &Graph) -> Vec<(WeightExpr, QuantizedLinearAttributes)> {
    let quantized = graph.weights().filter_map(|(.., expr)| match expr {
        WeightExpr::Quantized { of, attributes, part: QuantizedPart::Values } => {
            Some(((**of).clone(), *attributes))
        }
        _ => None,
    });
    quantized.collect()
}

/// Quantises a model's matrices on `text` that it writes itself. Its engines are in `directory`; peak memory is theirs, the
/// second moments of half a layer's inputs, and the matrices' bytes.
///
/// # Errors
/// When the model does not run on the CPU, what it computes is not finite, or it was cancelled.
pub fn calibrate(
    subject: Subject<'_>,
    text: Text,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<Calibrated, CalibrationError> {
    let engines = Engines::new(directory, progress);
    let sequences = text::sample(&engines, subject.graph, subject.source, text)?;
    let options =
        EngineOptions { all_logits: true, ..options(Precision::Fp32, CacheKind::None, text.tokens) };
    let (graph, _) = roundhouse_lowering::lower(subject.graph.clone(), &options)?;
    let mut targets = HashMap::new();
    for (matrix, attributes) in subject.targets {
        targets.insert(recipe(matrix)?, *attributes);
    }
    let mut products = HashMap::new();
    for (id, node) in graph.nodes() {
        let Some((weight, expr)) = product(&graph, node) else { continue };
        let recipe = recipe(expr)?;
        if let Some(&attributes) = targets.get(&recipe) {
            products.insert(id, Product { weight, input: node.inputs[0], recipe, attributes });
        }
    }
    let stages = stages(&graph, |id| products.contains_key(&id));
    let mut work = Work {
        engines: &engines,
        graph: &graph,
        options,
        weights: Overlay { source: subject.source, tables: BTreeMap::new() },
        tokens: sequences,
        rows: 0,
        calibrated: Calibrated::default(),
    };
    for (index, stage) in stages.iter().enumerate() {
        let products: Vec<&Product> = stage.products.iter().filter_map(|id| products.get(id)).collect();
        work.stage(stage, &products)?;
        progress.done(index + 1, stages.len());
    }
    Ok(work.calibrated)
}

/// A product whose matrix is to be rounded.
struct Product {
    weight: ValueId,
    input: ValueId,
    recipe: String,
    attributes: QuantizedLinearAttributes,
}

/// The weight of a product over `[batch, seq, width]`, which has a recipe.
fn product<'a>(graph: &'a Graph, node: &Node) -> Option<(ValueId, &'a WeightExpr)> {
    let &[x, weight] = node.inputs.first_chunk().filter(|_| node.op == Op::Linear)?;
    let is_made = graph.value(x).origin == Origin::Node && graph.value(x).shape.len() == 3;
    match &graph.value(weight).origin {
        Origin::Weight { expr } if is_made => Some((weight, expr)),
        _ => None,
    }
}

/// What goes from stage to stage.
struct Work<'a> {
    engines: &'a Engines<'a>,
    graph: &'a Graph,
    options: EngineOptions,
    /// The checkpoint and the hidden states.
    weights: Overlay<'a>,
    /// Each sequence's tokens, or from the second stage on its rows of hidden states.
    tokens: Vec<Vec<u32>>,
    /// Of the hidden states.
    rows: usize,
    calibrated: Calibrated,
}

impl Work<'_> {
    fn stage(&mut self, stage: &Stage, products: &[&Product]) -> Result<(), CalibrationError> {
        let mut inputs: Vec<ValueId> = Vec::new();
        for product in
            products.iter().filter(|product| product.attributes.quantization.format == WeightFormat::Int4)
        {
            if !inputs.contains(&product.input) && self.width(product.input) <= MOST_COLUMNS {
                inputs.push(product.input);
            }
        }
        let mut moments = self.moments(stage, &inputs)?;
        let mut weights = Vec::new();
        for (place, &input) in inputs.iter().enumerate() {
            self.engines.check()?;
            let triangle = Triangle::new(&moments[place], self.width(input), DAMPING);
            moments[place] = Vec::new();
            for product in products.iter().filter(|product| product.input == input) {
                self.round(product, triangle.as_ref(), &mut weights)?;
            }
        }
        for product in products.iter().filter(|product| !inputs.contains(&product.input)) {
            self.round(product, None, &mut weights)?;
        }
        match stage.exit {
            Some(exit) => self.go_on(stage, exit, &weights),
            None => Ok(()),
        }
    }

    /// The last dimension of a value.
    fn width(&self, value: ValueId) -> usize {
        let width = self.graph.value(value).shape.last().and_then(Dim::as_constant);
        width.and_then(|width| usize::try_from(width).ok()).unwrap_or(usize::MAX)
    }

    /// The second moments of values of a stage whose own weights are the checkpoint's.
    fn moments(&self, stage: &Stage, inputs: &[ValueId]) -> Result<Vec<Vec<f32>>, CalibrationError> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let widths = inputs.iter().map(|&input| self.width(input)).collect();
        let mut moments = Moments::new(self.engines.threads(), widths);
        let graph = stage.graph(self.graph, inputs, self.rows, &[])?;
        let engine = self.engines.load(graph, &self.options, &self.weights)?;
        for tokens in &self.tokens {
            self.engines.check()?;
            moments.add(&engine.run(tokens)?);
        }
        Ok(moments.finish())
    }

    /// Rounds a product's matrix, and keeps what it became for the run that goes on.
    fn round(
        &mut self,
        product: &Product,
        triangle: Option<&Triangle>,
        weights: &mut Vec<(ValueId, WeightExpr)>,
    ) -> Result<(), CalibrationError> {
        let Origin::Weight { expr } = &self.graph.value(product.weight).origin else { return Ok(()) };
        let known = self.weights.tables.contains_key(&product.recipe);
        if !known && let [rows, columns] = expr_shape(self.weights.source, expr)?[..] {
            let size = |dim: u64| usize::try_from(dim).unwrap_or(usize::MAX);
            let mut numbers = vec![0.0; size(rows).saturating_mul(size(columns))];
            evaluate_rows(self.weights.source, expr, 0..rows, &mut numbers)?;
            let of_four_bits = product.attributes.quantization.format == WeightFormat::Int4;
            let triangle = triangle.filter(|_| of_four_bits);
            let threads = self.engines.threads();
            let rounded = Rounded::new(triangle, product.attributes, &mut numbers, size(columns), threads);
            if triangle.is_some() {
                self.calibrated.matrices.insert(product.recipe.clone(), rounded);
            }
            self.weights.tables.insert(product.recipe.clone(), Table { columns: size(columns), numbers });
        }
        weights.push((product.weight, WeightExpr::tensor(product.recipe.clone())));
        Ok(())
    }

    /// Runs a stage with its quantised weights: what it gives are the hidden states of the next.
    fn go_on(
        &mut self,
        stage: &Stage,
        exit: ValueId,
        weights: &[(ValueId, WeightExpr)],
    ) -> Result<(), CalibrationError> {
        let graph = stage.graph(self.graph, &[exit], self.rows, weights)?;
        let engine = self.engines.load(graph, &self.options, &self.weights)?;
        let mut hidden_states = Vec::new();
        for tokens in &self.tokens {
            self.engines.check()?;
            hidden_states.extend(engine.run(tokens)?);
        }
        let hidden_states = Table { columns: self.width(exit), numbers: hidden_states };
        self.rows = hidden_states.rows();
        self.weights.tables.clear();
        self.weights.tables.insert(HIDDEN_STATES.to_owned(), hidden_states);
        let mut next = 0..;
        for tokens in &mut self.tokens {
            *tokens = next.by_ref().take(tokens.len()).collect();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
