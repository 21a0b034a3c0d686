use super::infer;
use crate::{
    AttentionAttributes, DType, Dim, ExpertAttributes, GeluApproximation, Op, Origin, Quantization,
    QuantizedLinearAttributes, RotaryAttributes, Shape, SymbolId, Value, WeightFormat,
};

fn sym(index: u32) -> Dim {
    Dim::symbol(SymbolId(index))
}

/// `[batch, seq, 64]` written as `["B", "S", "64"]`; `B`, `S` and `P` are symbols.
fn shape(dims: &[&str]) -> Shape {
    dims.iter()
        .map(|dim| match *dim {
            "B" => sym(0),
            "S" => sym(1),
            "P" => sym(2),
            number => Dim::constant(number.parse().unwrap()),
        })
        .collect()
}

fn value(dtype: DType, dims: &[&str]) -> Value {
    Value { name: "v".to_owned(), dtype, shape: shape(dims), origin: Origin::Input { equals: None } }
}

fn f32(dims: &[&str]) -> Value {
    value(DType::F32, dims)
}

fn f16(dims: &[&str]) -> Value {
    value(DType::F16, dims)
}

fn i64(dims: &[&str]) -> Value {
    value(DType::I64, dims)
}

#[track_caller]
fn good(op: &Op, inputs: &[Value], expected: &Value) {
    let inputs: Vec<&Value> = inputs.iter().collect();
    assert_eq!(infer(op, &inputs), Ok((expected.dtype, expected.shape.clone())));
}

