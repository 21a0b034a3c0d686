//! How an engine's weights are kept: the flags that ask for it, and what was built, for people.

use std::collections::HashMap;
use std::str::FromStr;

use clap::Args;
use roundhouse_engine::UnknownName;
use roundhouse_proto::compiler::{Calibration, PassReport, WeightFormat, WeightQuantization};

/// What the compiler counts beside others in the report of the pass that quantises: millionths lost of all weights, and
/// of those that lost most.
const RELATIVE_ERROR: &str = "relative_error_ppm";
const RELATIVE_ERROR_OF: &str = "relative_error_ppm of ";

/// How weights are kept.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct QuantizationArgs {
    /// auto, none, checkpoint, int8, int4 or fp8: how the weights of matrix products are kept. auto: as the checkpoint has
    /// them quantised, where the backend multiplies with such weights.
    #[arg(long, default_value = "auto", value_name = "FORMAT")]
    quantization: FormatChoice,
    /// Columns of a weight that share a scale in int8 and fp8 (128 by default) and int4 (32).
    #[arg(long, value_name = "COLUMNS")]
    group_size: Option<u32>,
    /// int4 without the offset that each group has beside its scale: half a bit a weight less, and less exact.
    #[arg(long)]
    symmetric: bool,
    /// none or self: whether int4 is rounded by what its matrices see of text that the model writes itself, which loses
    /// less and takes a while. By default of models of up to about a billion weights.
    #[arg(long, value_name = "TEXT")]
    calibration: Option<CalibrationChoice>,
}

/// What weights are calibrated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CalibrationChoice(Calibration);

const CALIBRATIONS: [(&str, Calibration); 2] = [("none", Calibration::None), ("self", Calibration::OwnText)];

impl FromStr for CalibrationChoice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = CALIBRATIONS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, calibration)| Self(calibration)).ok_or_else(|| UnknownName {
            what: "calibration",
            found: name.to_owned(),
            expected: CALIBRATIONS.map(|(name, _)| name).join(", "),
        })
    }
}

/// The form asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FormatChoice(WeightFormat);

const FORMATS: [(&str, WeightFormat); 6] = [
    ("auto", WeightFormat::Unspecified),
    ("none", WeightFormat::None),
    ("checkpoint", WeightFormat::Checkpoint),
    ("int8", WeightFormat::Int8),
    ("int4", WeightFormat::Int4),
    ("fp8", WeightFormat::Fp8),
];

impl FromStr for FormatChoice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let known = FORMATS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, format)| Self(format)).ok_or_else(|| UnknownName {
            what: "quantization",
            found: name.to_owned(),
            expected: FORMATS.map(|(name, _)| name).join(", "),
        })
    }
}

impl QuantizationArgs {
    /// As the compiler takes it. A group size that fits no format is the compiler's to refuse.
    pub(crate) fn message(self) -> Option<WeightQuantization> {
        let automatic = self.quantization.0 == WeightFormat::Unspecified
            && self.group_size.is_none()
            && !self.symmetric
            && self.calibration.is_none();
        (!automatic).then(|| WeightQuantization {
            format: self.quantization.0.into(),
            group_size: self.group_size,
            symmetric: self.symmetric.then_some(true),
            calibration: self.calibration.map(|choice| choice.0.into()),
        })
    }
}

/// What an engine was built with, as executors name it: `none`, `checkpoint`, `int4:32`, `int4:32:symmetric`, with
/// `:calibrated` after them.
pub(crate) fn name(built: Option<&WeightQuantization>) -> String {
    // An engine of a compiler without this option has none.
    let format = built.map_or(WeightFormat::None, WeightQuantization::format);
    let name = FORMATS.iter().find(|(_, known)| *known == format).map_or("?", |(name, _)| *name);
    let symmetric = format == WeightFormat::Int4 && built.is_some_and(|built| built.symmetric == Some(true));
    let symmetric = if symmetric { ":symmetric" } else { "" };
    let calibrated = built.is_some_and(|built| built.calibration() == Calibration::OwnText);
    let calibrated = if calibrated { ":calibrated" } else { "" };
    match built.and_then(|built| built.group_size) {
        Some(group_size) => format!("{name}:{group_size}{symmetric}{calibrated}"),
        None => format!("{name}{symmetric}{calibrated}"),
    }
}

/// What weights lost to quantisation, as parts of one.
#[derive(Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Losses {
    /// Root mean square of the differences by that of the weights, all together.
    relative_error: f64,
    /// The same of those that lost most, the worst first.
    worst: Vec<(String, f64)>,
}

