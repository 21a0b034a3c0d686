//! How weights are kept.

use roundhouse_engine::WeightQuantization;
use roundhouse_graph::{Quantization, QuantizedLinearAttributes, WeightFormat};
use roundhouse_proto::compiler as proto;
use roundhouse_rpc::Failure;

use super::unknown_value;

const FORMAT: &str = "options.quantization.format";
const GROUP_SIZE: &str = "options.quantization.group_size";
const SYMMETRIC: &str = "options.quantization.symmetric";
const CALIBRATION: &str = "options.quantization.calibration";

/// Columns that share a scale where the request does not say.
const fn default_group_size(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Int8 | WeightFormat::Fp8 => 128,
        WeightFormat::Int4 => 32,
    }
}

/// What an engine was built with.
pub(crate) fn message(built: WeightQuantization) -> proto::WeightQuantization {
    let whole = |format: proto::WeightFormat| proto::WeightQuantization {
        format: format.into(),
        group_size: None,
        symmetric: None,
        calibration: None,
    };
    match built {
        WeightQuantization::None => whole(proto::WeightFormat::None),
        WeightQuantization::Checkpoint => whole(proto::WeightFormat::Checkpoint),
        WeightQuantization::Compiler(attributes) | WeightQuantization::Calibrated(attributes) => {
            let QuantizedLinearAttributes { quantization, has_offsets } = attributes;
            let calibration = match built {
                WeightQuantization::Calibrated(_) => proto::Calibration::OwnText,
                _ => proto::Calibration::None,
            };
            let is_int4 = quantization.format == WeightFormat::Int4;
            let format = match quantization.format {
                WeightFormat::Int8 => proto::WeightFormat::Int8,
                WeightFormat::Int4 => proto::WeightFormat::Int4,
                WeightFormat::Fp8 => proto::WeightFormat::Fp8,
            };
            proto::WeightQuantization {
                format: format.into(),
                group_size: Some(quantization.group_size),
                symmetric: Some(!has_offsets),
                calibration: is_int4.then_some(calibration.into()),
            }
        }
    }
}

/// What a request asks for; `None` is automatic, as is `calibration` of what the compiler makes.
pub(crate) fn asked(
    message: Option<&proto::WeightQuantization>,
) -> Result<Option<WeightQuantization>, Failure> {
    let Some(&proto::WeightQuantization { format, group_size, symmetric, .. }) = message else {
        return Ok(None);
    };
    let asked = proto::WeightFormat::try_from(format).map_err(|_| unknown_value(FORMAT, Some(format)))?;
    let made = match asked {
        proto::WeightFormat::Int8 => WeightFormat::Int8,
        proto::WeightFormat::Int4 => WeightFormat::Int4,
        proto::WeightFormat::Fp8 => WeightFormat::Fp8,
        proto::WeightFormat::Unspecified | proto::WeightFormat::None | proto::WeightFormat::Checkpoint => {
            if let Some(group_size) = group_size {
                let what = format!("{GROUP_SIZE} is {group_size}, and only int8, int4 and fp8 have one");
                return Err(Failure::invalid_field(GROUP_SIZE, what));
            }
            if symmetric.is_some() {
                let what = format!("{SYMMETRIC} is given, and only int8, int4 and fp8 have it");
                return Err(Failure::invalid_field(SYMMETRIC, what));
            }
            return Ok(match asked {
                proto::WeightFormat::None => Some(WeightQuantization::None),
                proto::WeightFormat::Checkpoint => Some(WeightQuantization::Checkpoint),
                _ => None,
            });
        }
    };
    let group_size = group_size.unwrap_or(default_group_size(made));
    let bits = u64::from(group_size) * u64::from(made.bits());
    if bits == 0 || !bits.is_multiple_of(8) {
        let what =
            format!("{GROUP_SIZE} is {group_size}: a group is one or more whole bytes of {}", made.name());
        return Err(Failure::invalid_field(GROUP_SIZE, what));
    }
    let symmetric = symmetric.unwrap_or(made != WeightFormat::Int4);
    if !symmetric && made != WeightFormat::Int4 {
        let what = format!("{SYMMETRIC} is false: {} is made symmetric only", made.name());
        return Err(Failure::invalid_field(SYMMETRIC, what));
    }
    let quantization = Quantization { format: made, group_size };
    Ok(Some(WeightQuantization::Compiler(QuantizedLinearAttributes {
        quantization,
        has_offsets: !symmetric,
    })))
}

