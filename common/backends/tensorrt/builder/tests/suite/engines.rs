//! Engines of tiny models: real plans, in every cache kind and precision, with weights in the plan and beside it.

use std::collections::BTreeSet;

use crate::support::{
    Built, NO_TARGETS, Watched, build, build_model, builder, latin1, lowered, options, placed,
};
use half::{bf16, f16};
use roundhouse_backend::{Builder as _, WeightSource as _};
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{
    AttentionForm, CacheKind, EngineOptions, Precision, Profiles, TensorRtOptions, WeightPlacement,
    blob_names,
};
use roundhouse_graph::{Graph, Op, Origin};
use roundhouse_tensorrt_builder::inspect::PlanHeader;
use roundhouse_tensorrt_library::Library;
use roundhouse_tensorrt_network::{DYNAMIC, DataType, InputRange, Profile};
use roundhouse_weights::{PartialFile, WeightsLayout, write_weights};

/// What a graph says of the inputs and outputs of its engine, independently of the converters.
struct Signature {
    /// Name, dtype and dimensions.
    inputs: Vec<(String, DataType, Vec<i64>)>,
    outputs: Vec<(String, DataType, Vec<i64>)>,
    /// Outputs that are inputs changed in place, in the order of the layers: output, input.
    aliases: Vec<(String, String)>,
}

fn signature(graph: &Graph) -> Signature {
    let describe = |id| {
        let value = graph.value(id);
        let dims = value.shape.iter().map(|dim| dim.as_constant().unwrap_or(DYNAMIC));
        (value.name.clone(), DataType::from(value.dtype), dims.collect::<Vec<_>>())
    };
    let inputs: Vec<_> = graph.inputs().iter().map(|&id| describe(id)).collect();
    let mut outputs: Vec<_> = graph.outputs().iter().map(|&id| describe(id)).collect();
    let updated: BTreeSet<_> = graph
        .nodes()
        .filter(|(_, node)| node.op == Op::KvCacheUpdate)
        .map(|(_, node)| node.inputs[0])
        .collect();
    let mut aliases = Vec::new();
    for &id in graph.inputs().iter().filter(|id| updated.contains(id)) {
        let (name, dtype, dims) = describe(id);
        outputs.push((format!("{name}_out"), dtype, dims));
        aliases.push((format!("{name}_out"), name));
    }
    Signature { inputs, outputs, aliases }
}

/// The ranges that each input must have: every size from 1 to the options' limits.
fn check_profile(graph: &Graph, options: &EngineOptions, profile: &Profile) {
    for &id in graph.inputs() {
        let value = graph.value(id);
        let name = &value.name;
        let range = profile.inputs.get(name);
        match &value.origin {
            Origin::Input { equals: Some(_) } => {
                let Some(InputRange::Values { min, opt, max }) = range else { panic!("{name}: {range:?}") };
                let limits = if name == "start_idx" { (0, 15) } else { (1, 16) };
                assert_eq!((min[0], max[0]), limits, "{name}");
                assert!(min <= opt && opt <= max, "{name}");
            }
            _ if value.shape.iter().any(|dim| dim.as_constant().is_none()) => {
                let Some(InputRange::Dimensions { min, opt, max }) = range else {
                    panic!("{name}: {range:?}")
                };
                for (index, dim) in value.shape.iter().enumerate() {
                    let largest = match dim.as_constant() {
                        Some(constant) => constant,
                        None if index == 0 => i64::from(options.max_batch_size),
                        None => i64::from(options.max_seq_len),
                    };
                    let least = dim.as_constant().unwrap_or(1);
                    assert_eq!((min[index], max[index]), (least, largest), "{name} at {index}");
                    assert!(min[index] <= opt[index] && opt[index] <= max[index], "{name} at {index}");
                }
            }
            _ => assert_eq!(range, None, "{name} has no range to give"),
        }
    }
    let inputs: BTreeSet<_> = graph.inputs().iter().map(|&id| &graph.value(id).name).collect();
    assert!(profile.inputs.keys().all(|name| inputs.contains(name)), "{profile:?}");
}

