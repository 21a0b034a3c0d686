//! Products with quantised weights: those that a checkpoint has, and those that the compiler makes.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use roundhouse_backend::{QuantizedTensor, WeightError, WeightSource, evaluate_rows, expr_shape};
use roundhouse_backend_conformance::{Interpreter, MemoryWeights, Rng, Tensor};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{
    DType, Dim, Graph, Op, Origin, Quantization, QuantizedLinearAttributes, ValueId, WeightExpr, WeightFormat,
};
use roundhouse_hub::{Checkpoint, Checkpoints, HubConfig, Unwatched};
use roundhouse_lowering::{LoweringError, lower, packed_weights, weight_only_quantization};
use support::{Model, difference, ints, model, ops, options, tiny_llama, tokens};

const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// A checkpoint that a quantisation tool wrote.
fn golden(name: &str) -> Checkpoint {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../hub/tests/golden/quantised").join(name);
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let config = HubConfig { cache: folder.path().join("cache"), ..HubConfig::from_env() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let checkpoints = Checkpoints::new(config);
    runtime.block_on(checkpoints.open(folder.path().to_str().unwrap(), None, &Unwatched)).unwrap()
}

/// A product of `x` with each weight; the outputs are `y0`, `y1`, ….
fn products(columns: i64, weights: Vec<(i64, WeightExpr)>) -> Graph {
    let mut graph = Graph::new("products");
    let x = graph.add_input("x", DType::F32, [3, columns].map(Dim::constant).to_vec());
    for (index, (rows, expr)) in weights.into_iter().enumerate() {
        let weight = graph.add_weight(&format!("w{index}"), DType::F32, &[rows, columns], expr);
        let values = (0..rows).map(|row| row as f32).collect();
        let bias =
            graph.add_weight(&format!("b{index}"), DType::F32, &[rows], WeightExpr::Literal { values });
        let y = graph.add_node(Op::Linear, &[x, weight, bias]).unwrap();
        graph.add_output(format!("y{index}"), y);
    }
    graph
}

fn run(graph: &Graph, weights: &dyn WeightSource, inputs: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    let inputs = inputs.iter().map(|(name, tensor)| (*name, tensor.clone()));
    Interpreter::new(graph, weights).unwrap().run(inputs).unwrap()
}

fn x(columns: usize) -> [(&'static str, Tensor); 1] {
    [("x", Tensor::float(&[3, columns], Rng::new(4).uniform_vec(3 * columns, 0.0, 1.0)))]
}

fn rows(of: WeightExpr, rows: Range<u64>) -> WeightExpr {
    WeightExpr::Rows { of: Box::new(of), start: rows.start, end: rows.end }
}

#[test]
fn weights_of_a_checkpoint_stay_packed_and_compute_the_same() {
    use WeightFormat::{Fp8, Int4, Int8};
    for (name, format, has_offsets) in [
        ("gptq_int4", Int4, false),
        ("gptq_int4_asymmetric", Int4, true),
        ("gptq_int8_whole_rows", Int8, true),
        ("awq_int4", Int4, true),
        ("compressed_int4", Int4, false),
        ("compressed_int8_bytes", Int8, true),
        ("compressed_fp8_channel", Fp8, false),
        ("fp8_block", Fp8, false),
    ] {
        let checkpoint = golden(name);
        let [count, columns] = checkpoint.shape(UP).unwrap()[..] else { panic!("no matrix") };
        let up = || WeightExpr::tensor(UP);
        let joined = WeightExpr::Concat { parts: vec![rows(up(), 3..9), up()] };
        let graph = products(
            columns as i64,
            vec![(count as i64, up()), (5, rows(up(), 2..7)), (count as i64 + 6, joined)],
        );
        let (packed, report) = packed_weights(graph.clone(), &checkpoint, &|_| true).unwrap();
        assert_eq!(ops(&packed), ["quantized_linear"; 3], "{name}");
        let offsets = if has_offsets { 3 } else { 0 };
        let counts = [
            ("packed_linears", 3),
            ("with_offsets", offsets),
            ("left_linears", 0),
            ("left_by_backend", 0),
            ("removed_weights", 3),
        ];
        assert_eq!(report.counts, counts.map(|(name, count)| (name.to_owned(), count)).into());
        let bytes = packed.value(packed.find("w0.values").unwrap());
        let width = columns as i64 * i64::from(format.bits()) / 8;
        assert_eq!(
            (bytes.dtype, &bytes.shape[..]),
            (DType::U8, &[count as i64, width].map(Dim::constant)[..])
        );
        // Both multiply with exactly the same weights.
        let [before, after] = [&graph, &packed].map(|graph| run(graph, &checkpoint, &x(columns as usize)));
        assert_eq!(before, after, "{name}");
    }
}

#[test]
fn scattered_groups_stay_decoded() {
    let checkpoint = golden("gptq_int4_act_order");
    let graph = products(64, vec![(32, WeightExpr::tensor(UP))]);
    let (packed, report) = packed_weights(graph.clone(), &checkpoint, &|_| true).unwrap();
    assert_eq!((packed, report.counts["left_linears"]), (graph, 1));
}

/// Tensors that say how they are quantised; only their descriptions count.
struct Described(MemoryWeights, BTreeMap<&'static str, QuantizedTensor>);

impl WeightSource for Described {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.0.shape(name)
    }
    fn names(&self) -> Vec<String> {
        self.0.names()
    }
    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.0.read_rows(name, rows, out)
    }
    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        self.1.get(name).copied()
    }
}

