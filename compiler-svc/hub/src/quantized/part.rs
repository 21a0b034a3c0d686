//! The tensors that stand for a quantised matrix.

use roundhouse_backend::QuantizedTensor;

/// A tensor that stands for a quantised matrix or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The matrix itself.
    Decoded,
    /// Its bytes.
    Values,
    /// Its scales.
    Scales,
    /// Its offsets.
    Offsets,
}

impl Part {
    const ALL: [Self; 4] = [Self::Decoded, Self::Values, Self::Scales, Self::Offsets];

    /// The matrices of which a tensor could be a part, by its name.
    pub(crate) fn candidates(name: &str) -> impl Iterator<Item = (&str, Self)> {
        Self::ALL.into_iter().filter_map(move |part| Some((name.strip_suffix(&part.name_of(""))?, part)))
    }

    /// The name of this part of a matrix.
    fn name_of(self, matrix: &str) -> String {
        match self {
            Self::Decoded => matrix.to_owned(),
            Self::Values => QuantizedTensor::values_of(matrix),
            Self::Scales => QuantizedTensor::scales_of(matrix),
            Self::Offsets => QuantizedTensor::offsets_of(matrix),
        }
    }
}
