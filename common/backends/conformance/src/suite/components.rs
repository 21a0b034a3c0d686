//! Components beside a language model.

use std::collections::BTreeMap;

use roundhouse_backend::{BackendError, ComponentModel, Model, NamedTensor, TensorElements, WeightSource};
use roundhouse_engine::{CacheKind, Component, EngineOptions, Precision};
use roundhouse_graph::Graph;
use tempfile::TempDir;

use super::compare::equal;
use super::engine::{Built, Source, Unwatched, build, case_name, options};
use super::failure::InCase as _;
use super::{Backend, Failure, Lower};
use crate::tiny_models::TinyModel;
use crate::tiny_towers::{GRID_PATCHES, TinyTowers};
use crate::{Data, Interpreter, Rng, RoundedWeights, Tensor};

/// Inputs by name.
type Inputs = BTreeMap<&'static str, Tensor>;

/// An engine with components. The model goes before the folders that it may have mapped.
struct Towers {
    model: Box<dyn Model>,
    case: String,
    graphs: TinyTowers,
    precision: Precision,
    _folders: (Built, TempDir),
}

/// Components of every size that their graphs take give what the reference does, in every precision, and refuse what
/// does not fit without harm to the next call. `lower` is the compiler's lowering of components.
///
/// # Errors
/// When one gives something else, or takes what it has to refuse.
pub fn components(backend: &Backend<'_>, lower: &Lower) -> Result<(), Failure> {
    for &precision in &backend.precisions {
        let options = options(backend, precision, CacheKind::InPlace, false);
        let towers = Towers::new(backend, lower, &options)?;
        let mut rng = Rng::new(11);
        for tokens in [1, 8, 3] {
            towers.compare(Component::Vision, &grid_inputs(tokens, &mut rng))?;
        }
        for tiles in [3, 1, 2] {
            towers.compare(Component::Projector, &tile_inputs(tiles, &mut rng))?;
        }
        for (what, inputs) in misfits(&mut rng) {
            towers.refuses(what, &inputs)?;
            towers.compare(Component::Vision, &grid_inputs(2, &mut rng))?;
        }
    }
    Ok(())
}

impl Towers {
    fn new(backend: &Backend<'_>, lower: &Lower, options: &EngineOptions) -> Result<Self, Failure> {
        let case = case_name("components", options);
        let built = build(backend, &case, &Source::tiny(&TinyModel::llama())?, options, &Unwatched)?;
        let graphs = TinyTowers::new()?;
        let folder = TempDir::new()?;
        let weights: &dyn WeightSource = &graphs.weights;
        let mut files = built.files.clone();
        for (component, graph) in [(Component::Vision, &graphs.grid), (Component::Projector, &graphs.tiles)] {
            let (graph, _) = lower(graph.clone(), options);
            let (graph, _) = backend.builder.lower_component(graph, options).in_case(&case)?;
            let made = backend.builder.build_component(
                component,
                &graph,
                options,
                weights,
                folder.path(),
                &Unwatched,
            );
            files.paths.extend(made.in_case(&case)?.into_iter().map(|file| (file.name, file.path)));
        }
        let model = backend.runtime.load(&files).in_case(&case)?;
        Ok(Self { model, case, graphs, precision: options.precision, _folders: (built, folder) })
    }

    fn component(&self, component: Component) -> Result<&dyn ComponentModel, Failure> {
        let found = self.model.component(component);
        found.ok_or_else(|| Failure::departure(&self.case, format!("the model has no component {component}")))
    }

    fn graph(&self, component: Component) -> &Graph {
        match component {
            Component::Vision => &self.graphs.grid,
            Component::Projector => &self.graphs.tiles,
        }
    }

    fn compare(&self, component: Component, inputs: &Inputs) -> Result<(), Failure> {
        let weights = RoundedWeights::new(&self.graphs.weights, self.precision.dtype());
        let reference = |error| Failure::reference(&self.case, error);
        let interpreter = Interpreter::new(self.graph(component), &weights).map_err(reference)?;
        let given = inputs.iter().map(|(&name, tensor)| (name, tensor.clone()));
        let outputs = interpreter.run(given).map_err(reference)?;
        let expected = &outputs["output"];
        let found = run(self.component(component)?, inputs).in_case(&self.case)?;
        if found.shape != expected.shape {
            let what = format!("{component} gives {:?}, expected {:?}", found.shape, expected.shape);
            return Err(Failure::departure(&self.case, what));
        }
        equal(&format!("{} {component}", self.case), self.precision, &found.values, expected.floats())
    }

