//! What graphs become.

use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_engine::{BackendKind, ComputeCapabilities, EngineOptions, Precision, WeightQuantization};
use roundhouse_graph::{
    AttentionAttributes, DType, Dim, Op, Quantization, QuantizedLinearAttributes, Rewriter, ValueId,
    WeightExpr, WeightFormat,
};

use super::*;
use crate::exec::Workspace;

const OPTIONS: EngineOptions = EngineOptions {
    precision: Precision::Bf16,
    cache: CacheKind::InPlace,
    backend: BackendKind::Cpu,
    max_seq_len: 48,
    max_batch_size: 4,
    all_logits: false,
    targets: ComputeCapabilities::NONE,
    quantization: WeightQuantization::None,
    tensorrt: None,
};

fn lowered(model: &TinyModel, options: &EngineOptions) -> Graph {
    let (graph, _) = roundhouse_lowering::lower(model.graph().unwrap(), options).unwrap();
    crate::fusion::fuse(graph).unwrap().0
}

fn plan(graph: &Graph, options: &EngineOptions) -> Result<Plan, BackendError> {
    Plan::new(graph, StepLimits::new(graph, options))
}

/// The names of a plan's steps.
fn steps(plan: &Plan) -> Vec<&'static str> {
    let name = |step: &Step| match step {
        Step::Load { .. } => "load",
        Step::ImageRows { .. } | Step::ReplaceRows { .. } => "replace_rows",
        Step::Copy { .. } | Step::CopyIntegers { .. } => "copy",
        Step::IntegersToFloat { .. } | Step::FloatToIntegers { .. } => "cast",
        Step::Embedding { .. } => "embedding",
        Step::Gather { .. } => "gather",
        Step::Linear { parts, .. } => match (parts.len(), parts[0].accumulate) {
            (3, false) => "qkv",
            (1, true) => "linear+=",
            _ => "linear",
        },
        Step::LinearSiluMul { .. } => "linear_silu_mul",
        Step::Experts(_) => "experts",
        Step::MatMul { .. } => "matmul",
        Step::Binary { a: None, .. } => "binary=",
        Step::Binary { .. } => "binary",
        Step::Map { from: None, .. } => "map=",
        Step::Map { .. } => "map",
        Step::Norm { .. } => "norm",
        Step::Softmax { .. } => "softmax",
        Step::RotaryTable { .. } => "rotary_table",
        Step::Rotary { .. } => "rotary",
        Step::StoreKv { .. } => "store_kv",
        Step::StoreCache { .. } => "store_cache",
        Step::CachedAttention { .. } => "cached_attention",
        Step::Attention(_) => "attention",
        Step::SelectRows { .. } => "select_rows",
    };
    plan.steps.iter().map(|planned| name(&planned.step)).collect()
}

