//! The options of TensorRT engines.

use roundhouse_engine::{
    AttentionForm, BackendKind, ComputeCapabilities, ComputeCapability, Precision, Profiles, TensorRtOptions,
    WeightPlacement,
};
use roundhouse_proto::compiler as proto;
use roundhouse_rpc::Failure;

use super::unknown_value;

pub(crate) fn message(options: &TensorRtOptions) -> proto::TensorRtOptions {
    let attention = match options.attention {
        AttentionForm::Auto => proto::AttentionForm::Unspecified,
        AttentionForm::Fused => proto::AttentionForm::Fused,
        AttentionForm::Decomposed => proto::AttentionForm::Decomposed,
    };
    let weights = match options.weights {
        WeightPlacement::Auto => proto::WeightPlacement::Unspecified,
        WeightPlacement::Embedded => proto::WeightPlacement::Embedded,
        WeightPlacement::Separate => proto::WeightPlacement::Separate,
    };
    let profiles = match options.profiles {
        Profiles::One => proto::Profiles::One,
        Profiles::Two => proto::Profiles::Two,
    };
    proto::TensorRtOptions {
        fp32_accumulation: Some(options.fp32_accumulation),
        attention: Some(attention.into()),
        weights: Some(weights.into()),
        weight_streaming: Some(options.weight_streaming),
        profiles: Some(profiles.into()),
    }
}

/// The GPUs asked for.
pub(crate) fn targets(names: &[String], backend: BackendKind) -> Result<ComputeCapabilities, Failure> {
    let invalid = |what: String| Failure::invalid_field("options.targets", what);
    if backend == BackendKind::Cpu && !names.is_empty() {
        let names = names.join(", ");
        return Err(invalid(format!("the cpu backend has no use for compute capabilities ({names})")));
    }
    let parsed = names.iter().map(|name| name.parse::<ComputeCapability>());
    parsed.collect::<Result<_, _>>().map_err(|error| invalid(error.to_string()))
}

/// TensorRT's own options with what is unset filled in; `None` for other backends.
pub(crate) fn options(
    given: Option<&proto::TensorRtOptions>,
    backend: BackendKind,
    precision: Precision,
) -> Result<Option<TensorRtOptions>, Failure> {
    if backend != BackendKind::TensorRt {
        return match given {
            None => Ok(None),
            Some(_) => {
                let what = format!("options.tensorrt is of no use to the {backend} backend");
                Err(Failure::invalid_field("options.tensorrt", what))
            }
        };
    }
    let given = given.copied().unwrap_or_default();
    let defaults = TensorRtOptions::default();
    Ok(Some(TensorRtOptions {
        // All that fp32 engines have: said either way, it is one engine.
        fp32_accumulation: precision == Precision::Fp32
            || given.fp32_accumulation.unwrap_or(defaults.fp32_accumulation),
        attention: attention(given.attention)?,
        weights: weights(given.weights)?,
        weight_streaming: given.weight_streaming.unwrap_or(defaults.weight_streaming),
        profiles: profiles(given.profiles)?,
    }))
}

fn attention(value: Option<i32>) -> Result<AttentionForm, Failure> {
    match proto::AttentionForm::try_from(value.unwrap_or_default()) {
        Ok(proto::AttentionForm::Unspecified) => Ok(AttentionForm::Auto),
        Ok(proto::AttentionForm::Fused) => Ok(AttentionForm::Fused),
        Ok(proto::AttentionForm::Decomposed) => Ok(AttentionForm::Decomposed),
        Err(_) => Err(unknown_value("options.tensorrt.attention", value)),
    }
}

fn weights(value: Option<i32>) -> Result<WeightPlacement, Failure> {
    match proto::WeightPlacement::try_from(value.unwrap_or_default()) {
        Ok(proto::WeightPlacement::Unspecified) => Ok(WeightPlacement::Auto),
        Ok(proto::WeightPlacement::Embedded) => Ok(WeightPlacement::Embedded),
        Ok(proto::WeightPlacement::Separate) => Ok(WeightPlacement::Separate),
        Err(_) => Err(unknown_value("options.tensorrt.weights", value)),
    }
}

fn profiles(value: Option<i32>) -> Result<Profiles, Failure> {
    match proto::Profiles::try_from(value.unwrap_or_default()) {
        Ok(proto::Profiles::Unspecified | proto::Profiles::One) => Ok(Profiles::One),
        Ok(proto::Profiles::Two) => Ok(Profiles::Two),
        Err(_) => Err(unknown_value("options.tensorrt.profiles", value)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tonic_types::StatusExt as _;

    use super::*;

    /// The field that a failure names.
    fn field<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        let status = Status::from(result.unwrap_err());
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        status.get_error_details().bad_request().unwrap().field_violations[0].field.clone()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn every_option_goes_there_and_back() {
        let mut count = 0;
        for &attention in AttentionForm::ALL {
            for &weights in WeightPlacement::ALL {
                for &profiles in Profiles::ALL {
                    for (fp32_accumulation, weight_streaming) in [(false, true), (true, false)] {
                        let all = TensorRtOptions {
                            fp32_accumulation,
                            attention,
                            weights,
                            weight_streaming,
                            profiles,
                        };
                        let found =
                            options(Some(&message(&all)), BackendKind::TensorRt, Precision::Fp16).unwrap();
                        assert_eq!(found, Some(all));
                        count += 1;
                    }
                }
            }
        }
        assert_eq!(count, 36);
    }

    #[test]
    fn what_is_unset_gets_its_default_and_fp32_engines_have_one_accumulation() {
        for &precision in Precision::ALL {
            let found = options(None, BackendKind::TensorRt, precision).unwrap().unwrap();
            assert_eq!(found, TensorRtOptions::default());
            let off = proto::TensorRtOptions {
                fp32_accumulation: Some(false),
                ..proto::TensorRtOptions::default()
            };
            let found = options(Some(&off), BackendKind::TensorRt, precision).unwrap().unwrap();
            assert_eq!(found.fp32_accumulation, precision == Precision::Fp32);
        }
    }

    #[test]
    fn values_that_cannot_be_name_their_field() {
        let base = proto::TensorRtOptions::default();
        for (given, expected) in [
            (proto::TensorRtOptions { attention: Some(9), ..base }, "options.tensorrt.attention"),
            (proto::TensorRtOptions { weights: Some(-1), ..base }, "options.tensorrt.weights"),
            (proto::TensorRtOptions { profiles: Some(3), ..base }, "options.tensorrt.profiles"),
        ] {
            assert_eq!(field(options(Some(&given), BackendKind::TensorRt, Precision::Fp16)), expected);
        }
    }

    #[test]
    fn the_cpu_takes_neither_targets_nor_tensorrt_options() {
        assert_eq!(options(None, BackendKind::Cpu, Precision::Fp16).unwrap(), None);
        let given = proto::TensorRtOptions::default();
        assert_eq!(field(options(Some(&given), BackendKind::Cpu, Precision::Fp16)), "options.tensorrt");
        assert_eq!(targets(&[], BackendKind::Cpu).unwrap(), ComputeCapabilities::NONE);
        assert_eq!(field(targets(&names(&["sm_89"]), BackendKind::Cpu)), "options.targets");
    }

    #[test]
    fn targets_are_a_set_of_known_compute_capabilities() {
        let found = targets(&names(&["sm_120", "8.9", "sm_120"]), BackendKind::TensorRt).unwrap();
        assert_eq!(found.names(), ["sm_89", "sm_120"]);
        assert_eq!(field(targets(&names(&["sm_89", "sm_1"]), BackendKind::TensorRt)), "options.targets");
    }
}