    fn refuses(&self, what: &str, inputs: &Inputs) -> Result<(), Failure> {
        match run(self.component(Component::Vision)?, inputs) {
            Err(BackendError::InvalidArgument(_)) => Ok(()),
            other => {
                let found = other.map(|output| output.shape);
                Err(Failure::departure(
                    &self.case,
                    format!("{what}: expected InvalidArgument, found {found:?}"),
                ))
            }
        }
    }
}

fn run(
    model: &dyn ComponentModel,
    inputs: &Inputs,
) -> Result<roundhouse_backend::OutputTensor, BackendError> {
    let named = inputs.iter().map(|(name, tensor)| NamedTensor {
        name,
        shape: &tensor.shape,
        elements: match &tensor.data {
            Data::Float(values) => TensorElements::Floats(values),
            Data::Int(values) => TensorElements::Integers(values),
        },
    });
    model.run(&named.collect::<Vec<_>>())
}

/// Inputs of [`TinyTowers::grid`]: segments of two and of five patches in turn, the last one cut.
fn grid_inputs(tokens: usize, rng: &mut Rng) -> Inputs {
    let patches = GRID_PATCHES * tokens;
    let columns = TinyTowers::GRID_COLUMNS;
    let segment = |patch: usize| (patch / 7 * 2 + usize::from(patch % 7 >= 2)) as i64;
    BTreeMap::from([
        ("pixel_values", Tensor::float(&[patches, columns], rng.uniform_vec(patches * columns, 0.0, 1.0))),
        (
            "position_ids",
            Tensor::int(&[1, 2, patches], (0..2 * patches as i64).map(|at| at * 7 % 5).collect()),
        ),
        ("order", Tensor::int(&[tokens], (0..tokens as i64).rev().collect())),
        ("segment_ids", Tensor::int(&[1, patches], (0..patches).map(segment).collect())),
    ])
}

fn tile_inputs(tiles: usize, rng: &mut Rng) -> Inputs {
    let [channels, side] = TinyTowers::TILE;
    let count = tiles * channels * side * side;
    let pixels = Tensor::float(&[tiles, channels, side, side], rng.uniform_vec(count, 0.0, 1.0));
    BTreeMap::from([("pixel_values", pixels)])
}

/// Inputs of [`TinyTowers::grid`] that it does not take, and why.
fn misfits(rng: &mut Rng) -> Vec<(&'static str, Inputs)> {
    let mut changed = |what: &'static str, change: fn(&mut Inputs)| {
        let mut inputs = grid_inputs(2, rng);
        change(&mut inputs);
        (what, inputs)
    };
    vec![
        changed("a missing input", |inputs| drop(inputs.remove("order"))),
        changed("an unknown input", |inputs| drop(inputs.insert("more", Tensor::int(&[1], vec![0])))),
        changed("integers for floats", |inputs| {
            let shape = inputs["pixel_values"].shape.clone();
            let count = shape.iter().product();
            inputs.insert("pixel_values", Tensor::int(&shape, vec![0; count]));
        }),
        changed("more tokens than patches", |inputs| {
            inputs.insert("order", Tensor::int(&[3], vec![0, 1, 2]));
        }),
        changed("an index beyond the tokens", |inputs| {
            inputs.insert("order", Tensor::int(&[2], vec![0, 2]));
        }),
        changed("a negative index", |inputs| {
            inputs.insert("order", Tensor::int(&[2], vec![-1, 0]));
        }),
        changed("segments that decrease", |inputs| {
            inputs.insert("segment_ids", Tensor::int(&[1, 8], vec![0, 0, 1, 1, 0, 0, 1, 1]));
        }),
        changed("no tokens", |inputs| *inputs = grid_inputs(0, &mut Rng::new(0))),
        changed("more than the graph's range", |inputs| *inputs = grid_inputs(9, &mut Rng::new(0))),
    ]
}
