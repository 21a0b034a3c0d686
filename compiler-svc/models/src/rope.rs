//! Rotary position embedding parameters: from the config's fields to angles per position.
//!
//! The formulas are those of Transformers 5 (`modeling_rope_utils.py`), step by step in fp32 where it computes in
//! fp32, so that the angles agree to the last bit or the one before: at position 100 000 every bit of an angle shows.

use roundhouse_graph::RotaryAttributes;
use serde_json::{Value, json};

use crate::{Config, ConfigError};

/// How a family's configs describe their rotary embedding, where families differ.
#[derive(Debug, Clone, Copy)]
pub struct RopeForm {
    /// `rope_theta` where the config has none.
    pub default_theta: f64,
    /// The names that `rope_type` may have.
    pub rope_types: &'static [&'static str],
    /// Names of `rope_type` in older checkpoints of the family, each with the one that it means.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Whether `partial_rotary_factor` may be below 1.
    pub partial: bool,
    /// `original_max_position_embeddings` where the config has none beside the section, whatever is inside.
    pub default_original_max_position_embeddings: Option<u32>,
    /// `mrope_section` where the config has none, in a family whose positions have several axes; no other has the field.
    pub default_sections: &'static [u32],
}

impl RopeForm {
    /// The form of most families.
    #[must_use]
    pub const fn new(default_theta: f64) -> Self {
        Self {
            default_theta,
            rope_types: &["default", "linear", "llama3", "yarn", "longrope"],
            aliases: &[],
            partial: false,
            default_original_max_position_embeddings: None,
            default_sections: &[],
        }
    }
}

/// What a config says of its rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// `rope_theta`: the base of the angles' geometric series.
    pub theta: f64,
    /// How many leading dimensions of a head are rotated.
    pub rotary_dim: u32,
    /// How the angles are stretched for a longer context.
    pub scaling: RopeScaling,
    /// `mrope_section`: how many pairs turn by the position along each axis; empty where positions have one.
    pub sections: Vec<u32>,
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
    /// `longrope` (Ding et al. 2024): a factor for each pair of dimensions, from one of two lists.
    LongRope {
        /// Divisors for sequences within the original context.
        short_factor: Vec<f32>,
        /// Divisors for longer sequences.
        long_factor: Vec<f32>,
        /// Factor on cosine and sine.
        attention_factor: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: u32,
    },
}

impl RopeParameters {
    /// Reads a model-wide configuration of heads of `head_dim`, in either form: `rope_scaling` (with `rope_type` or
    /// `type`) beside `rope_theta`, or `rope_parameters` with `rope_theta` inside. As in Transformers, `rope_scaling`
    /// wins where both are there, and what is inside over the same beside.
    ///
    /// # Errors
    /// When a field is missing, malformed, not supported, or not a parameter of its `rope_type`.
    pub fn read(config: &Config<'_>, form: &RopeForm, head_dim: u32) -> Result<Self, ConfigError> {
        let theta = config.optional_positive_number("rope_theta")?.unwrap_or(form.default_theta);
        let rope_parameters = config.section("rope_parameters")?;
        match config.section("rope_scaling")?.or(rope_parameters) {
            Some(section) => Self::read_section(config, &section, form, theta, head_dim),
            None => {
                let rotary_dim = rotary_dim(config, config, form, head_dim)?;
                let sections = sections(config, form, rotary_dim)?;
                Ok(Self { theta, rotary_dim, scaling: RopeScaling::Default, sections })
            }
        }
    }

