//! A GGUF file's key-value pairs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::HubError;

/// The types of scalars, by the format's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// `bytes` is one scalar, little-endian.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<Number> {
        Some(match self {
            Self::U8 => Number::Unsigned(u64::from(*bytes.first()?)),
            Self::Bool => Number::Bool(*bytes.first()? != 0),
            Self::I8 => Number::Signed(i64::from(*bytes.first()? as i8)),
            Self::U16 => Number::Unsigned(u64::from(u16::from_le_bytes(bytes.try_into().ok()?))),
            Self::I16 => Number::Signed(i64::from(i16::from_le_bytes(bytes.try_into().ok()?))),
            Self::U32 => Number::Unsigned(u64::from(u32::from_le_bytes(bytes.try_into().ok()?))),
            Self::I32 => Number::Signed(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
            Self::U64 => Number::Unsigned(u64::from_le_bytes(bytes.try_into().ok()?)),
            Self::I64 => Number::Signed(i64::from_le_bytes(bytes.try_into().ok()?)),
            Self::F32 => Number::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
            Self::F64 => Number::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        })
    }
}

/// A scalar's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
}

impl Number {
    fn as_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            Self::Float(_) | Self::Bool(_) => None,
        }
    }
}

/// A value. Arrays of scalars stay as they are in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Number(Number),
    String(String),
    Strings(Vec<String>),
    Numbers { scalar: Scalar, bytes: Vec<u8> },
}

/// All pairs of a file.
#[derive(Debug)]
pub(crate) struct Metadata {
    /// The file, for errors.
    pub(crate) path: PathBuf,
    pub(crate) values: BTreeMap<String, Value>,
}

impl Metadata {
    fn wrong(&self, key: &str, wanted: &str) -> HubError {
        HubError::corrupt(&self.path, format!("metadata {key:?} is not {wanted}"))
    }

    /// For values that must be there.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, HubError> {
        value.ok_or_else(|| HubError::corrupt(&self.path, format!("metadata {key:?} is missing")))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>, HubError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// An unsigned number, or an array of one number again and again (some files repeat a value for every layer).
    pub(crate) fn u64(&self, key: &str) -> Result<Option<u64>, HubError> {
        let value = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::Numbers { scalar, bytes }) => {
                let mut numbers = bytes.chunks_exact(scalar.bytes());
                let first = numbers.next();
                if numbers.any(|other| Some(other) != first) {
                    return Err(HubError::Unsupported {
                        place: self.path.display().to_string(),
                        found: format!("{key:?} that differs between layers"),
                        supported: "the same value for all layers".to_owned(),
                    });
                }
                first.and_then(|bytes| scalar.decode(bytes)).and_then(Number::as_u64)
            }
            Some(_) => None,
        };
        value.map(Some).ok_or_else(|| self.wrong(key, "an unsigned number"))
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>, HubError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Number(Number::Float(value))) if value.is_finite() => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a finite floating-point number")),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, HubError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Number(Number::Bool(value))) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a bool")),
        }
    }

    /// An array of bools; `None` also where there is something else.
    pub(crate) fn bools(&self, key: &str) -> Option<Vec<bool>> {
        match self.values.get(key) {
            Some(Value::Numbers { scalar: Scalar::Bool, bytes }) => {
                Some(bytes.iter().map(|&byte| byte != 0).collect())
            }
            _ => None,
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Option<&[String]>, HubError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Strings(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong(key, "an array of strings")),
        }
    }

    pub(crate) fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, HubError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let Value::Numbers { scalar, bytes } = value else {
            return Err(self.wrong(key, "an array of numbers"));
        };
        let numbers =
            bytes.chunks_exact(scalar.bytes()).map(|bytes| scalar.decode(bytes).and_then(Number::as_u64));
        numbers
            .collect::<Option<_>>()
            .map(Some)
            .ok_or_else(|| self.wrong(key, "an array of unsigned numbers"))
    }

    pub(crate) fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, HubError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Numbers { scalar: Scalar::F32, bytes }) => {
                let numbers: Vec<f32> =
                    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                if numbers.iter().any(|number| number.is_nan()) {
                    return Err(self.wrong(key, "an array of numbers: it has a NaN"));
                }
                Ok(Some(numbers))
            }
            Some(_) => Err(self.wrong(key, "an array of F32")),
        }
    }
}