#[test]
fn a_llama_layer_is_eleven_steps_and_copies_nothing() {
    let model = TinyModel { num_hidden_layers: 2, ..TinyModel::llama() };
    let plan = plan(&lowered(&model, &OPTIONS), &OPTIONS).unwrap();
    let mut layer =
        vec!["norm", "qkv", "rotary", "rotary", "store_kv", "store_kv", "cached_attention", "linear+="];
    layer.extend(["norm", "linear_silu_mul", "linear+="]);
    let mut expected = vec!["embedding", "select_rows", "norm", "linear"];
    expected.extend(layer.repeat(2));
    // Cosines and sines are the same for all layers.
    expected.push("rotary_table");
    expected.sort_unstable();
    let mut found = steps(&plan);
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn quantised_weights_run_in_the_same_steps() {
    for model in TinyModel::all() {
        let graph = lowered(&model, &OPTIONS);
        let plain = plan(&graph, &OPTIONS).unwrap();
        for format in [WeightFormat::Int8, WeightFormat::Int4, WeightFormat::Fp8] {
            let quantization = Quantization { format, group_size: 16 };
            let attributes = QuantizedLinearAttributes { quantization, has_offsets: false };
            let (graph, report) =
                roundhouse_lowering::weight_only_quantization(graph.clone(), attributes).unwrap();
            assert!(report.counts["quantized_linears"] > 0, "{}", model.name);
            let quantized = plan(&graph, &OPTIONS).unwrap();
            assert_eq!(steps(&quantized), steps(&plain), "{}", model.name);
        }
    }
}

#[test]
fn more_layers_take_no_more_memory() {
    let workspace = |layers| {
        let model = TinyModel { num_hidden_layers: layers, ..TinyModel::llama() };
        let graph = lowered(&model, &OPTIONS);
        plan(&graph, &OPTIONS).unwrap().workspace_bytes()
    };
    assert_eq!(workspace(2), workspace(20));
}

#[test]
fn the_planned_workspace_is_what_the_largest_step_takes() {
    for cache in CacheKind::ALL {
        for model in TinyModel::all() {
            let options = EngineOptions { cache: *cache, ..OPTIONS };
            let graph = lowered(&model, &options);
            let limits = StepLimits::new(&graph, &options);
            let plan = plan(&graph, &options).unwrap();
            let mut workspace = Workspace::default();
            workspace.selected = (0..limits.rows).collect();
            workspace.bind(&plan, limits.tokens, limits.sequence.saturating_sub(limits.tokens)).unwrap();
            let tables: usize = plan
                .tables
                .iter()
                .map(|table| limits.tokens * table.attributes.rotary_dim() * size_of::<f32>())
                .sum();
            let planned = plan.workspace_bytes();
            assert_eq!((workspace.activation_bytes() + tables) as u64, planned, "{} {cache}", model.name);
        }
    }
}

/// The rows of each cache tensor.
fn rows(plan: &Plan) -> Vec<usize> {
    plan.signature.cache.iter().map(|shape| shape.rows(shape.length)).collect()
}

#[test]
fn only_caches_that_windows_alone_read_become_rings() {
    let options = EngineOptions { max_seq_len: 2000, ..OPTIONS };
    let model = TinyModel { num_hidden_layers: 3, max_position_embeddings: 2000, ..TinyModel::mistral() };
    let graph = lowered(&model, &options);
    let plan = self::plan(&graph, &options).unwrap();
    assert_eq!(rows(&plan), [516, 516, 2000, 2000, 516, 516]);
    let per_token = plan.signature.kv_bytes_per_token();
    let [ring] = plan.signature.kv_rings()[..] else { panic!("not one ring") };
    assert_eq!((ring.tokens, ring.bytes_per_token), (516, per_token / 3 * 2));

    // Without causality a window is no bound, and every width has a ring of its own.
    let mut rewriter = Rewriter::new(graph.clone());
    let mut attentions =
        rewriter.nodes_where(|node| matches!(node.op, Op::ScaledDotProductAttention(_))).into_iter();
    for (causal, window) in [(false, Some(5)), (true, Some(9)), (true, Some(30))] {
        let id = attentions.next().unwrap();
        let Op::ScaledDotProductAttention(mut attributes) = rewriter.node(id).op.clone() else { continue };
        (attributes.causal, attributes.window) = (causal, window);
        rewriter.set_op(id, Op::ScaledDotProductAttention(attributes)).unwrap();
    }
    let plan = self::plan(&rewriter.finish().unwrap(), &options).unwrap();
    assert_eq!(rows(&plan), [2000, 2000, 520, 520, 541, 541]);
    let rings = plan.signature.kv_rings();
    assert_eq!(rings.iter().map(|ring| ring.tokens).collect::<Vec<_>>(), [520, 541]);

    // A window that everything fits in saves nothing, and the caches of the other kinds have fixed shapes.
    let short = EngineOptions { max_seq_len: 516, ..options };
    assert_eq!(rows(&self::plan(&lowered(&model, &short), &short).unwrap()), [516; 6]);
    let fixed = EngineOptions { cache: CacheKind::StaticV2, ..options };
    assert_eq!(rows(&self::plan(&lowered(&model, &fixed), &fixed).unwrap()), [2000; 6]);
}

#[test]
fn steps_behind_the_choice_of_rows_are_marked() {
    let plan = plan(&lowered(&TinyModel::gemma2(), &OPTIONS), &OPTIONS).unwrap();
    let steps = steps(&plan);
    let first = steps.iter().position(|step| *step == "select_rows").unwrap();
    for (place, planned) in plan.steps.iter().enumerate() {
        assert_eq!(planned.on_selected_rows, place >= first, "{place}: {}", steps[place]);
    }
}

/// `(input_ids, position_ids, cache inputs) → logits`, with something between the embedding `[batch, seq, 4]` and the
/// projection.
fn in_place_graph(between: impl FnOnce(&mut Graph, ValueId, &[Dim; 2]) -> ValueId) -> Graph {
    let mut graph = Graph::new("test");
    let batch = Dim::symbol(graph.add_symbol("batch", 1, 8));
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 48));
    let ids = graph.add_input("input_ids", DType::I64, vec![batch.clone(), seq.clone()]);
    graph.add_input("position_ids", DType::I64, vec![batch.clone(), seq.clone()]);
    graph.add_input("write_indices", DType::I64, vec![batch.clone()]);
    let table = graph.add_weight("table", DType::F32, &[7, 4], WeightExpr::tensor("table"));
    let x = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    let x = between(&mut graph, x, &[batch, seq]);
    let logits = graph.add_node(Op::Linear, &[x, table]).unwrap();
    graph.add_output("logits", logits);
    graph
}

