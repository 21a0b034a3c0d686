//! Looking at a checkpoint's tensors: what is there, of which type and shape.

use roundhouse_backend::WeightSource;
use safetensors::Dtype;

use crate::shards::SafetensorsWeights;

/// What scales are stored in.
pub(super) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// The checkpoint's tensors. Errors name the tensor and say what is wrong with it.
#[derive(Clone, Copy)]
pub(super) struct Tensors<'a>(pub(super) &'a SafetensorsWeights);

impl Tensors<'_> {
    /// How a tensor is stored, if there is one.
    pub(super) fn dtype(self, name: &str) -> Option<Dtype> {
        self.0.dtype(name)
    }

    /// The shape of a tensor that must be there, in one of these types, and not empty: then its sizes are bounded by
    /// the file's.
    pub(super) fn shape(self, name: &str, dtypes: &[Dtype]) -> Result<Vec<u64>, String> {
        let found = self.dtype(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
        if !dtypes.contains(&found) {
            return Err(format!("tensor {name:?} is of dtype {found:?}, expected one of {dtypes:?}"));
        }
        let shape = self.0.shape(name).map_err(|error| error.to_string())?;
        if shape.contains(&0) {
            return Err(format!("tensor {name:?} of shape {shape:?} is empty"));
        }
        Ok(shape)
    }

    /// The sizes of a matrix.
    pub(super) fn matrix(self, name: &str, dtypes: &[Dtype]) -> Result<[u64; 2], String> {
        let shape = self.shape(name, dtypes)?;
        <[u64; 2]>::try_from(shape)
            .map_err(|shape| format!("tensor {name:?} has shape {shape:?}, expected a matrix"))
    }

    /// Checks that a tensor has one of these shapes.
    pub(super) fn has_shape(self, name: &str, dtypes: &[Dtype], expected: &[&[u64]]) -> Result<(), String> {
        let found = self.shape(name, dtypes)?;
        if expected.contains(&&found[..]) {
            return Ok(());
        }
        let expected: Vec<String> = expected.iter().map(|shape| format!("{shape:?}")).collect();
        Err(format!("tensor {name:?} has shape {found:?}, expected {}", expected.join(" or ")))
    }

    /// The bytes of a tensor of so many.
    pub(super) fn bytes(self, name: &str, count: u64) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; super::index(count)];
        self.0.read_bytes(name, 0, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// The integers of a vector of 32 bits.
    pub(super) fn integers(self, name: &str) -> Result<Vec<i32>, String> {
        let shape = self.shape(name, &[Dtype::I32])?;
        let [length] = shape[..] else {
            return Err(format!("tensor {name:?} has shape {shape:?}, expected a vector"));
        };
        let bytes = self.bytes(name, length * 4)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
    }
}
