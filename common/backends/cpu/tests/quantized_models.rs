//! Whole models with quantised weights, as the compiler makes them, in every cache.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

mod compare;
mod support;

use compare::{assert_close, expected};
use roundhouse_backend::LogitsRequest::{All, Last};
use roundhouse_backend::{Builder as _, Runtime as _, Sequence};
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_backend_conformance::{Interpreter, Rng};
use roundhouse_backend_cpu::CpuBuilder;
use roundhouse_engine::{CacheKind, EngineOptions, Precision};
use roundhouse_graph::{Graph, Op, Quantization, QuantizedLinearAttributes, WeightFormat};
use support::{build, options, runtime};

const MAX_SEQ_LEN: u32 = 40;

/// Each with whether groups have an offset.
const FORMS: [(WeightFormat, bool); 4] = [
    (WeightFormat::Int8, false),
    (WeightFormat::Int4, false),
    (WeightFormat::Int4, true),
    (WeightFormat::Fp8, false),
];

/// Lowers, and quantises what can be.
fn lowered(model: &TinyModel, quantization: QuantizedLinearAttributes, options: &EngineOptions) -> Graph {
    let (graph, _) = roundhouse_lowering::lower(model.graph().unwrap(), options).unwrap();
    let (graph, _) = roundhouse_lowering::weight_only_quantization(graph, quantization).unwrap();
    assert!(graph.nodes().any(|(_, node)| matches!(node.op, Op::QuantizedLinear(_))), "nothing is quantised");
    graph
}

fn engine_options(precision: Precision, cache: CacheKind) -> EngineOptions {
    EngineOptions { max_seq_len: MAX_SEQ_LEN, all_logits: true, ..options(precision, cache) }
}

#[test]
fn prefill_and_decode_are_those_of_the_interpreter() {
    for model in [TinyModel::llama(), TinyModel::gemma2()] {
        for (format, has_offsets) in FORMS {
            let quantization = Quantization { format, group_size: 16 };
            let quantization = QuantizedLinearAttributes { quantization, has_offsets };
            // Scales are fp16 in an engine of any precision.
            let plain = engine_options(Precision::Fp32, CacheKind::None);
            let weights = model.weights().unwrap();
            let interpreter = Interpreter::new(&lowered(&model, quantization, &plain), &weights).unwrap();
            for &cache in CacheKind::ALL {
                let case = format!("{} {} {cache}", model.name, format.name());
                let options = engine_options(Precision::Fp32, cache);
                let built = build(lowered(&model, quantization, &options), &weights, &options);
                let loaded = runtime().load(&built.files).unwrap();
                let tokens = Rng::new(4).tokens(MAX_SEQ_LEN as usize, loaded.vocab_size());
                let mut cache = loaded.new_cache(tokens.len()).unwrap();
                let mut logits = Vec::new();
                let (prompt, rest) = tokens.split_at(33);
                let mut found = Vec::new();
                for (tokens, request) in [(prompt, All)].into_iter().chain(rest.chunks(1).map(|t| (t, Last)))
                {
                    let sequence = Sequence { cache: &mut *cache, tokens, request, logits: &mut logits };
                    loaded.forward(&mut [sequence]).unwrap();
                    found.extend_from_slice(&logits);
                }
                assert_close(&case, &found, &expected(&interpreter, &tokens, 0));
            }
        }
    }
}

#[test]
fn every_format_is_multiplied_with() {
    for format in [WeightFormat::Int8, WeightFormat::Int4, WeightFormat::Fp8] {
        for has_offsets in [false, true] {
            let quantization = Quantization { format, group_size: 128 };
            let attributes = QuantizedLinearAttributes { quantization, has_offsets };
            let options = engine_options(Precision::Bf16, CacheKind::InPlace);
            assert!(CpuBuilder::new().multiplies_quantized(attributes, &options), "{}", format.name());
        }
    }
}

#[test]
fn packed_bytes_are_what_the_memory_plan_counts() {
    let model = TinyModel::llama();
    for (format, group_size, has_offsets) in [(WeightFormat::Int8, 8, false), (WeightFormat::Int4, 16, true)]
    {
        let quantization = Quantization { format, group_size };
        let quantization = QuantizedLinearAttributes { quantization, has_offsets };
        let options = engine_options(Precision::Fp16, CacheKind::InPlace);
        let graph = lowered(&model, quantization, &options);
        let (plain, _) = roundhouse_lowering::lower(model.graph().unwrap(), &options).unwrap();
        let bytes = |graph: &Graph| -> u64 {
            let of = |(_, value, _): (_, &roundhouse_graph::Value, _)| {
                let dims = value.shape.iter().map(|dim| dim.as_constant().unwrap().unsigned_abs());
                dims.product::<u64>() * value.dtype.size() as u64
            };
            graph.weights().map(of).sum()
        };
        let plan = CpuBuilder::new().memory_plan(&graph, &options);
        // Beside the tensors the file has a header.
        let header = plan.weight_bytes - bytes(&graph);
        assert!(header < 8192, "{header}");
        let plain_plan = CpuBuilder::new().memory_plan(&plain, &options);
        let saved = bytes(&plain) - bytes(&graph);
        assert!(saved > 0 && plan.weight_bytes < plain_plan.weight_bytes, "{saved}");

        let built = build(graph, &model.weights().unwrap(), &options);
        assert_eq!(runtime().load(&built.files).unwrap().memory_plan().weight_bytes, plan.weight_bytes);
    }
}
