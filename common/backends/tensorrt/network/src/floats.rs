//! Floats in JSON, which has no infinities and no NaN: those are strings.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Float {
    Finite(f32),
    Other(NotFinite),
}

#[derive(Serialize, Deserialize)]
enum NotFinite {
    #[serde(rename = "inf")]
    Infinity,
    #[serde(rename = "-inf")]
    MinusInfinity,
    #[serde(rename = "nan")]
    NotANumber,
}

pub(crate) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|&value| {
        if value.is_finite() {
            Float::Finite(value)
        } else if value.is_nan() {
            Float::Other(NotFinite::NotANumber)
        } else if value > 0.0 {
            Float::Other(NotFinite::Infinity)
        } else {
            Float::Other(NotFinite::MinusInfinity)
        }
    }))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    let values = Vec::<Float>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|value| match value {
            Float::Finite(value) => value,
            Float::Other(NotFinite::Infinity) => f32::INFINITY,
            Float::Other(NotFinite::MinusInfinity) => f32::NEG_INFINITY,
            Float::Other(NotFinite::NotANumber) => f32::NAN,
        })
        .collect())
}
