//! A network's inputs and outputs are the graph's.

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_tensorrt_network::{DataType, Network};

use crate::support::{convert, lowered_llama, options};

fn describe(network: &Network) -> (Vec<String>, Vec<String>) {
    let show = |id| {
        let tensor = network.tensor(id);
        format!("{} {} {:?}", tensor.name, tensor.dtype, tensor.dims)
    };
    let inputs = network.inputs().iter().map(|&id| show(id)).collect();
    let outputs = network.outputs().iter().map(|output| match &output.aliases {
        Some(aliases) => format!("{} at {aliases}", show(output.tensor)),
        None => show(output.tensor),
    });
    (inputs, outputs.collect())
}

const TOKENS: [&str; 2] = ["input_ids kINT64 [-1, -1]", "position_ids kINT64 [-1, -1]"];
const CACHES: [&str; 4] = [
    "key_cache_0 kHALF [-1, 2, 40, 16]",
    "value_cache_0 kHALF [-1, 2, 40, 16]",
    "key_cache_1 kHALF [-1, 2, 40, 16]",
    "value_cache_1 kHALF [-1, 2, 40, 16]",
];
const LOGITS: &str = "logits kFLOAT [-1, 1, 97]";

#[test]
fn without_a_cache() {
    let options = options(Precision::Fp16, CacheKind::None);
    let (inputs, outputs) = describe(&convert(&lowered_llama(&options), &options).network);
    assert_eq!(inputs, TOKENS);
    assert_eq!(outputs, [LOGITS]);
}

#[test]
fn static_caches_come_in_and_go_out() {
    for cache in [CacheKind::StaticV1, CacheKind::StaticV2] {
        let options = options(Precision::Fp16, cache);
        let (inputs, outputs) = describe(&convert(&lowered_llama(&options), &options).network);
        assert_eq!(inputs, [&TOKENS[..], &CACHES, &["start_idx kINT64 []", "end_idx kINT64 []"]].concat());
        let expected: Vec<String> = std::iter::once(LOGITS.to_owned())
            .chain(CACHES.iter().map(|cache| cache.replace(" kHALF", "_out kHALF")))
            .collect();
        assert_eq!(outputs, expected);
    }
}

#[test]
fn in_place_caches_are_outputs_at_their_inputs() {
    let options = options(Precision::Fp16, CacheKind::InPlace);
    let (inputs, outputs) = describe(&convert(&lowered_llama(&options), &options).network);
    let lengths = ["write_indices kINT64 [-1]", "kv_lengths kINT64 [-1]", "query_lengths kINT64 [-1]"];
    assert_eq!(inputs, [&TOKENS[..], &CACHES, &lengths].concat());
    let cache = |cache: &&str| {
        let name = cache.split_whitespace().next().unwrap();
        format!("{} at {name}", cache.replace(" kHALF", "_out kHALF"))
    };
    let expected: Vec<String> = std::iter::once(LOGITS.to_owned()).chain(CACHES.iter().map(cache)).collect();
    assert_eq!(outputs, expected);
}

#[test]
fn floats_have_the_dtype_of_the_precision() {
    for (precision, dtype) in [
        (Precision::Fp32, DataType::Float),
        (Precision::Fp16, DataType::Half),
        (Precision::Bf16, DataType::Bf16),
    ] {
        let options = options(precision, CacheKind::InPlace);
        let network = convert(&lowered_llama(&options), &options).network;
        assert_eq!(network.input("key_cache_0").unwrap().dtype, dtype);
        let logits = network.tensor(network.outputs()[0].tensor);
        assert_eq!((logits.name.as_str(), logits.dtype), ("logits", DataType::Float));
    }
}

#[test]
fn layers_are_named_after_what_they_compute() {
    for &cache in CacheKind::ALL {
        let options = options(Precision::Fp16, cache);
        let graph = lowered_llama(&options);
        let network = convert(&graph, &options).network;
        let mut values: Vec<&str> = graph.values().map(|(_, value)| value.name.as_str()).collect();
        values.push("shapes");
        for layer in network.layers() {
            let of = |value: &&&str| {
                layer.name.strip_prefix(**value).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            assert!(values.iter().any(|value| of(&value)), "{} {cache}", layer.name);
        }
    }
}

#[test]
fn each_weight_is_one_constant_under_its_own_name() {
    for &cache in CacheKind::ALL {
        let options = options(Precision::Fp16, cache);
        let graph = lowered_llama(&options);
        let network = convert(&graph, &options).network;
        let mut expected: Vec<&str> = graph.weights().map(|(_, value, _)| value.name.as_str()).collect();
        let mut found: Vec<&str> = network.weights().collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        for layer in network.layers() {
            if let roundhouse_tensorrt_network::LayerKind::Constant(constant) = &layer.kind
                && let Some(weight) = constant.weight()
            {
                assert_eq!(layer.name, weight);
            }
        }
    }
}

#[test]
fn every_layer_is_needed() {
    for &precision in Precision::ALL {
        for &cache in CacheKind::ALL {
            let options = options(precision, cache);
            let network = convert(&lowered_llama(&options), &options).network;
            let mut needed: Vec<_> = network.outputs().iter().map(|output| output.tensor).collect();
            for layer in network.layers().iter().rev() {
                assert!(needed.contains(&layer.output), "{precision} {cache}: nothing reads {}", layer.name);
                needed.extend(&layer.inputs);
            }
        }
    }
}
