//! Mistakes planted in converted networks are found.
//!
//! Every layer of every network is given every mistake of [`mutate`], one at a time. A mistake is found when the layers
//! no longer fit each other, when the network's signature or the type of a node's value is another, when a layer breaks a
//! rule of arithmetic that only hardware would show, when the network cannot run, or when it computes something else than
//! the graph by more than the tolerance of the other tests. Those that are not found are listed, with the reason why
//! they are no mistakes.

mod mutate;

use mutate::{Mutant, Mutated, mutants};
use roundhouse_backend::WeightSource;
use roundhouse_backend_conformance::suite::op_cases;
use roundhouse_backend_conformance::tiny_models::TinyModel;
use roundhouse_backend_conformance::{MemoryWeights, Rng, RoundedWeights, Rounding};
use roundhouse_engine::{AttentionForm, CacheKind, EngineOptions, Precision, TensorRtOptions};
use roundhouse_graph::{DType, Graph, Op};
use roundhouse_tensorrt_converters::UNSUPPORTED_OPS;

use crate::attention::{Case, Keys, Mask, PLAIN, engine_options};
use crate::form::Form;
use crate::forms::FORMS;
use crate::ops::{has_soft_cap, step_inputs};
use roundhouse_tensorrt_network::{DataType, ElementWise, Layer, LayerKind, Network, Unary};

use crate::support::{
    Inputs, Outputs, Runner, Step, convert, distance, interpreter, lower, lowered, options, random_caches,
    run_graph,
};

const TOLERANCE: f32 = 1e-5;

/// A network, and what it is to compute.
struct Subject<'a> {
    graph: &'a Graph,
    network: Network,
    weights: &'a dyn WeightSource,
    rounding: Rounding,
    steps: Vec<(Inputs, Outputs)>,
}

impl<'a> Subject<'a> {
    fn new(
        graph: &'a Graph,
        options: &EngineOptions,
        weights: &'a dyn WeightSource,
        inputs: Vec<Inputs>,
        rounding: Rounding,
    ) -> Self {
        let network = convert(graph, options).network;
        let rounded = RoundedWeights::new(weights, options.precision.dtype());
        let reference = interpreter(graph, &rounded).with_rounding(rounding);
        let steps = inputs.into_iter().map(|inputs| {
            let outputs = run_graph(&reference, &inputs);
            (inputs, outputs)
        });
        let subject = Self { graph, network, weights, rounding, steps: steps.collect() };
        let runner = Runner::new(&subject.network, graph, weights, rounding).unwrap();
        assert_eq!(subject.wrong_numbers(&runner), None, "{}: without a mistake", graph.name);
        assert_eq!(wrong_arithmetic(graph, &subject.network), None, "{}: without a mistake", graph.name);
        subject
    }

    /// How it shows that a network has a mistake.
    fn mistake(&self, mutated: &Mutated) -> Option<String> {
        let network = &mutated.network;
        if signature(network) != signature(&self.network) {
            return Some("signature".to_owned());
        }
        self.wrong_value(mutated).or_else(|| wrong_arithmetic(self.graph, network)).or_else(|| {
            let runner = Runner::new(network, self.graph, self.weights, self.rounding);
            runner.map_or_else(|error| Some(error.to_string()), |runner| self.wrong_numbers(&runner))
        })
    }

    /// A node's tensor that is not what the graph says: the converters' own check.
    fn wrong_value(&self, mutated: &Mutated) -> Option<String> {
        let values = self.graph.nodes().map(|(_, node)| &self.graph.value(node.output).name);
        values.into_iter().find_map(|name| {
            let of_node = |layer: &&Layer| {
                layer.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
            };
            let last = self.network.layers().iter().rfind(of_node)?.output;
            let (is, was) = (mutated.network.tensor(mutated.tensors[&last]), self.network.tensor(last));
            ((is.dtype, &is.dims) != (was.dtype, &was.dims)).then(|| format!("{name} is {is:?}"))
        })
    }

    fn wrong_numbers(&self, runner: &Runner) -> Option<String> {
        self.steps.iter().find_map(|(inputs, expected)| match runner.run(inputs) {
            Err(error) => Some(error.to_string()),
            Ok(found) => {
                let (distance, at) = distance(&found, expected);
                (distance > TOLERANCE).then_some(at)
            }
        })
    }