/// The files of an engine are what its graph and options say.
fn check_engine(built: &Built, separate: bool) {
    let (network, plan) = (built.network(), latin1(&built.bytes(blob_names::PLAN)));
    let describe = |id| {
        let tensor = network.tensor(id);
        (tensor.name.clone(), tensor.dtype, tensor.dims.clone())
    };
    let expected = signature(&built.graph);
    assert_eq!(network.inputs().iter().map(|&id| describe(id)).collect::<Vec<_>>(), expected.inputs);
    let outputs: Vec<_> = network.outputs().iter().map(|output| describe(output.tensor)).collect();
    assert_eq!(outputs, expected.outputs);
    let aliases = network
        .outputs()
        .iter()
        .filter_map(|output| Some((network.tensor(output.tensor).name.clone(), output.aliases.clone()?)));
    assert_eq!(aliases.collect::<Vec<_>>(), expected.aliases);
    let in_place = built.options.cache == CacheKind::InPlace;
    assert_eq!(expected.aliases.is_empty(), !in_place);
    for (name, ..) in expected.inputs.iter().chain(&expected.outputs) {
        assert!(plan.contains(name.as_str()), "the plan has no {name}");
    }
    let statics = matches!(built.options.cache, CacheKind::StaticV1 | CacheKind::StaticV2);
    let index = |name: &str| (name.to_owned(), DataType::Int64, Vec::new());
    for name in ["start_idx", "end_idx"] {
        assert_eq!(expected.inputs.contains(&index(name)), statics, "{name} is a 0-d shape tensor");
    }
    check_profile(&built.graph, &built.options, &network.profiles[0]);
    assert_eq!(
        Graph::from_json(&String::from_utf8(built.bytes(blob_names::GRAPH)).unwrap()).unwrap(),
        built.graph
    );

    let names: BTreeSet<&str> = built.files.keys().map(String::as_str).collect();
    let mut wanted = BTreeSet::from([blob_names::PLAN, blob_names::NETWORK, blob_names::GRAPH]);
    if separate {
        wanted.insert(blob_names::WEIGHTS);
    }
    assert_eq!(names, wanted);
    let on_disk = std::fs::read_dir(built.directory.path()).unwrap().count();
    assert_eq!(on_disk, wanted.len(), "no other file is left");
    // A plan to be refitted has the names of the weights that it lacks.
    for weight in network.weights().filter(|_| separate) {
        assert!(plan.contains(weight), "{weight}");
    }
}

/// The first rows of the embedding table as an engine with this precision holds them.
fn table(model: &TinyModel, precision: Precision) -> String {
    let mut values = vec![0.0; 4 * model.hidden_size];
    let weights = model.weights().unwrap();
    weights.read_rows("model.embed_tokens.weight", 0..4, &mut values).unwrap();
    let bytes: Vec<u8> = match precision {
        Precision::Fp32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Precision::Fp16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
    };
    latin1(&bytes)
}

fn check_matrix(cache: CacheKind) {
    let model = TinyModel::llama();
    for &precision in Precision::ALL {
        for placement in [WeightPlacement::Embedded, WeightPlacement::Separate] {
            let built = build_model(&model, placed(options(precision, cache), placement));
            let separate = placement == WeightPlacement::Separate;
            check_engine(&built, separate);
            let plan = latin1(&built.bytes(blob_names::PLAN));
            assert_eq!(plan.contains(&table(&model, precision)), !separate, "{precision} {placement}");
        }
    }
}

#[test]
fn engines_without_a_cache() {
    check_matrix(CacheKind::None);
}

#[test]
fn engines_with_the_first_static_cache() {
    check_matrix(CacheKind::StaticV1);
}

#[test]
fn engines_with_the_second_static_cache() {
    check_matrix(CacheKind::StaticV2);
}

#[test]
fn engines_with_caches_changed_in_place() {
    check_matrix(CacheKind::InPlace);
}

#[test]
fn every_tiny_model_builds() {
    let options = placed(options(Precision::Fp16, CacheKind::InPlace), WeightPlacement::Separate);
    for model in TinyModel::all() {
        check_engine(&build_model(&model, options), true);
    }
    // Windows, soft caps and norms with offsets; every position's logits.
    let options = EngineOptions { cache: CacheKind::StaticV2, all_logits: true, ..options };
    check_engine(&build_model(&TinyModel::gemma2(), options), true);
}

