//! One safetensors file: its header, and its tensors decoded by rows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use roundhouse_backend::WeightError;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::HubError;
use crate::file::{ReadOnlyFile, row_elements, unreadable};

/// The format's own bound on a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The header's length comes first, as a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// Where one tensor is.
#[derive(Debug, Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<u64>,
    /// From the start of the file.
    offset: u64,
    bytes: u64,
}

/// An open safetensors file.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    file: ReadOnlyFile,
    tensors: BTreeMap<String, Tensor>,
    data_bytes: u64,
}

impl SafetensorsFile {
    /// Reads and checks the header: every tensor's bytes lie in the file, fit its shape and overlap no other's.
    pub(crate) fn open(path: &Path) -> Result<Self, HubError> {
        let file = ReadOnlyFile::open(path)?;
        let corrupt = |what: String| HubError::corrupt(path, what);
        let mut length = [0; LENGTH_BYTES as usize];
        if file.len() < LENGTH_BYTES {
            return Err(corrupt(format!("{} bytes are too few for a safetensors file", file.len())));
        }
        file.read_exact_at(&mut length, 0).map_err(HubError::io(path))?;
        let header_bytes = u64::from_le_bytes(length);
        let available = file.len() - LENGTH_BYTES;
        if header_bytes > available.min(MAX_HEADER_BYTES) {
            return Err(corrupt(format!(
                "the header claims {header_bytes} bytes; {available} follow, and at most {MAX_HEADER_BYTES} are allowed"
            )));
        }
        let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut header, LENGTH_BYTES).map_err(HubError::io(path))?;
        // Deserialising checks that the tensors' bytes follow each other without gaps and fit dtypes and shapes.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| corrupt(format!("the header: {error}")))?;
        let data_start = LENGTH_BYTES + header_bytes;
        let data_bytes = file.len() - data_start;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            if start > end || end > data_bytes {
                return Err(corrupt(format!(
                    "tensor {name:?} claims bytes {start}..{end} of the data, which has {data_bytes}: \
                     the file is cut short or broken"
                )));
            }
            let shape = info.shape.iter().map(|&size| size as u64).collect();
            tensors.insert(
                name,
                Tensor { dtype: info.dtype, shape, offset: data_start + start, bytes: end - start },
            );
        }
        let described = metadata.data_len() as u64;
        if described != data_bytes {
            return Err(corrupt(format!(
                "the header describes {described} bytes of data, the file has {data_bytes}"
            )));
        }
        Ok(Self { file, tensors, data_bytes })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Bytes of all tensors as stored.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, WeightError> {
        self.tensors.get(name).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    pub(crate) fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        Ok(self.tensor(name)?.shape.clone())
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|tensor| tensor.dtype)
    }

    pub(crate) fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let tensor = self.tensor(name)?;
        let (first, _) = row_elements(name, &tensor.shape, &rows, out.len())?;
        self.read_elements(name, first, out)
    }

    /// The bytes of a tensor from byte `first` on, as stored.
    pub(crate) fn read_bytes(&self, name: &str, first: u64, out: &mut [u8]) -> Result<(), WeightError> {
        let tensor = self.tensor(name)?;
        within(name, tensor, first, out.len() as u64, 1)?;
        self.file.read_exact_at(out, tensor.offset + first).map_err(unreadable(name, self.file.path()))
    }

    /// Decodes the elements of a float tensor from element `first` on, row-major.
    pub(crate) fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        let tensor = self.tensor(name)?;
        let count = out.len() as u64;
        within(name, tensor, first, count, tensor.dtype.bitsize() as u64 / 8)?;
        match tensor.dtype {
            Dtype::F32 => self.decode(name, tensor, first, count, out, f32::from_le_bytes),
            Dtype::F16 => {
                self.decode(name, tensor, first, count, out, |bytes| f16::from_le_bytes(bytes).to_f32())
            }
            Dtype::BF16 => {
                self.decode(name, tensor, first, count, out, |bytes| bf16::from_le_bytes(bytes).to_f32())
            }
            Dtype::F64 => {
                self.decode(name, tensor, first, count, out, |bytes| f64::from_le_bytes(bytes) as f32)
            }
            other => Err(WeightError::Corrupt {
                name: name.to_owned(),
                what: format!("dtype {other:?} is not supported; supported: F64, F32, F16, BF16"),
            }),
        }
    }

    fn decode<const WIDTH: usize>(
        &self,
        name: &str,
        tensor: &Tensor,
        first: u64,
        count: u64,
        out: &mut [f32],
        decode: impl Fn([u8; WIDTH]) -> f32,
    ) -> Result<(), WeightError> {
        let width = WIDTH as u64;
        let mut rest = out;
        self.file
            .for_each_chunk(tensor.offset + first * width, count * width, WIDTH, |chunk| {
                let elements = chunk.as_chunks().0;
                let (now, later) = std::mem::take(&mut rest).split_at_mut(elements.len());
                for (value, bytes) in now.iter_mut().zip(elements) {
                    *value = decode(*bytes);
                }
                rest = later;
            })
            .map_err(unreadable(name, self.file.path()))
    }
}

/// Checks that a tensor has `count` units of `width` bytes from unit `first` on.
fn within(name: &str, tensor: &Tensor, first: u64, count: u64, width: u64) -> Result<(), WeightError> {
    let end = first.checked_add(count).and_then(|end| end.checked_mul(width));
    if end.is_some_and(|end| end <= tensor.bytes) {
        return Ok(());
    }
    let what =
        format!("{count} of {width} bytes from number {first} on are outside of its {} bytes", tensor.bytes);
    Err(WeightError::Corrupt { name: name.to_owned(), what })
}