    /// The mistakes that do not show, as `layer: what`.
    fn survivors(&self) -> Vec<String> {
        let survives = |mutant: &Mutant| match &mutant.network {
            Ok(mutated) => self.mistake(mutated).is_none(),
            Err(_) => false,
        };
        let mut count = 0;
        let all = mutants(&self.network).inspect(|_| count += 1);
        let survivors: Vec<String> =
            all.filter(survives).map(|mutant| format!("{}: {}", mutant.layer, mutant.what)).collect();
        assert!(count > 3 * self.network.layers().len(), "{}: only {count} mutants", self.graph.name);
        survivors
    }
}

/// Mistakes that are none.
struct Harmless {
    /// Part of the case's name.
    case: &'static str,
    /// What the layer's name ends with, and what the mistake begins with.
    mistake: (&'static str, &'static str),
    /// Why the network computes the same.
    why: &'static str,
}

const fn harmless(case: &'static str, mistake: (&'static str, &'static str), why: &'static str) -> Harmless {
    Harmless { case, mistake, why }
}

/// Fails unless the cases' survivors are harmless, and all that is listed as harmless is among them.
#[track_caller]
fn only_harmless(cases: impl IntoIterator<Item = (String, Vec<String>)>, list: &[Harmless]) {
    let mut seen = vec![false; list.len()];
    let mut found = Vec::new();
    for (case, survivors) in cases {
        for survivor in survivors {
            let (layer, what) = survivor.split_once(": ").unwrap();
            let place = list.iter().position(|harmless| {
                let (end, begin) = harmless.mistake;
                case.contains(harmless.case) && layer.ends_with(end) && what.starts_with(begin)
            });
            match place {
                Some(place) => seen[place] = true,
                None => found.push(format!("{case}: {survivor}")),
            }
        }
    }
    assert!(found.is_empty(), "mistakes that no test would find:\n{}", found.join("\n"));
    for (Harmless { mistake, why, .. }, seen) in list.iter().zip(&seen) {
        assert!(seen, "listed as harmless ({why}), and found or not planted: {mistake:?}");
    }
}

fn signature(network: &Network) -> Vec<String> {
    let inputs = network.inputs().iter().map(|&id| (id, None));
    let outputs = network.outputs().iter().map(|output| (output.tensor, output.aliases.clone()));
    inputs.chain(outputs).map(|(id, aliases)| format!("{:?} {aliases:?}", network.tensor(id))).collect()
}

/// What the interpreter does not tell apart: products, sums, norms, softmax and activations are fp32; only a node that is
/// one operation runs in its values' dtype; and TensorRT may run attention as several kernels.
fn wrong_arithmetic(graph: &Graph, network: &Network) -> Option<String> {
    let broken = network.layers().iter().find(|layer| {
        let operands = || layer.inputs.iter().map(|&id| network.tensor(id).dtype);
        let is_half = operands().any(|dtype| matches!(dtype, DataType::Half | DataType::Bf16));
        match &layer.kind {
            LayerKind::Attention { decomposable, .. } => !decomposable,
            LayerKind::Activation { .. }
            | LayerKind::Unary { function: Unary::Sqrt | Unary::Recip }
            | LayerKind::MatrixMultiply { .. }
            | LayerKind::Reduce { .. }
            | LayerKind::SoftMax { .. } => is_half,
            LayerKind::ElementWise { operation: ElementWise::Sum | ElementWise::Prod } if is_half => {
                let node = graph.nodes().find(|(_, node)| {
                    let name = &graph.value(node.output).name;
                    layer.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
                });
                !node.is_some_and(|(_, node)| matches!(node.op, Op::Add | Op::Mul))
            }
            LayerKind::ElementWise { operation } => is_half && !matches!(operation, ElementWise::Equal),
            _ => false,
        }
    });
    broken.map(|layer| format!("{} has the wrong arithmetic", layer.name))
}

fn with(options: EngineOptions, attention: AttentionForm) -> EngineOptions {
    EngineOptions { tensorrt: Some(TensorRtOptions { attention, ..TensorRtOptions::default() }), ..options }
}

