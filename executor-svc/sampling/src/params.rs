//! How the next token is chosen.

use crate::SamplingError;

/// The longest sequence of tokens that can be kept from coming again.
pub const MAX_NGRAM: u32 = 256;

/// Sampling parameters as a request gives them. Unset everywhere is greedy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; at least 0. 0 or unset: greedy, and top-k, top-p, min-p and the seed have no effect.
    pub temperature: Option<f32>,
    /// Only the k most probable tokens, and those as probable as the last of them. 0 or unset: all.
    pub top_k: Option<u32>,
    /// Only the smallest set of most probable tokens whose probabilities sum to at least p, more than 0 and at most 1
    /// (Holtzman et al. 2020, The Curious Case of Neural Text Degeneration). 1 or unset: all.
    pub top_p: Option<f32>,
    /// Only tokens at least this times as probable as the most probable one, from 0 to 1 (Nguyen et al. 2024, Turning
    /// Up the Heat). 0 or unset: all.
    pub min_p: Option<f32>,
    /// Only the tokens whose surprise is nearest to the expected one and whose probabilities sum to at least p, more than
    /// 0 and at most 1 (Meister et al. 2023, Locally Typical Sampling). 1 or unset: all.
    pub typical_p: Option<f32>,
    /// No sequence of so many tokens of prompt and output comes again, at most [`MAX_NGRAM`]. 0 or unset: any may.
    pub no_repeat_ngram_size: Option<u32>,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; more than 0 (Keskar et al. 2019,
    /// CTRL). 1 or unset: none.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logits of tokens in the output, from -2 to 2. 0 or unset: none.
    pub presence_penalty: Option<f32>,
    /// Subtracted for each occurrence in the output, from -2 to 2. 0 or unset: none.
    pub frequency_penalty: Option<f32>,
    /// Makes sampling repeatable. Unset: random.
    pub seed: Option<u64>,
}

impl SamplingParams {
    /// Checks every parameter.
    ///
    /// # Errors
    /// [`SamplingError::InvalidParameter`] names the first that is outside its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |field, value: Option<f32>, expected, is_valid: fn(f32) -> bool| match value {
            Some(value) if !is_valid(value) => {
                Err(SamplingError::InvalidParameter { field, value, expected })
            }
            _ => Ok(()),
        };
        let penalty = |value: f32| (-2.0..=2.0).contains(&value);
        check("temperature", self.temperature, "a finite number, at least 0", |t| t.is_finite() && t >= 0.0)?;
        check("top_p", self.top_p, "more than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
        check("min_p", self.min_p, "a number from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        check("typical_p", self.typical_p, "more than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
        // Exact: so small an integer is a number in single precision.
        let ngram = self.no_repeat_ngram_size.map(|size| size.min(MAX_NGRAM + 1) as f32);
        check("no_repeat_ngram_size", ngram, "at most 256", |size| size <= MAX_NGRAM as f32)?;
        check("repetition_penalty", self.repetition_penalty, "a finite number, more than 0", |r| {
            r.is_finite() && r > 0.0
        })?;
        check("presence_penalty", self.presence_penalty, "a number from -2 to 2", penalty)?;
        check("frequency_penalty", self.frequency_penalty, "a number from -2 to 2", penalty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_outside_its_range_is_named() {
        let unset = SamplingParams::default();
        let invalid = [
            ("temperature", SamplingParams { temperature: Some(-0.1), ..unset }),
            ("temperature", SamplingParams { temperature: Some(f32::NAN), ..unset }),
            ("temperature", SamplingParams { temperature: Some(f32::INFINITY), ..unset }),
            ("top_p", SamplingParams { top_p: Some(0.0), ..unset }),
            ("top_p", SamplingParams { top_p: Some(1.1), ..unset }),
            ("top_p", SamplingParams { top_p: Some(f32::NAN), ..unset }),
            ("min_p", SamplingParams { min_p: Some(-0.1), ..unset }),
            ("min_p", SamplingParams { min_p: Some(f32::NAN), ..unset }),
            ("typical_p", SamplingParams { typical_p: Some(0.0), ..unset }),
            ("typical_p", SamplingParams { typical_p: Some(f32::NAN), ..unset }),
            ("no_repeat_ngram_size", SamplingParams { no_repeat_ngram_size: Some(257), ..unset }),
            ("repetition_penalty", SamplingParams { repetition_penalty: Some(0.0), ..unset }),
            ("repetition_penalty", SamplingParams { repetition_penalty: Some(f32::INFINITY), ..unset }),
            ("presence_penalty", SamplingParams { presence_penalty: Some(2.1), ..unset }),
            ("frequency_penalty", SamplingParams { frequency_penalty: Some(f32::NAN), ..unset }),
        ];
        for (name, params) in invalid {
            let error = params.validate().unwrap_err();
            assert!(
                matches!(error, SamplingError::InvalidParameter { field, .. } if field == name),
                "{error}"
            );
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_valid() {
        let low = SamplingParams {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(f32::MIN_POSITIVE),
            min_p: Some(0.0),
            typical_p: Some(f32::MIN_POSITIVE),
            no_repeat_ngram_size: Some(0),
            repetition_penalty: Some(f32::MIN_POSITIVE),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(-2.0),
            seed: Some(0),
        };
        let high = SamplingParams {
            temperature: Some(f32::MAX),
            top_k: Some(u32::MAX),
            top_p: Some(1.0),
            min_p: Some(1.0),
            typical_p: Some(1.0),
            no_repeat_ngram_size: Some(MAX_NGRAM),
            repetition_penalty: Some(f32::MAX),
            presence_penalty: Some(2.0),
            frequency_penalty: Some(2.0),
            seed: Some(u64::MAX),
        };
        for params in [SamplingParams::default(), low, high] {
            assert_eq!(params.validate(), Ok(()));
        }
    }
}