    /// Reads one section. `theta` is for where it has none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_section(
        config: &Config<'_>,
        section: &Config<'_>,
        form: &RopeForm,
        theta: f64,
        head_dim: u32,
    ) -> Result<Self, ConfigError> {
        let theta = section.optional_positive_number("rope_theta")?.unwrap_or(theta);
        let rotary_dim = rotary_dim(config, section, form, head_dim)?;
        let legacy = section.optional_string("type")?;
        let written = section.optional_string("rope_type")?.or(legacy).unwrap_or("default");
        let alias = form.aliases.iter().find(|(alias, _)| *alias == written);
        let rope_type = alias.map_or(written, |&(_, meaning)| meaning);
        let original = |section| original_max_position_embeddings(config, section, form);
        let scaling = match rope_type {
            other if !form.rope_types.contains(&other) => None,
            "default" => Some(RopeScaling::Default),
            "linear" => Some(RopeScaling::Linear { factor: section.positive_number("factor")? }),
            "llama3" => Some(Self::read_llama3(section, original(section)?)?),
            "yarn" => Some(Self::read_yarn(config, section, original(section)?)?),
            "longrope" => Some(Self::read_longrope(config, section, original(section)?, rotary_dim)?),
            _ => None,
        };
        let Some(scaling) = scaling else {
            let name = if section.contains("rope_type") { "rope_type" } else { "type" };
            return Err(section.unsupported(name, &Value::from(written), &one_of(form.rope_types)));
        };
        let sections = sections(section, form, rotary_dim)?;
        // A parameter of another rope_type would be dropped without a word.
        section.refuse_unread()?;
        Ok(Self { theta, rotary_dim, scaling, sections })
    }

    fn read_llama3(section: &Config<'_>, original: u32) -> Result<RopeScaling, ConfigError> {
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
            original_max_position_embeddings: f64::from(original),
        })
    }

    fn read_yarn(
        config: &Config<'_>,
        section: &Config<'_>,
        original: u32,
    ) -> Result<RopeScaling, ConfigError> {
        let original_max_position_embeddings = f64::from(original);
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

    fn read_longrope(
        config: &Config<'_>,
        section: &Config<'_>,
        original: u32,
        rotary_dim: u32,
    ) -> Result<RopeScaling, ConfigError> {
        let pairs = usize::try_from(rotary_dim / 2).unwrap_or(usize::MAX);
        let factors = |name| -> Result<Vec<f32>, ConfigError> {
            Ok(section.positive_numbers(name, pairs)?.into_iter().map(|factor| factor as f32).collect())
        };
        let factor = match section.optional_positive_number("factor")? {
            Some(factor) => factor,
            None => f64::from(config.positive("max_position_embeddings")?) / f64::from(original),
        };
        let attention_factor = match section.optional_positive_number("attention_factor")? {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / f64::from(original).ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            attention_factor,
            original_max_position_embeddings: original,
        })
    }

    /// The attributes of the op, in an engine whose sequences have at most `max_seq_len` tokens.
    ///
    /// Transformers takes `longrope`'s long factors from the step on in which a sequence outgrows the original
    /// context, and computes all its keys anew then. Here an engine has one set: the short factors where all its
    /// sequences fit the original context, else the long ones.
    #[must_use]
    pub fn attributes(&self, max_seq_len: u32) -> RotaryAttributes {
        let rotary_dim = self.rotary_dim;
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
            RopeScaling::LongRope {
                ref short_factor,
                ref long_factor,
                original_max_position_embeddings,
                ..
            } => {
                let fits = max_seq_len <= original_max_position_embeddings;
                let factors = if fits { short_factor } else { long_factor };
                let powers = self.powers(rotary_dim);
                factors.iter().zip(powers).map(|(factor, power)| (factor * power).recip()).collect()
            }
        };
        let attention_factor = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        };
        RotaryAttributes { inv_freq, attention_factor, interleaved: false, sections: self.sections.clone() }
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

/// The leading dimensions of a head that are rotated: `partial_rotary_factor` of them, rounded down.
fn rotary_dim(
    config: &Config<'_>,
    section: &Config<'_>,
    form: &RopeForm,
    head_dim: u32,
) -> Result<u32, ConfigError> {
    const NAME: &str = "partial_rotary_factor";
    if !form.partial {
        config.refuse_unless(NAME, &[json!(1)])?;
        section.refuse_unless(NAME, &[json!(1)])?;
        return Ok(head_dim);
    }
    let beside = config.optional_positive_number(NAME)?;
    let factor = section.optional_positive_number(NAME)?.or(beside).unwrap_or(1.0);
    let rotary_dim = (f64::from(head_dim) * factor) as u32;
    if factor > 1.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        let expected =
            format!("a number up to 1 that makes an even number of the {head_dim} dimensions of a head");
        let place = if section.get(NAME).is_some() { section } else { config };
        return Err(place.invalid(NAME, &Value::from(factor), &expected));
    }
    Ok(rotary_dim)
}

/// `mrope_section` of a section: as many pairs in all as turn. Empty in a family whose positions have one axis.
fn sections(section: &Config<'_>, form: &RopeForm, rotary_dim: u32) -> Result<Vec<u32>, ConfigError> {
    const NAME: &str = "mrope_section";
    let axes = form.default_sections.len();
    if axes == 0 {
        return Ok(Vec::new());
    }
    let parse = |value: &Value| value.as_u64().and_then(|pairs| u32::try_from(pairs).ok());
    let found = match section.optional_list(NAME)? {
        Some(list) => list.iter().map(parse).collect::<Option<Vec<u32>>>(),
        None => Some(form.default_sections.to_vec()),
    };
    let pairs = u64::from(rotary_dim / 2);
    let fits = |found: &Vec<u32>| {
        found.len() == axes && found.iter().map(|&pairs| u64::from(pairs)).sum::<u64>() == pairs
    };
    found.filter(fits).ok_or_else(|| {
        let value = section.get(NAME).cloned().unwrap_or_default();
        section.invalid(NAME, &value, &format!("{axes} numbers of pairs, {pairs} in all"))
    })
}

/// As in Transformers: beside the section it wins over inside, and the model's own context length is the fallback.
fn original_max_position_embeddings(
    config: &Config<'_>,
    section: &Config<'_>,
    form: &RopeForm,
) -> Result<u32, ConfigError> {
    const NAME: &str = "original_max_position_embeddings";
    let inside = section.optional_positive(NAME)?;
    let beside = config.optional_positive(NAME)?;
    match beside.or(form.default_original_max_position_embeddings).or(inside) {
        Some(length) => Ok(length),
        None => config.positive("max_position_embeddings"),
    }
}

/// `a, b or c`.
fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}
