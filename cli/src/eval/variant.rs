//! A way to keep the same model's weights, to be compared with others.

use std::str::FromStr;

use anyhow::ensure;
use roundhouse_proto::compiler::{Calibration, CompileOptions, Precision, WeightFormat, WeightQuantization};
use roundhouse_proto::executor::LoadedEngine;

use crate::quantization;

/// A way to keep a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// In a precision, decoded where the checkpoint has them quantised.
    Precision(Precision),
    /// In a form of their own, in an engine of the precision that the other flags ask for.
    Quantized(WeightQuantization),
}

/// A name of [`Variant`] that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnknownVariant {
    /// Not a known word.
    #[error(
        "unknown variant {0:?}: expected one of fp32, fp16, bf16, checkpoint, int8, int4, fp8, or with a group size \
         int8:64, int4:64, fp8:64, or without offsets int4:symmetric, int4:64:symmetric, or \
         without calibration int4:uncalibrated, int4:symmetric:uncalibrated"
    )]
    Name(String),
    /// A group size that is none, or of a form that has none.
    #[error("{0:?}: the group size is no positive number, or of a form that has none")]
    GroupSize(String),
}

impl FromStr for Variant {
    type Err = UnknownVariant;

    fn from_str(text: &str) -> Result<Self, UnknownVariant> {
        let lower = text.to_ascii_lowercase();
        let (form, calibration) = match lower.strip_suffix(":uncalibrated") {
            Some(form) => (form, Some(Calibration::None.into())),
            None => (lower.as_str(), None),
        };
        let (form, symmetric) = match form.strip_suffix(":symmetric") {
            Some(form) => (form, Some(true)),
            None => (form, None),
        };
        let (name, group_size) = match form.split_once(':') {
            Some((name, size)) => (name, Some(size)),
            None => (form, None),
        };
        if (symmetric.is_some() || calibration.is_some()) && name != "int4" {
            return Err(UnknownVariant::Name(text.to_owned()));
        }
        let bad_group_size = || UnknownVariant::GroupSize(text.to_owned());
        let group_size = group_size
            .map(|size| size.parse().ok().filter(|&size: &u32| size > 0).ok_or_else(bad_group_size))
            .transpose()?;
        let quantized = |format: WeightFormat| {
            let format = format.into();
            Ok(Self::Quantized(WeightQuantization { format, group_size, symmetric, calibration }))
        };
        let whole = |variant| if group_size.is_some() { Err(bad_group_size()) } else { Ok(variant) };
        match name {
            "fp32" => whole(Self::Precision(Precision::Fp32)),
            "fp16" => whole(Self::Precision(Precision::Fp16)),
            "bf16" => whole(Self::Precision(Precision::Bf16)),
            "checkpoint" => whole(quantized(WeightFormat::Checkpoint)?),
            "int8" => quantized(WeightFormat::Int8),
            "int4" => quantized(WeightFormat::Int4),
            "fp8" => quantized(WeightFormat::Fp8),
            _ => Err(UnknownVariant::Name(text.to_owned())),
        }
    }
}

impl Variant {
    /// Asks for it.
    pub(super) fn apply(self, options: &mut CompileOptions) {
        let (precision, quantization) = match self {
            Self::Precision(precision) => {
                let none =
                    WeightQuantization { format: WeightFormat::None.into(), ..WeightQuantization::default() };
                (Some(precision.into()), none)
            }
            Self::Quantized(quantization) => (options.precision, quantization),
        };
        options.precision = precision;
        options.quantization = Some(quantization);
    }

    /// Checks that an engine is what was asked for: a number measured on another one would be of no use.
    pub(super) fn check(self, engine: &LoadedEngine) -> anyhow::Result<()> {
        let (precision, quantization) = match self {
            Self::Precision(precision) => (precision.as_str_name().strip_prefix("PRECISION_"), "none".into()),
            Self::Quantized(quantization) => (None, quantization::name(Some(&quantization))),
        };
        let found = engine.quantization.as_str();
        let uncalibrated =
            matches!(self, Self::Quantized(asked) if asked.calibration == Some(Calibration::None.into()));
        // Without a group size any is right.
        let (form, size) = parts(found);
        let (asked_form, asked_size) = parts(&quantization);
        let matches = form == asked_form
            && !(uncalibrated && found.ends_with(CALIBRATED))
            && (asked_size.is_none() || asked_size == size);
        ensure!(
            matches && precision.is_none_or(|precision| precision.eq_ignore_ascii_case(&engine.precision)),
            "the engine {} is {} with weights {found}, asked for were weights {quantization}{}",
            engine.engine_key,
            engine.precision,
            precision.map(|precision| format!(" in {}", precision.to_lowercase())).unwrap_or_default()
        );
        Ok(())
    }
}

