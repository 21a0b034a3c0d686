//! The `rope_scaling` of a config, from metadata or from a tensor of frequency factors.

use serde_json::{Value, json};

use crate::HubError;

use super::architecture::unsupported;
use super::config::shortest;
use super::container::Container;
use super::quantisation::BlockType;

/// The tensor in which files of Llama 3.1 and later have what each rotary frequency is divided by: `[head_dim / 2]`.
pub(crate) const FREQUENCY_FACTORS: &str = "rope_freqs.weight";
/// The tensors in which files of Phi-3 and Phi-4 have `longrope`'s factors, each `[rotary_dim / 2]`.
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// The tensors that are no weights but part of the config.
pub(crate) const FACTORS: [&str; 3] = [FREQUENCY_FACTORS, LONG_FACTORS, SHORT_FACTORS];
/// What llama.cpp uses when a file has no `rope.freq_base`.
pub(crate) const DEFAULT_THETA: f64 = 10_000.0;

/// The context that Llama 3 was trained on, and its bounds of low and high frequency: the values of every
/// `"rope_type": "llama3"` config. A file has only what they lead to, so they are checked against it.
const LLAMA3_ORIGINAL_CONTEXT: u32 = 8192;
const LLAMA3_LOW_FREQUENCY_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY_FACTOR: f64 = 4.0;
/// Relative; the factors are single-precision.
const TOLERANCE: f64 = 1e-4;

/// The config's `rope_scaling`, if the file scales.
///
/// # Errors
/// When it scales in a way that no `rope_scaling` describes.
pub(crate) fn scaling(
    container: &Container,
    architecture: &str,
    theta: f64,
    head_dim: u64,
) -> Result<Option<Value>, HubError> {
    let metadata = &container.metadata;
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    if let Some(factors) = read_factors(container, FREQUENCY_FACTORS, head_dim / 2)? {
        let Some(factor) = llama3_factor(&factors, theta) else {
            let found = format!("tensor {FREQUENCY_FACTORS:?} that is not Llama 3's scaling");
            return Err(unsupported(metadata, found, "no such tensor, or Llama 3's"));
        };
        return Ok((factor != 1.0).then(|| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LLAMA3_LOW_FREQUENCY_FACTOR,
                "high_freq_factor": LLAMA3_HIGH_FREQUENCY_FACTOR,
                "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT,
            })
        }));
    }
    let Some(kind) = metadata.string(&key("type"))?.filter(|&kind| kind != "none") else { return Ok(None) };
    let factor = shortest(metadata.required(&key("factor"), metadata.f64(&key("factor"))?)?);
    match kind {
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
        "yarn" => {
            let context = key("original_context_length");
            let context = metadata.required(&context, metadata.u64(&context)?)?;
            Ok(Some(json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": context,
            })))
        }
        other => Err(unsupported(metadata, format!("rope scaling {other:?}"), "none, linear, yarn")),
    }
}

/// The config's `rope_scaling` of an architecture that has `longrope`'s factors in tensors, if the file has them.
///
/// # Errors
/// When it has one and not the other, or they are no vectors of half the rotated dimensions.
pub(crate) fn longrope(
    container: &Container,
    architecture: &str,
    rotary_dim: u64,
) -> Result<Option<Value>, HubError> {
    let metadata = &container.metadata;
    let read = |name| read_factors(container, name, rotary_dim / 2);
    match (read(SHORT_FACTORS)?, read(LONG_FACTORS)?) {
        (None, None) => Ok(None),
        (Some(short), Some(long)) => {
            let attention_factor = metadata.f64(&format!("{architecture}.rope.scaling.attn_factor"))?;
            let list = |factors: Vec<f64>| factors.into_iter().map(shortest).collect::<Vec<_>>();
            Ok(Some(json!({
                "rope_type": "longrope",
                "short_factor": list(short),
                "long_factor": list(long),
                "attention_factor": attention_factor.map(shortest),
            })))
        }
        _ => {
            let what = format!("of tensors {SHORT_FACTORS:?} and {LONG_FACTORS:?}, one is missing");
            Err(HubError::corrupt(&metadata.path, what))
        }
    }
}

/// A vector of factors; `None` where there is no such tensor.
fn read_factors(container: &Container, name: &str, length: u64) -> Result<Option<Vec<f64>>, HubError> {
    let Some(info) = container.tensors.get(name) else { return Ok(None) };
    let path = container.file.path();
    if info.kind != BlockType::F32 || info.shape != [length] {
        let what = format!("tensor {name:?} is {:?} of {:?}", info.kind, info.shape);
        return Err(HubError::corrupt(path, what));
    }
    let mut factors = Vec::new();
    container
        .file
        .for_each_chunk(info.offset, info.bytes, 4, |chunk| {
            factors.extend(chunk.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))));
        })
        .map_err(HubError::io(path))?;
    Ok(Some(factors))
}

/// The `factor` of a `llama3` scaling, when the factors are what it leads to.
///
/// Wavelengths beyond `context / low` are divided by the whole factor, those within `context / high` by 1, and those
/// between by a blend of both (`_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
fn llama3_factor(factors: &[f64], theta: f64) -> Option<f64> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let context = f64::from(LLAMA3_ORIGINAL_CONTEXT);
    let pairs = factors.len() as f64;
    let expected = (0..factors.len()).map(|index| {
        let wavelength = std::f64::consts::TAU * theta.powf(index as f64 / pairs);
        let turns = context / wavelength;
        let blend = (turns - LLAMA3_LOW_FREQUENCY_FACTOR)
            / (LLAMA3_HIGH_FREQUENCY_FACTOR - LLAMA3_LOW_FREQUENCY_FACTOR);
        let blend = blend.clamp(0.0, 1.0);
        1.0 / ((1.0 - blend) / factor + blend)
    });
    let matches =
        factors.iter().zip(expected).all(|(found, expected)| (found / expected - 1.0).abs() < TOLERANCE);
    matches.then(|| shortest(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rope_freqs.weight` of Llama 3.2 1B (theta 500000, 32 pairs, factor 32), as llama.cpp's converter makes it.
    fn llama32() -> Vec<f64> {
        let (factor, low, high, context) = (32.0, 1.0, 4.0, 8192.0);
        (0..32)
            .map(|pair| {
                let frequency = 1.0 / 500_000f64.powf(f64::from(pair) * 2.0 / 64.0);
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < context / high {
                    1.0
                } else if wavelength > context / low {
                    factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    f64::from((1.0 / ((1.0 - smooth) / factor + smooth)) as f32)
                }
            })
            .collect()
    }

    #[test]
    fn llama3_factors_give_their_factor_back() {
        assert_eq!(llama3_factor(&llama32(), 500_000.0), Some(32.0));
        assert_eq!(llama3_factor(&[1.0; 32], 500_000.0), Some(1.0));
    }

    #[test]
    fn other_factors_are_not_taken_for_llama3() {
        let mut factors = llama32();
        assert_eq!(llama3_factor(&factors, 10_000.0), None);
        factors[20] *= 1.01;
        assert_eq!(llama3_factor(&factors, 500_000.0), None);
        assert_eq!(llama3_factor(&[f64::NAN; 32], 500_000.0), None);
    }
}
