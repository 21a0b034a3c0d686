//! Small graphs under construction.

use roundhouse_backend_conformance::{MemoryWeights, Rng, Tensor};
use roundhouse_graph::{DType, Dim, Graph, Op, ValueId, WeightExpr};

use crate::support::{Inputs, random};

/// A graph under construction with the inputs that it is run with.
pub(crate) struct Form {
    pub(crate) graph: Graph,
    pub(crate) weights: MemoryWeights,
    pub(crate) inputs: Inputs,
    /// Values of `batch`, `seq` and `past`.
    pub(crate) sizes: [usize; 3],
    /// The symbols.
    pub(crate) dims: [Dim; 3],
    rng: Rng,
}

impl Form {
    pub(crate) fn new(sizes: [usize; 3]) -> Self {
        let mut graph = Graph::new("form");
        let batch = Dim::symbol(graph.add_symbol("batch", 1, 4));
        let seq = Dim::symbol(graph.add_symbol("seq", 1, 8));
        let past = Dim::symbol(graph.add_symbol("past", 0, 8));
        let dims = [batch, seq, past];
        let (weights, rng) = (MemoryWeights::new(), Rng::new(3));
        Self { graph, weights, inputs: Inputs::new(), sizes, dims, rng }
    }

    /// `B S 16` as dimensions: `B`, `S` and `P` are the symbols, `E` is `P + S`.
    pub(crate) fn shape(&self, text: &str) -> Vec<Dim> {
        let [batch, seq, past] = &self.dims;
        let dims = text.split_whitespace().map(|dim| match dim {
            "B" => batch.clone(),
            "S" => seq.clone(),
            "P" => past.clone(),
            "E" => past.clone() + seq.clone(),
            number => Dim::constant(number.parse().unwrap()),
        });
        dims.collect()
    }

    pub(crate) fn sizes_of(&self, text: &str) -> Vec<usize> {
        let [batch, seq, past] = self.sizes;
        let sizes = text.split_whitespace().map(|dim| match dim {
            "B" => batch,
            "S" => seq,
            "P" => past,
            "E" => past + seq,
            number => number.parse().unwrap(),
        });
        sizes.collect()
    }

    pub(crate) fn float(&mut self, name: &str, shape: &str) -> ValueId {
        let sizes = self.sizes_of(shape);
        let tensor = random(&mut self.rng, &sizes);
        self.inputs.push((name.to_owned(), tensor));
        self.graph.add_input(name, DType::F32, self.shape(shape))
    }

    pub(crate) fn ints(&mut self, name: &str, shape: &str, bound: usize) -> ValueId {
        let sizes = self.sizes_of(shape);
        let values = (0..sizes.iter().product()).map(|_| self.rng.below(bound) as i64).collect();
        self.inputs.push((name.to_owned(), Tensor::int(&sizes, values)));
        self.graph.add_input(name, DType::I64, self.shape(shape))
    }

    pub(crate) fn index(&mut self, name: &str, equals: Dim, value: usize) {
        self.inputs.push((name.to_owned(), Tensor::int(&[], vec![value as i64])));
        self.graph.add_index_input(name, equals);
    }

    /// Changes the numbers of the input that was added last.
    pub(crate) fn last_input(&mut self, change: impl Fn(usize, f32) -> f32) {
        let (_, tensor) = self.inputs.last_mut().unwrap();
        let values = tensor.floats().iter().enumerate().map(|(at, &value)| change(at, value)).collect();
        *tensor = Tensor::float(&tensor.shape, values);
    }

    /// The input `start_idx`, which binds `past`.
    pub(crate) fn past(&mut self) {
        self.index("start_idx", self.dims[2].clone(), self.sizes[2]);
    }

    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.weights.insert_random(&mut self.rng, name, shape, 0.0, 0.5);
        let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        self.graph.add_weight(name, DType::F32, &dims, WeightExpr::tensor(name))
    }

    pub(crate) fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add_node(op, inputs).unwrap()
    }

    pub(crate) fn output(&mut self, value: ValueId) {
        let name = format!("out_{}", self.graph.outputs().len());
        self.graph.add_output(name, value);
    }
}
