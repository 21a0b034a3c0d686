//! How an engine keeps the weights of matrix products.

use roundhouse_graph::{Quantization, QuantizedLinearAttributes, WeightFormat};
use serde::{Deserialize, Serialize};

/// How an engine keeps the weights of its matrix products. Activations, norms and embeddings are never quantised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WeightQuantization {
    /// In the engine's precision, decoded where the checkpoint has them quantised.
    #[default]
    None,
    /// As the checkpoint has them quantised; those that it has not, in the engine's precision.
    Checkpoint,
    /// Quantised by the compiler, each group of columns with a scale of its own and, where there are offsets, an offset.
    Compiler(QuantizedLinearAttributes),
    /// As `Compiler`, each matrix rounded together by what it sees of text that the model writes, and keys' and values' in
    /// eight bits.
    Calibrated(QuantizedLinearAttributes),
}

impl WeightQuantization {
    /// Whether weights are in the engine's precision.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// `none`, `checkpoint`, or format and group size: `int8:128`, `int4:32`; `int4:32:symmetric` without offsets; with
/// `:calibrated` after them.
impl std::fmt::Display for WeightQuantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Compiler(attributes) | Self::Calibrated(attributes) => {
                let QuantizedLinearAttributes { quantization, has_offsets } = attributes;
                let Quantization { format, group_size } = quantization;
                let symmetric = *format == WeightFormat::Int4 && !has_offsets;
                let symmetric = if symmetric { ":symmetric" } else { "" };
                let calibrated = if matches!(self, Self::Calibrated(_)) { ":calibrated" } else { "" };
                write!(f, "{}:{group_size}{symmetric}{calibrated}", format.name())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text() {
        let compiler = |format, group_size, has_offsets| {
            let quantization = Quantization { format, group_size };
            WeightQuantization::Compiler(QuantizedLinearAttributes { quantization, has_offsets })
        };
        let [int4, symmetric] = [true, false].map(|offsets| compiler(WeightFormat::Int4, 32, offsets));
        let int8 = compiler(WeightFormat::Int8, 128, false);
        let calibrated = |value| match value {
            WeightQuantization::Compiler(attributes) => WeightQuantization::Calibrated(attributes),
            other => other,
        };
        assert_eq!(
            [int4, symmetric].map(|value| calibrated(value).to_string()),
            ["int4:32:calibrated", "int4:32:symmetric:calibrated"]
        );
        assert_eq!([symmetric, int8].map(|value| value.to_string()), ["int4:32:symmetric", "int8:128"]);
        for (value, json, text) in [
            (WeightQuantization::None, r#"{"kind":"none"}"#, "none"),
            (WeightQuantization::Checkpoint, r#"{"kind":"checkpoint"}"#, "checkpoint"),
            (
                int4,
                r#"{"kind":"compiler","quantization":{"format":"int4","group_size":32},"has_offsets":true}"#,
                "int4:32",
            ),
            (
                calibrated(int4),
                r#"{"kind":"calibrated","quantization":{"format":"int4","group_size":32},"has_offsets":true}"#,
                "int4:32:calibrated",
            ),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<WeightQuantization>(json).unwrap(), value);
            assert_eq!(value.to_string(), text);
        }
    }
}