impl Losses {
    /// As the passes report them; `None` where nothing was measured.
    pub(crate) fn of(passes: &[PassReport]) -> Option<Self> {
        let share = |millionths: u64| millionths as f64 / 1e6;
        let counts =
            passes.iter().map(|pass| &pass.counts).find(|counts| counts.contains_key(RELATIVE_ERROR))?;
        let named = counts.iter().filter_map(|(name, &lost)| {
            Some((name.strip_prefix(RELATIVE_ERROR_OF)?.to_owned(), share(lost)))
        });
        let mut worst: Vec<_> = named.collect();
        worst.sort_by(|(name, a), (other, b)| b.total_cmp(a).then_with(|| name.cmp(other)));
        Some(Self { relative_error: share(counts[RELATIVE_ERROR]), worst })
    }

    /// A line for all, and one each for the worst.
    pub(crate) fn lines(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.3} %", share * 100.0);
        let all = format!("relative error {} of all quantised weights", percent(self.relative_error));
        let worst = self.worst.iter().map(|(name, error)| format!("{} {name}", percent(*error)));
        std::iter::once(all).chain(worst).collect()
    }
}

/// The counts of a pass without those that [`Losses`] are.
pub(crate) fn other_counts(counts: &HashMap<String, u64>) -> HashMap<String, u64> {
    let is_other = |name: &str| name != RELATIVE_ERROR && !name.starts_with(RELATIVE_ERROR_OF);
    counts.iter().filter(|(name, _)| is_other(name)).map(|(name, &count)| (name.clone(), count)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        quantization: QuantizationArgs,
    }

    fn asked(flags: &[&str]) -> Option<WeightQuantization> {
        Command::try_parse_from(["command"].iter().chain(flags)).unwrap().quantization.message()
    }

    #[test]
    fn every_form_reaches_the_request_and_has_the_name_that_asked_for_it() {
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&["--quantization", "AUTO"]), None);
        for (form, format) in FORMATS.into_iter().skip(1) {
            let message = asked(&["--quantization", form]).unwrap();
            assert_eq!((message.format(), message.group_size), (format, None));
            assert_eq!(name(Some(&message)), form);
        }
        let message = asked(&["--quantization", "int4", "--group-size", "64"]).unwrap();
        assert_eq!((message.format(), name(Some(&message))), (WeightFormat::Int4, "int4:64".to_owned()));
        let message = asked(&["--quantization", "int4", "--group-size", "32", "--symmetric"]).unwrap();
        assert_eq!((message.symmetric, name(Some(&message))), (Some(true), "int4:32:symmetric".to_owned()));
        let message = asked(&["--quantization", "int4", "--calibration", "self"]).unwrap();
        assert_eq!(
            (message.calibration(), name(Some(&message))),
            (Calibration::OwnText, "int4:calibrated".to_owned())
        );
        let message = asked(&["--calibration", "none"]).unwrap();
        assert_eq!(
            (message.calibration, message.format()),
            (Some(Calibration::None.into()), WeightFormat::Unspecified)
        );
        // The compiler says what is wrong with a group size or symmetry without a format.
        assert_eq!(asked(&["--symmetric"]).unwrap().symmetric, Some(true));
        assert_eq!(asked(&["--group-size", "64"]).unwrap().group_size, Some(64));
        assert_eq!(name(None), "none");
    }

    #[test]
    fn a_form_that_is_none_lists_those_that_are() {
        let error = "int3".parse::<FormatChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"unknown quantization "int3": expected one of auto, none, checkpoint, int8, int4, fp8"#
        );
    }

    #[test]
    fn losses_are_read_from_the_report_of_the_pass() {
        let report = |counts: &[(&str, u64)]| PassReport {
            pass: "p".to_owned(),
            counts: counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
        };
        let quantised = report(&[
            ("quantized_linears", 3),
            ("relative_error_ppm", 4100),
            ("relative_error_ppm of a", 4200),
            ("relative_error_ppm of b", 12_340),
        ]);
        let losses = Losses::of(&[report(&[("nodes", 1)]), quantised.clone()]).unwrap();
        assert_eq!(
            losses.lines(),
            ["relative error 0.410 % of all quantised weights", "1.234 % b", "0.420 % a"]
        );
        assert_eq!(other_counts(&quantised.counts), report(&[("quantized_linears", 3)]).counts);
        assert_eq!(Losses::of(&[report(&[("nodes", 1)])]), None);
    }
}
