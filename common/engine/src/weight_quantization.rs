//! How an engine keeps the weights of matrix products.

use roundhouse_graph::Quantization;
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
    /// Quantised by the compiler: symmetric, each group of columns with a scale of its own.
    Compiler(Quantization),
}

impl WeightQuantization {
    /// Whether weights are in the engine's precision.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// `none`, `checkpoint`, or format and group size: `int4:32`.
impl std::fmt::Display for WeightQuantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Compiler(Quantization { format, group_size }) => {
                write!(f, "{}:{group_size}", format.name())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::WeightFormat;

    use super::*;

    #[test]
    fn json_and_text() {
        let int4 = WeightQuantization::Compiler(Quantization { format: WeightFormat::Int4, group_size: 32 });
        for (value, json, text) in [
            (WeightQuantization::None, r#"{"kind":"none"}"#, "none"),
            (WeightQuantization::Checkpoint, r#"{"kind":"checkpoint"}"#, "checkpoint"),
            (int4, r#"{"kind":"compiler","format":"int4","group_size":32}"#, "int4:32"),
        ] {
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<WeightQuantization>(json).unwrap(), value);
            assert_eq!(value.to_string(), text);
        }
    }
}