fn refusal(graph: &Graph) -> String {
    match plan(graph, &OPTIONS) {
        Err(error @ BackendError::Unsupported { .. }) => error.to_string(),
        Err(error) => panic!("the wrong error: {error:?}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn what_works_on_rows_can_be_packed() {
    let graph = in_place_graph(|graph, x, [batch, seq]| {
        let shape = vec![batch.clone(), seq.clone(), Dim::constant(2), Dim::constant(2)];
        let x = graph.add_node(Op::Reshape { shape }, &[x]).unwrap();
        let x = graph.add_node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x]).unwrap();
        let x = graph.add_node(Op::Softmax { axis: 1 }, &[x]).unwrap();
        let x = graph.add_node(Op::Transpose { permutation: vec![0, 2, 1, 3] }, &[x]).unwrap();
        let shape = vec![batch.clone(), seq.clone(), Dim::constant(4)];
        graph.add_node(Op::Reshape { shape }, &[x]).unwrap()
    });
    plan(&graph, &OPTIONS).unwrap();
}

#[test]
fn a_node_that_mixes_tokens_cannot_be_packed_and_is_named() {
    let softmax = in_place_graph(|graph, x, _| graph.add_node(Op::Softmax { axis: 1 }, &[x]).unwrap());
    assert!(refusal(&softmax).contains("softmax_1"), "{}", refusal(&softmax));

    let uncached = in_place_graph(|graph, x, [batch, seq]| {
        let heads = vec![batch.clone(), Dim::constant(1), seq.clone(), Dim::constant(4)];
        let x = graph.add_node(Op::Reshape { shape: heads }, &[x]).unwrap();
        let op = Op::ScaledDotProductAttention(AttentionAttributes::causal());
        let x = graph.add_node(op, &[x, x, x]).unwrap();
        let rows = vec![batch.clone(), seq.clone(), Dim::constant(4)];
        graph.add_node(Op::Reshape { shape: rows }, &[x]).unwrap()
    });
    assert!(refusal(&uncached).contains("scaled_dot_product_attention_2"), "{}", refusal(&uncached));

    let shifted = in_place_graph(|graph, x, _| graph.add_node(Op::Cat { axis: 1 }, &[x, x]).unwrap());
    assert!(refusal(&shifted).contains("cat_1"), "{}", refusal(&shifted));
}

#[test]
fn a_symbol_that_no_input_gives_is_refused() {
    let mut graph = Graph::new("test");
    let seq = Dim::symbol(graph.add_symbol("seq", 1, 48));
    let end = Dim::symbol(graph.add_symbol("end", 1, 48));
    let ids = graph.add_input("input_ids", DType::I64, vec![Dim::constant(1), seq.clone()]);
    graph.add_input("position_ids", DType::I64, vec![Dim::constant(1), end]);
    let table = graph.add_weight("table", DType::F32, &[7, 4], WeightExpr::tensor("table"));
    let x = graph.add_node(Op::Embedding, &[ids, table]).unwrap();
    let logits = graph.add_node(Op::Linear, &[x, table]).unwrap();
    graph.add_output("logits", logits);
    assert!(refusal(&graph).contains("the symbol \"end\""), "{}", refusal(&graph));
}
