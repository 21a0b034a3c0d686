//! Rotary position embedding parameters: from the config's fields to angles per position.
//!
//! The formulas are those of Transformers 5 (`modeling_rope_utils.py`), step by step in fp32 where it computes in
//! fp32, so that the angles agree to the last bit or the one before: at position 100 000 every bit of an angle shows.

use roundhouse_graph::RotaryAttributes;
use serde_json::{Value, json};

use crate::{Config, ConfigError};

/// The names that `rope_type` may have.
const SUPPORTED: &str = "default, linear, llama3 or yarn";

/// What a config says of its rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// `rope_theta`: the base of the angles' geometric series.
    pub theta: f64,
    /// How the angles are stretched for a longer context.
    pub scaling: RopeScaling,
}

/// How the angles are stretched for a longer context: `rope_type` and its parameters, named as in the config.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all (Su et al. 2021).
    Default,
    /// `linear`: all by one factor (Chen et al. 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `llama3`: long wavelengths by the factor, short ones not at all, smoothly between (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// `original_max_position_embeddings / low_freq_factor` is where the factor applies in full.
        low_freq_factor: f64,
        /// `original_max_position_embeddings / high_freq_factor` is where it begins to apply.
        high_freq_factor: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: f64,
    },
    /// `yarn` (Peng et al. 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// Rotations over the original context above which a dimension is not stretched.
        beta_fast: f64,
        /// Rotations over the original context below which a dimension is stretched in full.
        beta_slow: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: f64,
        /// Whether the bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
}

impl RopeParameters {
    /// Reads a model-wide configuration, in either form: `rope_scaling` (with `rope_type` or `type`) beside
    /// `rope_theta`, or `rope_parameters` with `rope_theta` inside. As in Transformers, `rope_scaling` wins where both
    /// are there, and `rope_theta` inside over the one beside.
    ///
    /// # Errors
    /// When a field is missing, malformed, not supported, or not a parameter of its `rope_type`.
    pub fn read(config: &Config<'_>, default_theta: f64) -> Result<Self, ConfigError> {
        let theta = config.optional_positive_number("rope_theta")?.unwrap_or(default_theta);
        let rope_parameters = config.section("rope_parameters")?;
        match config.section("rope_scaling")?.or(rope_parameters) {
            Some(section) => Self::read_section(config, &section, theta),
            None => Ok(Self { theta, scaling: RopeScaling::Default }),
        }
    }

