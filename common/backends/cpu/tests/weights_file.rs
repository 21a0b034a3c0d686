//! What building writes, and what loading makes of files that are not that.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

mod support;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use roundhouse_backend::{
    BackendError, BuildProgress, Builder as _, Runtime as _, WeightError, WeightSource,
};
use roundhouse_backend_conformance::MemoryWeights;
use roundhouse_backend_cpu::CpuBuilder;
use roundhouse_engine::{CacheKind, Precision, blob_names};
use roundhouse_graph::{DType, Dim, Graph, Op, WeightExpr};
use safetensors::{Dtype, SafeTensors};
use support::{Unwatched, build, options, runtime};

/// Logits of an embedding and a projection, in `dtype`: weights of odd sizes, a literal and a transposed tensor.
fn graph(dtype: DType) -> Graph {
    let mut graph = Graph::new("test");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 8));
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
    let ids = graph.add_input("input_ids", DType::I64, vec![batch.clone(), seq.clone()]);
    graph.add_input("position_ids", DType::I64, vec![batch, seq]);
    let table = graph.add_weight("table", dtype, &[7, 3], WeightExpr::tensor("table"));
    let literal = WeightExpr::Literal { values: vec![0.1, 0.2, 0.3] };
    let norm = graph.add_weight("norm", DType::F32, &[3], literal);
    let head = WeightExpr::Transpose { of: Box::new(WeightExpr::tensor("head")) };
    let head = graph.add_weight("head", dtype, &[7, 3], head);
    let x = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    let x = graph.add_node(Op::Cast { to: DType::F32 }, &[x]).unwrap();
    let x = graph.add_node(Op::RmsNorm { epsilon: 1e-5, unit_offset: false }, &[x, norm]).unwrap();
    let x = graph.add_node(Op::Cast { to: dtype }, &[x]).unwrap();
    let logits = graph.add_node(Op::Linear, &[x, head]).unwrap();
    graph.add_output("logits", logits);
    graph
}

fn weights() -> MemoryWeights {
    let mut weights = MemoryWeights::new();
    // Halfway cases of both half types, and numbers that neither has.
    let values = [1.000_488_3, 1.001_464_8, 1.003_906_3, 1.011_718_8, 0.1, -0.3, 65_519.0];
    weights.insert("table", &[7, 3], (0..21).map(|i| values[i % 7] * (i / 7 + 1) as f32).collect());
    weights.insert("head", &[3, 7], (0..21).map(|i| i as f32 / 3.0).collect());
    weights
}