/// A Llama of one layer and few numbers, with what a step of each cache kind is to find out.
fn llama(cache: CacheKind, attention: AttentionForm) -> Vec<String> {
    let model = TinyModel {
        num_hidden_layers: 1,
        hidden_size: 12,
        head_dim: 6,
        rotary_dim: 6,
        intermediate_size: 10,
        vocab_size: 13,
        ..TinyModel::llama()
    };
    let options = EngineOptions { all_logits: true, ..with(options(Precision::Fp16, cache), attention) };
    let graph = lowered(&model, &options);
    let weights = small_residuals(&model.weights().unwrap());
    let steps = match cache {
        CacheKind::None => vec![Step::new(&[0; 2], &[6; 2]), Step::new(&[3], &[1])],
        CacheKind::StaticV1 | CacheKind::StaticV2 => {
            vec![Step::new(&[5; 2], &[3; 2]), Step::new(&[0; 3], &[4; 3]), Step::new(&[39], &[1])]
        }
        CacheKind::InPlace => vec![Step::new(&[5, 0, 9], &[3, 2, 1]), Step::new(&[39, 7], &[1, 1])],
    };
    let mut rng = Rng::new(8);
    let inputs = steps.iter().map(|step| {
        let caches = random_caches(&graph, step.past.len(), &mut rng);
        step.inputs(&graph, model.vocab_size, &caches, &mut rng)
    });
    let inputs = inputs.collect();
    Subject::new(&graph, &options, &weights, inputs, Rounding::Weights).survivors()
}

/// The weights with those that write to the residual stream a hundredth of what they are, so that the norms' epsilon is
/// no longer far below their mean square.
fn small_residuals(weights: &MemoryWeights) -> MemoryWeights {
    let mut changed = MemoryWeights::new();
    for name in weights.names() {
        let shape = weights.shape(&name).unwrap();
        let mut values = vec![0.0; shape.iter().product::<u64>() as usize];
        weights.read_rows(&name, 0..shape[0], &mut values).unwrap();
        if ["embed_tokens.weight", "o_proj.weight", "down_proj.weight"].iter().any(|end| name.ends_with(end))
        {
            values.iter_mut().for_each(|value| *value *= 0.01);
        }
        let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
        changed.insert(name, &shape, values);
    }
    changed
}

const SAME_DIMENSIONS: &str = "it reads the dimensions of another tensor of the same";

#[test]
fn mistakes_in_models_are_found() {
    let forms = [AttentionForm::Fused, AttentionForm::Decomposed];
    let cases = CacheKind::ALL
        .iter()
        .flat_map(|&cache| forms.map(|attention| (format!("{cache} {attention}"), llama(cache, attention))));
    only_harmless(cases, &[harmless("", ("input_ids/shape", "operand 0 is position_ids"), SAME_DIMENSIONS)]);
}

#[test]
fn mistakes_in_every_op_are_found() {
    let mut survivors = Vec::new();
    for case in op_cases(DType::F16).unwrap() {
        if UNSUPPORTED_OPS.contains(&case.name) {
            continue;
        }
        // Rounding, which is all that a cast to fp16 does, is not what is compared here: there is a form for casts. Masks
        // that hide everything from a query are among the cases of attention, and equal router logits, which the order of
        // the experts decides, among the other forms.
        if case.name == "cast" || case.name.ends_with("_mask") || case.name.starts_with("mixture") {
            continue;
        }
        for attention in [AttentionForm::Fused, AttentionForm::Decomposed] {
            let has_attention = case.name.starts_with("attention");
            if attention == AttentionForm::Fused && (has_soft_cap(&case) || !has_attention) {
                continue;
            }
            let options = with(options(Precision::Fp16, CacheKind::None), attention);
            let options = EngineOptions { all_logits: !case.last_token, ..options };
            let graph = lower(case.source.graph.clone(), &options);
            let inputs = step_inputs(&Step::new(&[3, 4, 0], &[5, 5, 5]), &graph, &mut Rng::new(5));
            let weights = &case.source.weights;
            let subject = Subject::new(&graph, &options, weights, vec![inputs], Rounding::Weights);
            survivors.push((format!("{} {attention}", case.name), subject.survivors()));
        }
    }
    let one_key_head =
        "heads that share one key head are broadcast to it if they are not rows of one product";
    let small = "an epsilon of 1e-5 is far below the mean square: rms_norm has a larger one";
    let deviations = "the sum of x times its deviations is that of the squares of the deviations";
    only_harmless(
        survivors,
        &[
            harmless("", ("input_ids/shape", "operand 0 is position_ids"), SAME_DIMENSIONS),
            harmless("attention_window", ("/positions", "Equal"), NEVER_BOTH),
            harmless("one_key_head decomposed", ("/queries_of_key_head", ""), one_key_head),
            harmless("one_key_head decomposed", ("/probabilities_of_key_head", ""), one_key_head),
            harmless("rms_norm_of_heads", ("/epsilon_summand", "0.000015"), small),
            harmless("rms_norm_of_heads", ("/epsilon", "Max"), small),
            harmless("layer_norm", ("/square", "operand"), deviations),
        ],
    );
}