/// Whether a request asks for calibrated weights; `None` is automatic.
pub(crate) fn calibration(message: Option<&proto::WeightQuantization>) -> Result<Option<bool>, Failure> {
    let Some(asked) = message.and_then(|message| message.calibration) else { return Ok(None) };
    let known = proto::Calibration::try_from(asked).map_err(|_| unknown_value(CALIBRATION, Some(asked)))?;
    if message.map(proto::WeightQuantization::format) != Some(proto::WeightFormat::Int4) {
        return Err(Failure::invalid_field(
            CALIBRATION,
            format!("{CALIBRATION} is given, and only int4 has it"),
        ));
    }
    Ok(match known {
        proto::Calibration::Unspecified => None,
        proto::Calibration::None => Some(false),
        proto::Calibration::OwnText => Some(true),
    })
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::StatusExt as _;

    use super::*;

    fn request(format: proto::WeightFormat, group_size: Option<u32>) -> proto::WeightQuantization {
        proto::WeightQuantization { format: format.into(), group_size, symmetric: None, calibration: None }
    }

    fn symmetric(format: proto::WeightFormat, symmetric: bool) -> proto::WeightQuantization {
        proto::WeightQuantization { symmetric: Some(symmetric), ..request(format, None) }
    }

    #[test]
    fn unset_is_automatic_and_group_sizes_have_defaults() {
        use proto::WeightFormat::{Checkpoint, Fp8, Int4, Int8, None as Decoded, Unspecified};
        let made = |format, group_size| {
            let quantization = Quantization { format, group_size };
            let has_offsets = format == WeightFormat::Int4;
            Some(WeightQuantization::Compiler(QuantizedLinearAttributes { quantization, has_offsets }))
        };
        for (format, group_size, expected) in [
            (Unspecified, None, None),
            (Decoded, None, Some(WeightQuantization::None)),
            (Checkpoint, None, Some(WeightQuantization::Checkpoint)),
            (Int8, None, made(WeightFormat::Int8, 128)),
            (Fp8, None, made(WeightFormat::Fp8, 128)),
            (Int4, None, made(WeightFormat::Int4, 32)),
            (Int4, Some(2), made(WeightFormat::Int4, 2)),
            (Int8, Some(1), made(WeightFormat::Int8, 1)),
        ] {
            let request = request(format, group_size);
            let found = asked(Some(&request)).ok().unwrap();
            assert_eq!(found, expected, "{request:?}");
            // What was built can be asked for again.
            if let Some(built) = found {
                assert_eq!(asked(Some(&message(built))).ok().unwrap(), Some(built));
            }
        }
        assert_eq!(asked(None).ok().unwrap(), None);
        for (asked, expected) in [(proto::Calibration::None, false), (proto::Calibration::OwnText, true)] {
            let calibrated = |format| proto::WeightQuantization {
                calibration: Some(asked.into()),
                ..request(format, None)
            };
            assert_eq!(calibration(Some(&calibrated(Int4))).ok().unwrap(), Some(expected));
            let status = Status::from(calibration(Some(&calibrated(Int8))).err().unwrap());
            assert_eq!(
                status.get_error_details().bad_request().unwrap().field_violations[0].field,
                CALIBRATION
            );
        }
        assert_eq!(calibration(Some(&request(Int4, None))).ok().unwrap(), None);
        let quantization = Quantization { format: WeightFormat::Int4, group_size: 32 };
        let without = QuantizedLinearAttributes { quantization, has_offsets: false };
        let found = asked(Some(&symmetric(Int4, true))).ok().unwrap();
        assert_eq!(found, Some(WeightQuantization::Compiler(without)));
        assert_eq!(asked(found.map(message).as_ref()).ok().unwrap(), found);
    }

    #[test]
    fn what_cannot_be_is_refused_at_its_field() {
        use proto::WeightFormat::{Checkpoint, Fp8, Int4, Int8, None as Decoded, Unspecified};
        let cases = [
            (request(Int8, Some(0)), GROUP_SIZE, "0"),
            (request(Fp8, Some(0)), GROUP_SIZE, "0"),
            (request(Int4, Some(0)), GROUP_SIZE, "0"),
            (request(Int4, Some(33)), GROUP_SIZE, "33"),
            (request(Unspecified, Some(32)), GROUP_SIZE, "32"),
            (request(Decoded, Some(32)), GROUP_SIZE, "32"),
            (request(Checkpoint, Some(32)), GROUP_SIZE, "32"),
            (symmetric(Checkpoint, true), SYMMETRIC, "given"),
            (symmetric(Int8, false), SYMMETRIC, "int8"),
            (symmetric(Fp8, false), SYMMETRIC, "fp8"),
            (proto::WeightQuantization { format: 9, ..request(Int4, None) }, FORMAT, "9"),
        ];
        for (request, field, named) in cases {
            let status = Status::from(asked(Some(&request)).err().unwrap());
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{request:?}");
            assert!(status.message().contains(named), "{status}");
            let details = status.get_error_details();
            assert_eq!(details.bad_request().unwrap().field_violations[0].field, field, "{request:?}");
        }
    }
}