    fn read_section(config: &Config<'_>, section: &Config<'_>, theta: f64) -> Result<Self, ConfigError> {
        let theta = section.optional_positive_number("rope_theta")?.unwrap_or(theta);
        section.refuse_unless("partial_rotary_factor", &[json!(1)])?;
        let legacy = section.optional_string("type")?;
        let rope_type = section.optional_string("rope_type")?.or(legacy).unwrap_or("default");
        let scaling = match rope_type {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: section.positive_number("factor")? },
            "llama3" => Self::read_llama3(config, section)?,
            "yarn" => Self::read_yarn(config, section)?,
            other => {
                let name = if section.contains("rope_type") { "rope_type" } else { "type" };
                return Err(section.unsupported(name, &Value::from(other), SUPPORTED));
            }
        };
        // A parameter of another rope_type would be dropped without a word.
        section.refuse_unread()?;
        Ok(Self { theta, scaling })
    }

    fn read_llama3(config: &Config<'_>, section: &Config<'_>) -> Result<RopeScaling, ConfigError> {
        let low_freq_factor = section.positive_number("low_freq_factor")?;
        let high_freq_factor = section.positive_number("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let expected = format!("a number above low_freq_factor, which is {low_freq_factor}");
            return Err(section.invalid("high_freq_factor", &Value::from(high_freq_factor), &expected));
        }
        Ok(RopeScaling::Llama3 {
            factor: section.positive_number("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original_max_position_embeddings(config, section)?,
        })
    }

    fn read_yarn(config: &Config<'_>, section: &Config<'_>) -> Result<RopeScaling, ConfigError> {
        let original_max_position_embeddings = original_max_position_embeddings(config, section)?;
        let factor = match section.optional_positive_number("factor")? {
            Some(factor) => factor,
            // Written down as null it is the ratio of the two context lengths (DeepSeek-V3); left out it is an error.
            None if section.contains("factor") => {
                f64::from(config.positive("max_position_embeddings")?) / original_max_position_embeddings
            }
            None => return Err(section.missing("factor", "a number above zero")),
        };
        // Zero counts as not given, as Python's `or` has it.
        let given = |name: &str| Ok(section.optional_number(name)?.filter(|&n| n != 0.0));
        let attention_factor = match (
            section.optional_number("attention_factor")?,
            given("mscale")?,
            given("mscale_all_dim")?,
        ) {
            (Some(factor), _, _) => factor,
            (None, Some(mscale), Some(all_dim)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim),
            _ => yarn_mscale(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            original_max_position_embeddings,
            truncate: section.boolean("truncate", true)?,
        })
    }

    /// The attributes of the op for heads of which `rotary_dim` dimensions are rotated.
    #[must_use]
    pub fn attributes(&self, rotary_dim: u32) -> RotaryAttributes {
        let inv_freq = match self.scaling {
            RopeScaling::Default => self.unscaled(rotary_dim),
            RopeScaling::Linear { factor } => {
                self.unscaled(rotary_dim).into_iter().map(|frequency| frequency / factor as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let low_wavelength = (original_max_position_embeddings / low_freq_factor) as f32;
                let high_wavelength = (original_max_position_embeddings / high_freq_factor) as f32;
                let span = (high_freq_factor - low_freq_factor) as f32;
                let stretch = |frequency: f32| {
                    let wavelength = frequency.recip() * std::f64::consts::TAU as f32;
                    if wavelength > low_wavelength {
                        frequency / factor as f32
                    } else if wavelength < high_wavelength {
                        frequency
                    } else {
                        let rotations = wavelength.recip() * original_max_position_embeddings as f32;
                        let smooth = (rotations - low_freq_factor as f32) / span;
                        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                    }
                };
                self.unscaled(rotary_dim).into_iter().map(stretch).collect()
            }
            RopeScaling::Yarn { .. } => self.yarn(rotary_dim),
        };
        let attention_factor = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        RotaryAttributes { inv_freq, attention_factor, interleaved: false }
    }

    /// `theta ^ (2i / rotary_dim)` of each pair. The power is rounded once, as a good fp32 `pow` does.
    fn powers(&self, rotary_dim: u32) -> Vec<f32> {
        let base = f64::from(self.theta as f32);
        let exponent = |index: u32| (2 * index) as f32 / rotary_dim as f32;
        (0..rotary_dim / 2).map(|index| base.powf(f64::from(exponent(index))) as f32).collect()
    }

    fn unscaled(&self, rotary_dim: u32) -> Vec<f32> {
        self.powers(rotary_dim).into_iter().map(f32::recip).collect()
    }

    fn yarn(&self, rotary_dim: u32) -> Vec<f32> {
        let RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            ..
        } = self.scaling
        else {
            return self.unscaled(rotary_dim);
        };
        let dim = f64::from(rotary_dim);
        // The dimension that turns this often over the original context.
        let correction_dim = |rotations: f64| {
            dim * (original_max_position_embeddings / (rotations * std::f64::consts::TAU)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (correction_dim(beta_fast), correction_dim(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretch = |(index, power): (usize, f32)| {
            let ramp = ((index as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            (factor as f32 * power).recip() * (1.0 - kept) + power.recip() * kept
        };
        self.powers(rotary_dim).into_iter().enumerate().map(stretch).collect()
    }
}

/// `0.1 · mscale · ln(factor) + 1` (Peng et al. 2023, equation 22).
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// As in Transformers: beside the section it wins over inside, and the model's own context length is the fallback.
fn original_max_position_embeddings(config: &Config<'_>, section: &Config<'_>) -> Result<f64, ConfigError> {
    const NAME: &str = "original_max_position_embeddings";
    let inside = section.optional_positive(NAME)?;
    let beside = config.optional_positive(NAME)?;
    match beside.or(inside) {
        Some(length) => Ok(f64::from(length)),
        None => Ok(f64::from(config.positive("max_position_embeddings")?)),
    }
}