#[test]
fn mistakes_in_other_forms_are_found() {
    let cases = FORMS.iter().map(|(name, make)| {
        let forms = [[3, 5, 7], [2, 7, 1]].map(|sizes| {
            let mut form = Form::new(sizes);
            make(&mut form);
            form
        });
        let [Form { graph, weights, inputs: first, .. }, Form { inputs: second, .. }] = forms;
        let options = options(Precision::Fp32, CacheKind::InPlace);
        let inputs = vec![first, second];
        let subject = Subject::new(&graph, &options, &weights, inputs, Rounding::Weights);
        ((*name).to_owned(), subject.survivors())
    });
    let expected = [
        harmless("end_idx", ("cache/batch", "operand 0 is tokens/shape"), SAME_DIMENSIONS),
        harmless("experts", ("/tokens", "operand 1 is x/shape"), SAME_DIMENSIONS),
    ];
    only_harmless(cases, &expected);
}

const NEVER_BOTH: &str =
    "causality hides keys that are too young and a window those too old: never both, so And is Equal";

#[test]
fn mistakes_in_attention_are_found() {
    let mut survivors = Vec::new();
    for attention in [AttentionForm::Decomposed, AttentionForm::Fused] {
        for keys in [Keys::Past, Keys::Cache] {
            for mask in [Mask::None, Mask::Bool, Mask::Float] {
                for causal in [true, false] {
                    for window in [None, Some(3)] {
                        let case = Case { attention, keys, mask, causal, window, ..PLAIN };
                        let window = if window.is_some() { "window" } else { "no window" };
                        let causal = if causal { "causal" } else { "not causal" };
                        let name = format!("{attention}, {keys:?}, mask {mask:?}, {causal}, {window}");
                        survivors.push((name, attention_survivors(&case)));
                    }
                }
            }
        }
    }
    let same_for_all = "lengths alone hide the same keys from every query, in whichever order they are";
    let longer = "a cache is longer than the window, so that positions always hide something";
    let truths = "of 0 and 1 the sum, the mean and the largest are above 0 together";
    let below_one = "1 is above any number below it, and 0 is not";
    let infinite = "what the mask hides has the score −∞ already";
    let source = "the truth values were made of these very numbers";
    only_harmless(
        survivors,
        &[
            harmless("", ("q/shape", "operand 0 is out/scale"), SAME_DIMENSIONS),
            harmless("", ("/positions", "Equal"), NEVER_BOTH),
            harmless("fused", ("/visible_most", "Sum"), truths),
            harmless("fused", ("/visible_most", "Avg"), truths),
            harmless("fused", ("/sees", "operand 1 is out/scale_factor"), below_one),
            harmless("mask Bool, not causal, no window", ("/visible_most", "operand 0 is mask"), source),
            harmless("Cache, mask None, not causal, no window", ("/scores_of_query_head", ""), same_for_all),
            harmless("mask Float", ("/visible_scores", "operand 0 is out/visible"), infinite),
            harmless("mask Float", ("/mask", "operand 0 is out/visible"), infinite),
            harmless("decomposed, Cache, mask Float", ("/visible", "operand 1 is out/positions"), longer),
            harmless("decomposed, Cache, mask Float", ("/visible", "left out, operand 0"), longer),
        ],
    );
}

fn attention_survivors(case: &Case) -> Vec<String> {
    // The last of them has no more keys than a window, so that a query sees them all but for the mask.
    let [(graph, first), (_, second), (_, third)] =
        [[3, 3, 4], [1, 5, 4], [2, 2, 1]].map(|sizes| crate::attention::graph(case, sizes));
    let options = engine_options(case, Precision::Fp32);
    let inputs = vec![first, second, third];
    Subject::new(&graph, &options, &MemoryWeights::new(), inputs, Rounding::Weights).survivors()
}