fn expected(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

#[test]
fn tensors_are_in_the_graphs_dtypes_under_its_names() {
    for (precision, file_dtype) in
        [(Precision::Fp32, Dtype::F32), (Precision::Fp16, Dtype::F16), (Precision::Bf16, Dtype::BF16)]
    {
        let (dtype, source) = (precision.dtype(), weights());
        let built = build(graph(dtype), &source, &options(precision, CacheKind::None));
        let bytes = fs::read(built.files.path(blob_names::WEIGHTS).unwrap()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 3);

        let table = file.tensor("table").unwrap();
        assert_eq!((table.dtype(), table.shape()), (file_dtype, &[7, 3][..]));
        let mut values = vec![0.0; 21];
        source.read_rows("table", 0..7, &mut values).unwrap();
        assert_eq!(table.data(), expected(dtype, &values));

        let head = file.tensor("head").unwrap();
        let transposed: Vec<f32> = (0..21).map(|i| (i % 3 * 7 + i / 3) as f32 / 3.0).collect();
        assert_eq!(head.data(), expected(dtype, &transposed));

        let norm = file.tensor("norm").unwrap();
        assert_eq!((norm.dtype(), norm.shape()), (Dtype::F32, &[3][..]));
        assert_eq!(norm.data(), expected(DType::F32, &[0.1, 0.2, 0.3]));
    }
}

#[test]
fn data_begins_at_a_cache_line_and_elements_are_aligned() {
    let built = build(graph(DType::F16), &weights(), &options(Precision::Fp16, CacheKind::None));
    let bytes = fs::read(built.files.path(blob_names::WEIGHTS).unwrap()).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((8 + header) % 64, 0);
    for (name, info) in metadata.tensors() {
        let size = info.dtype.bitsize() / 8;
        assert_eq!(info.data_offsets.0 % size, 0, "{name}");
    }
}

#[test]
fn the_memory_plan_counts_the_weights_file() {
    let options = options(Precision::Fp16, CacheKind::None);
    let built = build(graph(DType::F16), &weights(), &options);
    let size = fs::metadata(built.files.path(blob_names::WEIGHTS).unwrap()).unwrap().len();
    assert_eq!(CpuBuilder::new().memory_plan(&graph(DType::F16), &options).weight_bytes, size);
    assert_eq!(runtime().load(&built.files).unwrap().memory_plan().weight_bytes, size);
}

/// The error of loading an engine whose weights file is `bytes`.
fn load_error(precision: Precision, bytes: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let built = build(graph(precision.dtype()), &weights(), &options(precision, CacheKind::None));
    let path = built.files.path(blob_names::WEIGHTS).unwrap();
    let changed = bytes(fs::read(path).unwrap());
    fs::write(path, changed).unwrap();
    match runtime().load(&built.files) {
        Err(error @ BackendError::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("the wrong error: {error:?}"),
        Ok(_) => panic!("it was loaded"),
    }
}

/// The file with its header replaced by another of any length.
fn with_header(file: &[u8], change: impl FnOnce(&str) -> String) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = change(std::str::from_utf8(&file[8..8 + length]).unwrap());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &file[8 + length..]].concat()
}

#[test]
fn broken_headers_are_errors() {
    let fp32 = Precision::Fp32;
    load_error(fp32, |_| Vec::new());
    load_error(fp32, |file| file[..7].to_vec());
    load_error(fp32, |file| [&u64::MAX.to_le_bytes()[..], &file[8..]].concat());
    load_error(fp32, |file| with_header(&file, |_| "{".to_owned()));
    load_error(fp32, |file| with_header(&file, |header| header.replacen("data_offsets", "offsets", 1)));
    // An offset that overlaps another tensor.
    load_error(fp32, |file| with_header(&file, |header| header.replacen("[0,", "[4,", 1)));
}

#[test]
fn files_that_are_cut_or_too_long_are_errors() {
    load_error(Precision::Fp32, |file| file[..file.len() - 1].to_vec());
    load_error(Precision::Fp32, |mut file| {
        file.push(0);
        file
    });
}

#[test]
fn tensors_that_are_not_the_graphs_are_errors_that_name_them() {
    let error = load_error(Precision::Fp32, |file| {
        with_header(&file, |header| header.replace("\"head\"", "\"tail\""))
    });
    assert!(error.contains("no tensor \"head\""), "{error}");
    let error = load_error(Precision::Fp16, |file| {
        with_header(&file, |header| header.replace("\"F16\"", "\"BF16\""))
    });
    assert!(error.contains("dtype BF16, expected f16"), "{error}");
    let error =
        load_error(Precision::Fp32, |file| with_header(&file, |header| header.replace("[7,3]", "[3,7]")));
    assert!(error.contains("shape [3, 7], expected [7, 3]"), "{error}");
    // A header of another length, whose data no longer lies at whole elements.
    let error = load_error(Precision::Fp32, |file| with_header(&file, |header| format!("{header} ")));
    assert!(error.contains("inside of an element"), "{error}");
}

#[test]
fn graphs_that_are_no_graphs_are_errors() {
    let built = build(graph(DType::F32), &weights(), &options(Precision::Fp32, CacheKind::None));
    fs::write(built.files.path(blob_names::GRAPH).unwrap(), "{}").unwrap();
    assert!(matches!(runtime().load(&built.files), Err(BackendError::Graph(_))));
}