#[test]
fn both_forms_of_attention_two_profiles_and_streamed_weights_build() {
    let base = TensorRtOptions::default();
    for tensorrt in [
        TensorRtOptions { attention: AttentionForm::Fused, ..base },
        TensorRtOptions { attention: AttentionForm::Decomposed, ..base },
        TensorRtOptions { fp32_accumulation: false, ..base },
        TensorRtOptions { weight_streaming: true, ..base },
        TensorRtOptions { profiles: Profiles::Two, ..base },
        TensorRtOptions { profiles: Profiles::Two, weights: WeightPlacement::Separate, ..base },
    ] {
        let options =
            EngineOptions { tensorrt: Some(tensorrt), ..options(Precision::Bf16, CacheKind::InPlace) };
        let built = build_model(&TinyModel::llama(), options);
        let profiles = built.network().profiles.len();
        assert_eq!(profiles, if tensorrt.profiles == Profiles::Two { 2 } else { 1 });
    }
}

#[test]
fn one_plan_is_for_all_targets_asked_for() {
    let targets = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    for (asked, names) in [
        (targets(&["sm_75", "sm_89"]), vec!["sm_75", "sm_89"]),
        (NO_TARGETS, vec!["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]),
    ] {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let options = EngineOptions { targets: asked, ..options(Precision::Fp16, CacheKind::InPlace) };
        let built = build_model(&TinyModel::llama(), options);
        let header = PlanHeader::read(&built.files[blob_names::PLAN]).unwrap();
        assert_eq!((header.targets.names(), header.version), (names.clone(), Library::version()));
        assert_eq!(builder().target(&built.options).compute_capabilities, names);
    }
}

/// TensorRT makes plans without weights for one target at a time.
#[test]
fn engines_without_weights_have_a_plan_for_each_target() {
    let options = placed(options(Precision::Fp16, CacheKind::InPlace), WeightPlacement::Separate);
    let options = EngineOptions { targets: NO_TARGETS, ..options };
    let built = build_model(&TinyModel::llama(), options);
    let targets: Vec<_> = built.options.targets.iter().collect();
    assert_eq!(targets.len(), 5);
    assert!(!built.files.contains_key(blob_names::PLAN) && built.files.contains_key(blob_names::WEIGHTS));
    for target in targets {
        let header = PlanHeader::read(&built.files[&blob_names::plan_for(target)]).unwrap();
        assert_eq!(header.targets.names(), [target.to_string()]);
    }
}

#[test]
fn separate_weights_are_the_file_that_other_backends_write() {
    let model = TinyModel::llama();
    let options = placed(options(Precision::Fp16, CacheKind::InPlace), WeightPlacement::Separate);
    let built = build_model(&model, options);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weights");
    let mut file = PartialFile::create(&path).unwrap();
    let layout = WeightsLayout::new(&built.graph).unwrap();
    write_weights(&layout, &model.weights().unwrap(), &mut file, &|_| Ok(())).unwrap();
    file.finish().unwrap();
    assert!(built.bytes(blob_names::WEIGHTS) == std::fs::read(path).unwrap());
}

#[test]
fn builds_in_parallel_are_independent() {
    std::thread::scope(|scope| {
        let builds = [CacheKind::InPlace, CacheKind::StaticV1].map(|cache| {
            scope.spawn(move || {
                let options = placed(options(Precision::Fp16, cache), WeightPlacement::Embedded);
                check_engine(&build_model(&TinyModel::llama(), options), false);
            })
        });
        for build in builds {
            build.join().unwrap();
        }
    });
}

#[test]
fn the_log_says_what_was_chosen_and_what_tensorrt_says() {
    let model = TinyModel::llama();
    let (graph, options) = lowered(&model, options(Precision::Fp16, CacheKind::InPlace));
    let progress = Watched::default();
    build(graph, options, &model.weights().unwrap(), &progress).unwrap();
    let lines = progress.lines.lock().join("\n");
    for part in [
        "attention \"",
        "fused, ",
        "TensorRT holds ",
        "TensorRT: Building engine",
        "Total Activation Memory",
        "Total Weights Memory",
        "engine.plan for sm_89 has ",
    ] {
        assert!(lines.contains(part), "no {part:?} in\n{lines}");
    }
    let bytes = progress.bytes.lock();
    assert!(bytes.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{bytes:?}");
    let (done, total) = *bytes.last().unwrap();
    assert_eq!(done, total);
}
