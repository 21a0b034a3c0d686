//! When logits are equal.

use roundhouse_backend::WeightSource;
use roundhouse_engine::Precision;
use roundhouse_graph::Graph;

use super::Failure;
use crate::{Interpreter, RoundedWeights, Tensor};

/// How far logits may be from the reference, relative to the largest of them.
///
/// Half-precision engines round every activation they store, each by at most `u`, half the spacing of numbers near 1
/// (`2⁻¹¹` for fp16, `2⁻⁸` for bf16). A tiny model stores some 30 values one after another, whose errors add up like a
/// random walk, `√30 · u`, and sums of up to 100 products of them spread by about as much again at the worst of some
/// hundred logits: `16 u` holds with room, and is far below what any wrong index, scale or mask does. In fp32 only the
/// order of sums differs from the reference, at most `100 · 2⁻²⁴` a sum.
fn tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::Fp32 => 5e-5,
        Precision::Fp16 => 16.0 / 2048.0,
        Precision::Bf16 => 16.0 / 256.0,
    }
}

/// Fails unless `found` is `expected` within the precision's tolerance.
pub(super) fn equal(
    case: &str,
    precision: Precision,
    found: &[f32],
    expected: &[f32],
) -> Result<(), Failure> {
    if found.len() != expected.len() {
        let what = format!("{} logits, expected {}", found.len(), expected.len());
        return Err(Failure::departure(case, what));
    }
    let largest = expected.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
    let allowed = tolerance(precision) * largest;
    let worst = found.iter().zip(expected).enumerate().map(|(at, (found, expected))| {
        let difference = (found - expected).abs();
        (at, if difference.is_nan() { f32::INFINITY } else { difference })
    });
    match worst.max_by(|a, b| a.1.total_cmp(&b.1)) {
        Some((at, difference)) if difference > allowed => Err(Failure::departure(
            case,
            format!(
                "logit {at} is {}, expected {}: off by {difference:e}, allowed {allowed:e}",
                found[at], expected[at]
            ),
        )),
        _ => Ok(()),
    }
}

/// Fails unless the logit of `token` is the largest of a row within the precision's tolerance.
pub(super) fn among_the_largest(
    case: &str,
    precision: Precision,
    row: &[f32],
    token: u32,
) -> Result<(), Failure> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = row.iter().fold(1.0_f32, |scale, value| scale.max(value.abs()));
    let found = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    // Both the largest and the one found may be off.
    match found >= largest - 2.0 * tolerance(precision) * scale {
        true => Ok(()),
        false => Err(Failure::departure(
            case,
            format!("token {token} was found, whose logit is {found}; the largest is {largest}"),
        )),
    }
}

/// The logits that a model's graph has, by the interpreter, without a cache, in fp32, with the weights that an engine
/// of the precision has.
pub(super) struct Expected {
    interpreter: Interpreter,
}

impl Expected {
    pub(super) fn new(
        case: &str,
        graph: &Graph,
        weights: &dyn WeightSource,
        precision: Precision,
    ) -> Result<Self, Failure> {
        let weights = RoundedWeights::new(weights, precision.dtype());
        let interpreter =
            Interpreter::new(graph, &weights).map_err(|error| Failure::reference(case, error))?;
        Ok(Self { interpreter })
    }

    /// The logits after each of the tokens, `[tokens, vocab_size]`.
    pub(super) fn logits(&self, case: &str, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
        let shape = [1, tokens.len()];
        let ids = tokens.iter().map(|&token| i64::from(token)).collect();
        let positions = (0..tokens.len() as i64).collect();
        let inputs =
            [("input_ids", Tensor::int(&shape, ids)), ("position_ids", Tensor::int(&shape, positions))];
        let outputs = self.interpreter.run(inputs).map_err(|error| Failure::reference(case, error))?;
        let logits = outputs.get("logits").map(|tensor| tensor.floats().to_vec());
        logits.ok_or_else(|| Failure::departure(case, "the graph has no output \"logits\""))
    }
}