/// The op is refused with a message that holds all of `parts`.
#[track_caller]
fn bad(op: &Op, inputs: &[Value], parts: &[&str]) {
    let inputs: Vec<&Value> = inputs.iter().collect();
    let error = infer(op, &inputs).unwrap_err().to_string();
    for part in parts.iter().chain([&op.name()]) {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn embedding() {
    let table = f16(&["100", "64"]);
    good(&Op::Embedding, &[i64(&["B", "S"]), table.clone()], &f16(&["B", "S", "64"]));
    bad(&Op::Embedding, &[f32(&["B", "S"]), table.clone()], &["input 0 (ids", "expected i64", "found f32"]);
    bad(&Op::Embedding, &[i64(&["S"]), table.clone()], &["2 dimensions", "[s1]"]);
    bad(&Op::Embedding, &[i64(&["B", "S"]), i64(&["100", "64"])], &["input 1 (table", "float"]);
    bad(&Op::Embedding, &[table], &["takes 2 inputs", "given 1"]);
}

#[test]
fn linear() {
    let (x, weight) = (f32(&["B", "S", "64"]), f32(&["128", "64"]));
    good(&Op::Linear, &[x.clone(), weight.clone()], &f32(&["B", "S", "128"]));
    good(&Op::Linear, &[x.clone(), weight.clone(), f32(&["128"])], &f32(&["B", "S", "128"]));
    good(&Op::Linear, &[f32(&["64"]), weight.clone()], &f32(&["128"]));
    bad(&Op::Linear, &[x.clone(), f32(&["64", "128"])], &["weight", "dimension 1 to be 64", "found 128"]);
    bad(&Op::Linear, &[x.clone(), weight.clone(), f32(&["64"])], &["bias", "to be 128", "found 64"]);
    bad(&Op::Linear, &[x.clone(), f16(&["128", "64"])], &["weight", "f32 as of input 0", "found f16"]);
    bad(&Op::Linear, &[x.clone(), weight.clone(), f16(&["128"])], &["bias", "found f16"]);
    bad(&Op::Linear, &[f32(&[]), weight.clone()], &["at least 1 dimension"]);
    bad(&Op::Linear, &[x.clone(), weight, f32(&["128"]), x], &["takes 2 to 3", "given 4"]);
}

#[test]
fn matmul() {
    let plain = Op::MatMul { transpose_b: false };
    let transposed = Op::MatMul { transpose_b: true };
    let a = f32(&["B", "4", "S", "64"]);
    good(&plain, &[a.clone(), f32(&["B", "4", "64", "P"])], &f32(&["B", "4", "S", "P"]));
    good(&transposed, &[a.clone(), f32(&["B", "4", "P", "64"])], &f32(&["B", "4", "S", "P"]));
    bad(&plain, &[a.clone(), f32(&["B", "4", "P", "64"])], &["dimension 2 to be 64", "found s2"]);
    bad(&transposed, &[a.clone(), f32(&["B", "2", "P", "64"])], &["leading dimensions [s0, 4]"]);
    bad(&plain, &[a.clone(), f32(&["64", "P"])], &["leading dimensions"]);
    bad(&plain, &[f32(&["64"]), a], &["at least 2 dimensions"]);
}

#[test]
fn add_and_mul_broadcast() {
    for op in [Op::Add, Op::Mul] {
        let x = f32(&["B", "S", "64"]);
        good(&op, &[x.clone(), x.clone()], &x);
        good(&op, &[x.clone(), f32(&["64"])], &x);
        good(&op, &[f32(&["64"]), x.clone()], &x);
        good(&op, &[f32(&["B", "1", "64"]), f32(&["1", "S", "1"])], &x);
        good(&op, &[x.clone(), f32(&[])], &x);
        bad(&op, &[x.clone(), f32(&["B", "P", "64"])], &["input 1", "broadcasts with [s0, s1, 64]"]);
        bad(&op, &[x.clone(), f16(&["64"])], &["found f16"]);
        bad(&op, &[i64(&["S"]), i64(&["S"])], &["a float dtype", "found i64"]);
        bad(&op, &[x], &["takes 2", "given 1"]);
    }
}

#[test]
fn unary_ops_keep_the_type() {
    let ops = [
        Op::Silu,
        Op::Sigmoid,
        Op::Gelu { approximation: GeluApproximation::Tanh },
        Op::Scale { factor: 2.0 },
        Op::SoftCap { cap: 30.0 },
        Op::Softmax { axis: 1 },
    ];
    for op in ops {
        good(&op, &[f16(&["B", "S"])], &f16(&["B", "S"]));
        bad(&op, &[i64(&["B", "S"])], &["a float dtype", "found i64"]);
        bad(&op, &[], &["takes 1", "given 0"]);
    }
    let x = f32(&["B"]);
    bad(&Op::Scale { factor: f32::NAN }, std::slice::from_ref(&x), &["factor", "finite"]);
    bad(&Op::SoftCap { cap: 0.0 }, std::slice::from_ref(&x), &["cap", "above zero"]);
    bad(&Op::Softmax { axis: 1 }, &[x], &["an axis 1", "[s0]"]);
}

#[test]
fn silu_mul() {
    let gate = f32(&["B", "S", "96"]);
    good(&Op::SiluMul, &[gate.clone(), gate.clone()], &gate);
    bad(&Op::SiluMul, &[gate.clone(), f32(&["96"])], &["(up", "shape [s0, s1, 96] of gate", "found [96]"]);
    bad(&Op::SiluMul, &[gate, f16(&["B", "S", "96"])], &["found f16"]);
}

#[test]
fn quantized_linear() {
    let op = |format, group_size, has_offsets| {
        let quantization = Quantization { format, group_size };
        Op::QuantizedLinear(QuantizedLinearAttributes { quantization, has_offsets })
    };
    let x = f16(&["B", "S", "64"]);
    let (int8, int4) = (value(DType::U8, &["96", "64"]), value(DType::U8, &["96", "32"]));
    let (scales, bias) = (f32(&["96", "4"]), f16(&["96"]));
    let out = f16(&["B", "S", "96"]);
    let all = |values: &[&Value]| values.iter().map(|&value| value.clone()).collect::<Vec<_>>();
    for format in [WeightFormat::Int8, WeightFormat::Fp8] {
        good(&op(format, 16, false), &all(&[&x, &int8, &scales]), &out);
        bad(&op(format, 16, false), &all(&[&x, &int4, &scales]), &["weight", "to be 64", "bytes of a row"]);
    }
    let op4 = op(WeightFormat::Int4, 16, false);
    good(&op4, &all(&[&x, &int4, &scales, &bias]), &out);
    good(&op(WeightFormat::Int4, 16, true), &all(&[&x, &int4, &scales, &scales, &bias]), &out);
    bad(&op4, &all(&[&x, &int4, &f32(&["96", "2"])]), &["scales", "groups of a row"]);
    bad(&op4, &all(&[&x, &int4, &f32(&["64", "4"])]), &["scales", "the first of weight"]);
    bad(&op4, &all(&[&x, &bias, &scales]), &["weight", "expected u8", "found f16"]);
    bad(&op4, &all(&[&x, &int4, &scales, &f32(&["96"])]), &["bias", "found f32"]);
    bad(&op(WeightFormat::Int4, 24, false), &all(&[&x, &int4, &scales]), &["group_size", "24"]);
    bad(&op(WeightFormat::Int4, 0, false), &all(&[&x, &int4, &scales]), &["group_size", "0"]);
    bad(&op(WeightFormat::Int4, 1, false), &all(&[&x, &int4, &scales]), &["no whole bytes"]);
    bad(&op4, &all(&[&x, &int4]), &["given 2"]);
}

#[test]
fn mixture_of_experts() {
    let op = |top_k| Op::MixtureOfExperts(ExpertAttributes { top_k, normalize: true });
    let (x, router) = (f16(&["B", "S", "64"]), f16(&["B", "S", "4"]));
    let (gate_up, down) = (f16(&["768", "64"]), f16(&["256", "96"]));
    let with = |x: &Value, router: &Value, gate_up: &Value, down: &Value| {
        [x.clone(), router.clone(), gate_up.clone(), down.clone()]
    };
    good(&op(2), &with(&x, &router, &gate_up, &down), &x);
    good(&op(4), &with(&x, &router, &gate_up, &down), &x);
    for top_k in [0, 5] {
        bad(&op(top_k), &with(&x, &router, &gate_up, &down), &["top_k", "1 to 4", &top_k.to_string()]);
    }
    let cases: [([Value; 4], &[&str]); 6] = [
        (with(&x, &f16(&["B", "B", "4"]), &gate_up, &down), &["router_logits", "the second of x"]),
        (with(&x, &f16(&["B", "S", "S"]), &gate_up, &down), &["router_logits", "a known number"]),
        (with(&x, &router, &f16(&["384", "64"]), &down), &["gate_up", "to be 768", "found 384"]),
        (with(&x, &router, &f16(&["768", "32"]), &down), &["gate_up", "to be 64"]),
        (with(&x, &router, &gate_up, &f16(&["128", "96"])), &["down", "to be 256"]),
        (with(&x, &router, &gate_up, &f32(&["256", "96"])), &["down", "found f32"]),
    ];
    for (inputs, words) in cases {
        bad(&op(2), &inputs, words);
    }
}

#[test]
fn norms() {
    let rms = Op::RmsNorm { epsilon: 1e-5, unit_offset: false };
    let layer = Op::LayerNorm { epsilon: 1e-5 };
    let (x, weight) = (f16(&["B", "S", "64"]), f16(&["64"]));
    for op in [&rms, &layer] {
        good(op, &[x.clone(), weight.clone()], &x);
        bad(op, &[x.clone(), f16(&["32"])], &["weight", "to be 64", "found 32"]);
        bad(op, &[x.clone(), f16(&["1", "64"])], &["weight", "1 dimensions"]);
        bad(op, &[x.clone(), f32(&["64"])], &["weight", "found f32"]);
    }
    good(&layer, &[x.clone(), weight.clone(), weight.clone()], &x);
    bad(&layer, &[x.clone(), weight.clone(), f16(&["32"])], &["bias", "to be 64"]);
    bad(&rms, &[x.clone(), weight.clone(), weight.clone()], &["takes 2", "given 3"]);
    bad(&Op::RmsNorm { epsilon: -1.0, unit_offset: false }, &[x, weight], &["epsilon", "-1"]);
}

#[test]
fn rotary_embedding() {
    let op = |angles: usize| {
        Op::RotaryEmbedding(RotaryAttributes {
            inv_freq: vec![0.5; angles],
            attention_factor: 1.0,
            interleaved: false,
            sections: Vec::new(),
        })
    };
    let (x, positions) = (f16(&["B", "4", "S", "64"]), i64(&["B", "S"]));
    good(&op(32), &[x.clone(), positions.clone()], &x);
    good(&op(8), &[x.clone(), positions.clone()], &x);
    bad(&op(33), &[x.clone(), positions.clone()], &["at least 66", "found 64"]);
    bad(&op(0), &[x.clone(), positions.clone()], &["twice the angles"]);
    bad(&op(32), &[x.clone(), i64(&["S"])], &["position_ids", "2 dimensions"]);
    bad(&op(32), &[x.clone(), i64(&["B", "P"])], &["position_ids", "to be s1"]);
    bad(&op(32), &[x.clone(), f32(&["B", "S"])], &["expected i64"]);
    bad(&op(32), &[f16(&["B", "S", "64"]), positions], &["4 dimensions"]);
    let sections = |sections: &[u32]| {
        Op::RotaryEmbedding(RotaryAttributes {
            inv_freq: vec![0.5; 8],
            attention_factor: 1.0,
            interleaved: false,
            sections: sections.to_vec(),
        })
    };
    let positions = i64(&["B", "3", "S"]);
    good(&sections(&[2, 3, 3]), &[x.clone(), positions.clone()], &x);
    bad(&sections(&[2, 3, 4]), &[x.clone(), positions.clone()], &["sections", "8 pairs", "[2, 3, 4]"]);
    bad(&sections(&[4, 4]), &[x.clone(), positions.clone()], &["position_ids", "to be 2"]);
    bad(&sections(&[2, 3, 3]), &[x.clone(), i64(&["B", "S"])], &["position_ids", "3 dimensions"]);
    bad(&op(8), &[x, positions], &["position_ids", "2 dimensions"]);
}

#[test]
fn scaled_dot_product_attention() {
    let op = |change: fn(&mut AttentionAttributes)| {
        let mut attributes = AttentionAttributes::causal();
        change(&mut attributes);
        Op::ScaledDotProductAttention(attributes)
    };
    let plain = op(|_| {});
    let q = f16(&["B", "8", "S", "64"]);
    let k = f16(&["B", "2", "P", "64"]);
    let v = f16(&["B", "2", "P", "32"]);
    let out = f16(&["B", "8", "S", "32"]);
    let qkv = [q.clone(), k.clone(), v.clone()];
    let with = |extra: &[Value]| [&qkv[..], extra].concat();
    good(&plain, &qkv, &out);
    bad(
        &plain,
        &[q.clone(), f16(&["B", "3", "P", "64"]), f16(&["B", "3", "P", "64"])],
        &["divide the 8 of q"],
    );
    bad(
        &plain,
        &[q.clone(), f16(&["B", "2", "P", "32"]), v.clone()],
        &["(k", "dimension 3 to be 64", "found 32"],
    );
    bad(&plain, &[q.clone(), k.clone(), f16(&["B", "2", "S", "64"])], &["(v", "the positions of k"]);
    bad(&plain, &[q.clone(), k.clone(), f16(&["B", "4", "P", "64"])], &["(v", "the heads of k"]);
    bad(&plain, &[q.clone(), f16(&["1", "2", "P", "64"]), v.clone()], &["(k", "the batch of q"]);
    bad(&plain, &[q.clone(), k, f32(&["B", "2", "P", "32"])], &["(v", "found f32"]);
    bad(&plain, &[q, f16(&["B", "P", "64"]), v], &["(k", "4 dimensions"]);
    bad(&plain, &with(&[i64(&["B"])]), &["takes 3", "given 4"]);
    bad(&op(|a| a.window = Some(0)), &qkv, &["window"]);
    bad(&op(|a| a.scale = Some(f32::INFINITY)), &qkv, &["scale", "finite"]);
    bad(&op(|a| a.soft_cap = Some(-1.0)), &qkv, &["soft_cap"]);

    let masked = op(|a| a.has_mask = true);
    good(&masked, &with(&[value(DType::Bool, &["1", "1", "S", "P"])]), &out);
    good(&masked, &with(&[f16(&["B", "8", "S", "P"])]), &out);
    bad(&masked, &qkv, &["takes 4", "given 3"]);
    bad(&masked, &with(&[f32(&["1", "1", "S", "P"])]), &["(mask", "found f32"]);
    bad(&masked, &with(&[f16(&["1", "2", "S", "P"])]), &["(mask", "[s0 or 1, 8 or 1, s1, s2]"]);
    bad(&masked, &with(&[f16(&["1", "1", "P", "P"])]), &["(mask", "dimension 2 to be s1"]);

    let lengths = op(|a| a.has_kv_lengths = true);
    good(&lengths, &with(&[i64(&["B"])]), &out);
    bad(&lengths, &with(&[i64(&["1"])]), &["(kv_lengths", "the batch"]);
    bad(&lengths, &with(&[f16(&["B"])]), &["(kv_lengths", "expected i64"]);
    let both = op(|a| (a.has_mask, a.has_kv_lengths) = (true, true));
    good(&both, &with(&[f16(&["1", "1", "S", "P"]), i64(&["B"])]), &out);
    bad(&both, &with(&[i64(&["B"]), f16(&["1", "1", "S", "P"])]), &["(mask"]);
}

#[test]
fn kv_cache_update() {
    let (cache, update, indices) = (f16(&["B", "2", "128", "64"]), f16(&["B", "2", "S", "64"]), i64(&["B"]));
    let op = Op::KvCacheUpdate;
    good(&op, &[cache.clone(), update.clone(), indices.clone()], &cache);
    bad(&op, &[cache.clone(), f32(&["B", "2", "S", "64"]), indices.clone()], &["(update", "found f32"]);
    bad(&op, &[cache.clone(), f16(&["B", "4", "S", "64"]), indices.clone()], &["the heads of cache"]);
    bad(&op, &[cache.clone(), f16(&["B", "2", "S", "32"]), indices.clone()], &["the head dimension"]);
    bad(&op, &[cache.clone(), f16(&["1", "2", "S", "64"]), indices], &["the batch of cache"]);
    bad(&op, &[cache.clone(), update.clone(), i64(&[])], &["(write_indices", "1 dimensions"]);
    bad(&op, &[cache, update], &["takes 3", "given 2"]);
}

#[test]
fn last_token() {
    let x = f16(&["B", "S", "64"]);
    good(&Op::LastToken, std::slice::from_ref(&x), &f16(&["B", "1", "64"]));
    good(&Op::LastToken, &[x.clone(), i64(&["B"])], &f16(&["B", "1", "64"]));
    bad(&Op::LastToken, &[x, i64(&["S"])], &["(query_lengths", "to be s0"]);
    bad(&Op::LastToken, &[f16(&["S", "64"])], &["3 dimensions"]);
}

#[test]
fn cat_adds_symbolic_lengths() {
    let op = Op::Cat { axis: 2 };
    let parts = [f16(&["B", "2", "P", "64"]), f16(&["B", "2", "S", "64"]), f16(&["B", "2", "10", "64"])];
    let mut expected = parts[0].clone();
    expected.shape[2] = sym(2) + sym(1) + 10_i64.into();
    good(&op, &parts, &expected);
    good(&op, &parts[..1], &parts[0]);
    good(&Op::Cat { axis: 0 }, &[i64(&["3"]), i64(&["4"])], &i64(&["7"]));
    bad(&op, &[parts[0].clone(), f16(&["B", "3", "S", "64"])], &["but for axis 2"]);
    bad(&op, &[parts[0].clone(), f32(&["B", "2", "S", "64"])], &["expected f16", "found f32"]);
    bad(&op, &[parts[0].clone(), f16(&["B", "2"])], &["an axis 2"]);
    bad(&op, &[], &["at least 1"]);
    bad(&Op::Cat { axis: 4 }, &parts, &["an axis 4"]);
}

#[test]
fn the_static_cache_is_as_long_after_a_step_as_before() {
    let cache = f16(&["B", "2", "128", "64"]);
    let update = f16(&["B", "2", "S", "64"]);
    let (start, end) = (sym(2), sym(2) + sym(1));
    let cut = |start: Dim, end: Dim| {
        let op = Op::Slice { axis: 2, start, end };
        let (dtype, shape) = infer(&op, &[&cache]).unwrap();
        Value { dtype, shape, ..cache.clone() }
    };
    let (past, rest) = (cut(0_i64.into(), start), cut(end, 128_i64.into()));
    good(&Op::Cat { axis: 2 }, &[past, update, rest], &cache);
}

#[test]
fn slice() {
    let cut = |start: i64, end: i64| Op::Slice { axis: 1, start: start.into(), end: end.into() };
    let x = f32(&["B", "12"]);
    good(&cut(4, 12), std::slice::from_ref(&x), &f32(&["B", "8"]));
    good(&cut(4, 4), std::slice::from_ref(&x), &f32(&["B", "0"]));
    bad(&cut(4, 13), std::slice::from_ref(&x), &["4..13", "12"]);
    bad(&cut(5, 4), std::slice::from_ref(&x), &["5..4"]);
    bad(&cut(-1, 4), std::slice::from_ref(&x), &["-1..4"]);
    bad(&Op::Slice { axis: 2, start: 0_i64.into(), end: 1_i64.into() }, &[x], &["an axis 2"]);
    bad(&Op::Slice { axis: 0, start: 0_i64.into(), end: sym(0) + 1_i64.into() }, &[f32(&["B"])], &["s0 + 1"]);
}

#[test]
fn reshape_cancels_equal_symbolic_dimensions() {
    let to = |dims: &[&str]| Op::Reshape { shape: shape(dims) };
    let x = f32(&["B", "S", "512"]);
    for dims in
        [&["B", "S", "8", "64"][..], &["S", "B", "512"], &["B", "S", "512", "1"], &["8", "S", "64", "B"]]
    {
        good(&to(dims), std::slice::from_ref(&x), &f32(dims));
    }
    // 8·batch is 8 times batch.
    let folded = Op::Reshape { shape: vec![sym(0).times(8), sym(1), 64_i64.into()] };
    let mut expected = f32(&["B", "S", "64"]);
    expected.shape[0] = sym(0).times(8);
    good(&folded, std::slice::from_ref(&x), &expected);
    for dims in [&["B", "S", "8", "32"][..], &["B", "P", "512"], &["B", "512"], &["B", "B", "512"]] {
        bad(&to(dims), std::slice::from_ref(&x), &["provably as many elements"]);
    }
    bad(&to(&["B", "S", "-512"]), std::slice::from_ref(&x), &["too many elements"]);
    let huge = "4611686018427387904";
    bad(&to(&[huge, huge]), &[x], &["too many elements"]);
}

#[test]
fn transpose() {
    let op = |permutation: &[usize]| Op::Transpose { permutation: permutation.to_vec() };
    let x = f32(&["B", "S", "8", "64"]);
    good(&op(&[0, 2, 1, 3]), std::slice::from_ref(&x), &f32(&["B", "8", "S", "64"]));
    for wrong in [&[0, 2, 1][..], &[0, 1, 2, 2], &[0, 1, 2, 4], &[0, 1, 2, 3, 4]] {
        bad(&op(wrong), std::slice::from_ref(&x), &["permutes"]);
    }
}

#[test]
fn gather() {
    let x = f32(&["B", "10", "64"]);
    good(&Op::Gather { axis: 1 }, &[x.clone(), i64(&["P", "S"])], &f32(&["B", "P", "S", "64"]));
    good(&Op::Gather { axis: 1 }, &[x.clone(), i64(&[])], &f32(&["B", "64"]));
    bad(&Op::Gather { axis: 3 }, &[x.clone(), i64(&["P"])], &["an axis 3"]);
    bad(&Op::Gather { axis: 1 }, &[x.clone(), f32(&["P"])], &["expected i64"]);
    bad(&Op::Gather { axis: 1 }, &[x, i64(&["1"; 7])], &["9 dimensions", "at most 8"]);
}

#[test]
fn cast_changes_the_dtype() {
    good(&Op::Cast { to: DType::F16 }, &[f32(&["B"])], &f16(&["B"]));
    good(&Op::Cast { to: DType::F32 }, &[i64(&["B"])], &f32(&["B"]));
    bad(&Op::Cast { to: DType::F16 }, &[], &["takes 1"]);
}