fn described(group_size: u32, has_offsets: bool, scales_dtype: DType) -> QuantizedTensor {
    let quantization = Quantization { format: WeightFormat::Int4, group_size };
    QuantizedTensor { quantization, has_offsets, scales_dtype }
}

#[test]
fn only_rows_of_tensors_that_are_quantised_alike_are_packed() {
    let source = Described(
        MemoryWeights::new(),
        BTreeMap::from([
            ("a", described(4, false, DType::F16)),
            ("b", described(4, true, DType::F32)),
            ("c", described(2, false, DType::F16)),
        ]),
    );
    let concat = |names: &[&str]| WeightExpr::Concat {
        parts: names.iter().map(|&name| WeightExpr::tensor(name)).collect(),
    };
    let transposed = WeightExpr::Transpose { of: Box::new(WeightExpr::tensor("a")) };
    let cases = [
        (WeightExpr::tensor("a"), Some((false, DType::F16))),
        (WeightExpr::tensor("d"), None),
        (rows(concat(&["a", "a"]), 1..3), Some((false, DType::F16))),
        (concat(&["a", "b"]), Some((true, DType::F32))),
        (concat(&["a", "c"]), None),
        (concat(&["a", "d"]), None),
        (transposed, None),
    ];
    for (expr, expected) in cases {
        let (packed, _) = packed_weights(products(8, vec![(8, expr.clone())]), &source, &|_| true).unwrap();
        let node = packed.nodes().next().unwrap().1;
        let found = match node.op {
            Op::QuantizedLinear(QuantizedLinearAttributes { has_offsets, .. }) => {
                Some((has_offsets, packed.value(node.inputs[2]).dtype))
            }
            _ => None,
        };
        assert_eq!(found, expected, "{expr:?}");
    }
}

#[test]
fn what_the_backend_does_not_multiply_with_is_left_and_counted() {
    let source = Described(
        MemoryWeights::new(),
        BTreeMap::from([("a", described(4, false, DType::F16)), ("b", described(4, true, DType::F32))]),
    );
    let weights = ["a", "b", "d"].map(|name| (8, WeightExpr::tensor(name))).to_vec();
    let accepts = |attributes: QuantizedLinearAttributes| !attributes.has_offsets;
    let (packed, report) = packed_weights(products(8, weights), &source, &accepts).unwrap();
    assert_eq!(ops(&packed), ["quantized_linear", "linear", "linear"]);
    let counts = ["packed_linears", "left_by_backend", "left_linears"].map(|name| report.counts[name]);
    assert_eq!(counts, [1; 3]);
}

#[test]
fn an_embedding_keeps_what_it_shares_with_a_product() {
    let source = Described(MemoryWeights::new(), BTreeMap::from([("a", described(4, false, DType::F16))]));
    let mut graph = products(8, vec![(8, WeightExpr::tensor("a"))]);
    let ids = graph.add_input("ids", DType::I64, [1, 2].map(Dim::constant).to_vec());
    // Another weight of the same tensor.
    let table = graph.add_weight("table", DType::F32, &[8, 8], WeightExpr::tensor("a"));
    let embedded = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    graph.add_output("embedded", embedded);
    let quantization = attributes(WeightFormat::Int8, 4, false);
    assert_eq!(packed_weights(graph.clone(), &source, &|_| true).unwrap().1.counts["left_linears"], 1);
    assert_eq!(weight_only_quantization(graph, quantization).unwrap().1.counts["left_shared"], 1);
}

/// A lowered Llama whose output layer has weights of its own.
fn untied(precision: Precision) -> (Graph, Model) {
    let model = model("llama2_multi_head", 2);
    let options = EngineOptions { precision, ..options(CacheKind::None) };
    (lower(model.graph.clone(), &options).unwrap().0, model)
}

fn attributes(format: WeightFormat, group_size: u32, has_offsets: bool) -> QuantizedLinearAttributes {
    QuantizedLinearAttributes { quantization: Quantization { format, group_size }, has_offsets }
}