/// The end of the name of calibrated weights.
const CALIBRATED: &str = ":calibrated";

/// The format with whether it is symmetric, and the group size, of a name such as `int4:32:symmetric`.
fn parts(name: &str) -> ((&str, bool), Option<&str>) {
    let name = name.strip_suffix(CALIBRATED).unwrap_or(name);
    let (form, symmetric) = name.strip_suffix(":symmetric").map_or((name, false), |form| (form, true));
    match form.split_once(':') {
        Some((format, size)) => ((format, symmetric), Some(size)),
        None => ((form, symmetric), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> (Precision, WeightFormat, Option<u32>) {
        let mut options =
            CompileOptions { precision: Some(Precision::Bf16.into()), ..CompileOptions::default() };
        text.parse::<Variant>().unwrap().apply(&mut options);
        let quantization = options.quantization.unwrap();
        (options.precision(), quantization.format(), quantization.group_size)
    }

    #[test]
    fn precisions_are_set_and_quantised_weights_keep_the_other_flags_precision() {
        assert_eq!(options("fp32"), (Precision::Fp32, WeightFormat::None, None));
        assert_eq!(options("FP16"), (Precision::Fp16, WeightFormat::None, None));
        assert_eq!(options("bf16"), (Precision::Bf16, WeightFormat::None, None));
        assert_eq!(options("int8"), (Precision::Bf16, WeightFormat::Int8, None));
        assert_eq!(options("int4:64"), (Precision::Bf16, WeightFormat::Int4, Some(64)));
        assert_eq!(options("fp8:256"), (Precision::Bf16, WeightFormat::Fp8, Some(256)));
        assert_eq!(options("checkpoint"), (Precision::Bf16, WeightFormat::Checkpoint, None));
    }

    #[test]
    fn what_is_no_variant_is_refused() {
        for (text, named) in [
            ("int3", "int3"),
            ("", "expected one of"),
            ("none", "expected one of"),
            ("int8:symmetric", "int8"),
            ("int8:uncalibrated", "int8"),
        ] {
            assert!(text.parse::<Variant>().unwrap_err().to_string().contains(named), "{text}");
        }
        for text in ["int4:", "int4:0", "int4:x", "fp16:64", "checkpoint:64"] {
            assert_eq!(text.parse::<Variant>(), Err(UnknownVariant::GroupSize(text.to_owned())));
        }
    }

    #[test]
    fn an_engine_that_is_something_else_is_an_error() {
        let engine = |precision: &str, quantization: &str| LoadedEngine {
            precision: precision.to_owned(),
            quantization: quantization.to_owned(),
            ..LoadedEngine::default()
        };
        let check = |variant: &str, engine: &LoadedEngine| variant.parse::<Variant>().unwrap().check(engine);
        for (variant, precision, quantization) in [
            ("fp16", "fp16", "none"),
            ("int8", "fp16", "int8:128"),
            ("int4:64", "fp32", "int4:64"),
            ("int4:symmetric", "fp16", "int4:32:symmetric"),
            ("int4:64:symmetric", "fp16", "int4:64:symmetric"),
            ("int4", "fp16", "int4:32:calibrated"),
            ("int4:uncalibrated", "fp16", "int4:32"),
            ("int4:32:symmetric:uncalibrated", "fp16", "int4:32:symmetric"),
            ("checkpoint", "fp16", "checkpoint"),
        ] {
            check(variant, &engine(precision, quantization)).unwrap();
        }
        for (variant, precision, quantization) in [
            ("fp16", "fp32", "none"),
            ("fp16", "fp16", "checkpoint"),
            ("int8", "fp16", "none"),
            ("int8", "fp16", "int4:32"),
            ("int4:64", "fp16", "int4:32"),
            ("int4", "fp16", "int4:32:symmetric"),
            ("int4:symmetric", "fp16", "int4:32"),
            ("int4:uncalibrated", "fp16", "int4:32:calibrated"),
        ] {
            let error = check(variant, &engine(precision, quantization)).unwrap_err().to_string();
            assert!(error.contains(quantization), "{error}");
        }
    }
}
