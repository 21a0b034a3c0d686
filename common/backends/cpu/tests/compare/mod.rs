//! Logits against the interpreter's.

use roundhouse_backend_conformance::{Interpreter, Tensor};

/// The interpreter's logits for one sequence whose first position is `past`.
pub(crate) fn expected(interpreter: &Interpreter, tokens: &[u32], past: usize) -> Vec<f32> {
    let row = [1, tokens.len()];
    let number = |number: usize| Tensor::int(&[1], vec![number as i64]);
    let inputs = interpreter.graph().inputs().iter().map(|&id| {
        let name = interpreter.graph().value(id).name.as_str();
        let tensor = match name {
            "input_ids" => Tensor::int(&row, tokens.iter().map(|&token| i64::from(token)).collect()),
            "position_ids" => Tensor::int(&row, (past as i64..).take(tokens.len()).collect()),
            "write_indices" => number(past),
            "kv_lengths" => number(past + tokens.len()),
            _ => panic!("{name}"),
        };
        (name, tensor)
    });
    interpreter.run(inputs).unwrap()["logits"].floats().to_vec()
}

/// Fails unless all logits are equal but for the order of sums.
pub(crate) fn assert_close(case: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = 2e-4 * expected.abs().max(1.0);
        assert!((found - expected).abs() <= allowed, "{case}: logit {at} is {found}, expected {expected}");
    }
}