/// The weight of a product as its bytes, scales and offsets have it.
fn decoded(
    graph: &Graph,
    source: &dyn WeightSource,
    inputs: &[ValueId],
    attributes: QuantizedLinearAttributes,
) -> Vec<f32> {
    let QuantizedLinearAttributes { quantization, has_offsets } = attributes;
    let part = |id: ValueId| {
        let (.., expr) = graph.weights().find(|(weight, ..)| *weight == id).unwrap();
        let shape = expr_shape(source, expr).unwrap();
        let mut out = vec![f32::NAN; shape.iter().product::<u64>() as usize];
        evaluate_rows(source, expr, 0..shape[0], &mut out).unwrap();
        out
    };
    let [values, scales] = [inputs[1], inputs[2]].map(part);
    let offsets = if has_offsets { part(inputs[3]) } else { vec![0.0; scales.len()] };
    let numbers = values.iter().flat_map(|&byte| match quantization.format {
        WeightFormat::Int8 => vec![f32::from(byte as u8 as i8)],
        _ => vec![f32::from(byte as u8 & 15) - 8.0, f32::from(byte as u8 >> 4) - 8.0],
    });
    let group_size = quantization.group_size as usize;
    let number =
        |(index, number): (usize, f32)| number * scales[index / group_size] + offsets[index / group_size];
    numbers.enumerate().map(number).collect()
}

#[test]
fn quantised_products_compute_with_the_weights_that_their_bytes_stand_for() {
    let mut differences = Vec::new();
    for (format, has_offsets, heads) in
        [(WeightFormat::Int8, false, 0), (WeightFormat::Int4, false, 1), (WeightFormat::Int4, true, 1)]
    {
        let quantization = attributes(format, 8, has_offsets);
        let (graph, model) = untied(Precision::Fp32);
        let (quantized, report) = weight_only_quantization(graph.clone(), quantization).unwrap();
        let linears = ops(&graph).iter().filter(|&&op| op == "linear").count() as u64;
        assert_eq!(report.pass, "weight_only_quantization");
        assert_eq!(report.counts["quantized_linears"], linears - heads);
        assert_eq!(report.counts["left_output_layers"], heads);
        assert_eq!(report.counts["removed_weights"], linears - heads);
        assert_eq!((report.counts["left_shared"], report.counts["left_indivisible"]), (0, 0));

        // The float graph with the weights that the bytes stand for.
        let mut rounded = model.weights.clone();
        let pairs = graph.nodes().zip(quantized.nodes());
        for ((_, float), (_, node)) in
            pairs.filter(|(_, (_, node))| matches!(node.op, Op::QuantizedLinear(_)))
        {
            let Origin::Weight { expr: WeightExpr::Tensor { name } } = &graph.value(float.inputs[1]).origin
            else {
                panic!("a recipe")
            };
            let shape: Vec<usize> =
                model.weights.shape(name).unwrap().iter().map(|&dim| dim as usize).collect();
            rounded.insert(
                name.clone(),
                &shape,
                decoded(&quantized, &model.weights, &node.inputs, quantization),
            );
        }
        let inputs =
            [("input_ids", Tensor::int(&[1, 9], tokens(5, 9))), ("position_ids", ints(&[1, 9], 0..9))];
        let found = run(&quantized, &model.weights, &inputs);
        assert_eq!(found, run(&graph, &rounded, &inputs), "{format:?}");
        let exact = run(&graph, &model.weights, &inputs);
        differences.push(difference(found["logits"].floats(), exact["logits"].floats()));
    }
    // Steps of int4 are sixteen times those of int8, with offsets a little less.
    for int4 in &differences[1..] {
        assert!(0.0 < differences[0] && 4.0 * differences[0] < *int4, "{differences:?}");
    }
}

#[test]
fn a_tied_output_layer_and_groups_that_do_not_divide_are_left() {
    let graph = lower(tiny_llama().graph, &options(CacheKind::InPlace)).unwrap().0;
    let quantize = |group_size| {
        weight_only_quantization(graph.clone(), attributes(WeightFormat::Int8, group_size, false))
    };
    let (_, report) = quantize(8).unwrap();
    assert_eq!((report.counts["left_shared"], report.counts["left_indivisible"]), (1, 0));
    let (left, report) = quantize(7).unwrap();
    assert_eq!((left == graph, report.counts["quantized_linears"]), (true, 0));
    assert!(report.counts["left_indivisible"] > 0);
    for (format, group_size) in [(WeightFormat::Int8, 0), (WeightFormat::Int4, 3)] {
        let attributes = attributes(format, group_size, false);
        let error = weight_only_quantization(graph.clone(), attributes).unwrap_err();
        assert!(matches!(error, LoweringError::Options { option: "group_size", .. }), "{error}");
    }
}

#[test]
fn other_values_keep_the_precision() {
    let (graph, _) = untied(Precision::Bf16);
    let quantization = attributes(WeightFormat::Int4, 8, true);
    let (quantized, _) = weight_only_quantization(graph.clone(), quantization).unwrap();
    for (_, value, _) in quantized.weights() {
        let expected = match value.name.rsplit('.').next() {
            Some("values") => DType::U8,
            Some("scales" | "offsets") => DType::F16,
            _ => DType::Bf16,
        };
        assert_eq!(value.dtype, expected, "{}", value.name);
    }
    let outputs =
        |graph: &Graph| graph.nodes().map(|(_, node)| graph.value(node.output).dtype).collect::<Vec<_>>();
    assert_eq!(outputs(&quantized), outputs(&graph));
}