#[test]
fn a_graph_of_another_cache_kind_is_refused() {
    let mut built = build(graph(DType::F32), &weights(), &options(Precision::Fp32, CacheKind::None));
    built.files.manifest.options.cache = CacheKind::InPlace;
    assert!(matches!(runtime().load(&built.files), Err(BackendError::Unsupported { .. })));
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Cancels after some reports.
struct Cancel(AtomicUsize);

impl BuildProgress for Cancel {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        match self.0.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(BackendError::Cancelled),
            _ => Ok(()),
        }
    }

    fn log(&self, _line: &str) {}
}

#[test]
fn a_build_cancelled_at_any_report_leaves_no_file() {
    let options = options(Precision::Fp32, CacheKind::None);
    // Reports: the header, three weights, the end.
    for reports in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let cancel = Cancel(AtomicUsize::new(reports));
        let result =
            CpuBuilder::new().build(&graph(DType::F32), &options, &weights(), directory.path(), &cancel);
        assert!(matches!(result, Err(BackendError::Cancelled)), "{reports}: {result:?}");
        assert_eq!(entries(directory.path()), [""; 0], "{reports}");
    }
}

#[test]
fn a_tensor_of_another_shape_is_an_error_before_anything_is_written() {
    let mut weights = weights();
    weights.insert("table", &[6, 3], vec![0.0; 18]);
    let directory = tempfile::tempdir().unwrap();
    let options = options(Precision::Fp32, CacheKind::None);
    let result =
        CpuBuilder::new().build(&graph(DType::F32), &options, &weights, directory.path(), &Unwatched);
    match result {
        Err(BackendError::Weight(WeightError::Shape { name, expected, found })) => {
            assert_eq!((name.as_str(), &expected[..], &found[..]), ("table", &[7, 3][..], &[6, 3][..]));
        }
        result => panic!("{result:?}"),
    }
    assert_eq!(entries(directory.path()), [""; 0]);
}

/// A checkpoint with one large tensor that notes how much is asked for at once.
struct Large {
    most: AtomicUsize,
}

const LARGE: [u64; 2] = [3000, 1024];

impl WeightSource for Large {
    fn shape(&self, _: &str) -> Result<Vec<u64>, WeightError> {
        Ok(LARGE.to_vec())
    }

    fn names(&self) -> Vec<String> {
        vec!["table".to_owned()]
    }

    fn read_rows(&self, _: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.most.fetch_max(out.len(), Ordering::Relaxed);
        for (row, out) in rows.zip(out.chunks_exact_mut(LARGE[1] as usize)) {
            out.fill((row % 1000) as f32);
        }
        Ok(())
    }
}

#[test]
fn weights_are_streamed_a_few_megabytes_at_a_time() {
    let mut graph = Graph::new("large");
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 16));
    let ids = graph.add_input("input_ids", DType::I64, vec![Dim::constant(1), seq]);
    let shape = LARGE.map(|dim| dim as i64);
    let table = graph.add_weight("table", DType::F16, &shape, WeightExpr::tensor("table"));
    let x = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    let logits = graph.add_node(Op::Linear, &[x, table]).unwrap();
    graph.add_output("logits", logits);

    let source = Large { most: AtomicUsize::new(0) };
    let built = build(graph, &source, &options(Precision::Fp16, CacheKind::None));
    assert!(source.most.load(Ordering::Relaxed) <= 1 << 20);
    let bytes = fs::read(built.files.path(blob_names::WEIGHTS).unwrap()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values: &[f16] = bytemuck::cast_slice(file.tensor("table").unwrap().data());
    for (row, values) in values.chunks_exact(LARGE[1] as usize).enumerate() {
        assert!(values.iter().all(|value| value.to_f32() == (row % 1000) as f32), "row {row}");
    }
}
