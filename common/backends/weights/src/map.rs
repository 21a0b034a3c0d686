//! A weights file mapped into memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use roundhouse_backend::BackendError;
use roundhouse_graph::{DType, Graph};
use safetensors::SafeTensors;

use super::file_dtype;
use crate::io_error;

/// A weights file mapped into memory: pages are read when they are first used and shared with every other process
/// that maps the file.
pub struct MappedWeights {
    map: Mmap,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a mapped file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its element type.
    pub dtype: DType,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    bytes: Range<usize>,
}

impl MappedWeights {
    /// Maps a file and checks that it holds every weight of `graph` in its dtype and shape.
    ///
    /// # Errors
    /// [`BackendError::Io`], or [`BackendError::Corrupt`] with the engine's `key` when the file is not what the graph
    /// needs.
    pub fn open(path: &Path, graph: &Graph, key: &str) -> Result<Self, BackendError> {
        let corrupt = |what: String| BackendError::Corrupt {
            key: key.to_owned(),
            what: format!("{}: {what}", path.display()),
        };
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe because another process can change it")]
        // SAFETY: the file is a content-addressed blob of a local store: it is written under another name, renamed
        // into place when it is complete, and never changed afterwards. Removing it leaves the mapping alive.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| io_error(path, error))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| corrupt(error.to_string()))?;
        let data = size_of::<u64>() + header;
        let mut tensors = BTreeMap::new();
        for (_, value, _) in graph.weights() {
            let name = &value.name;
            let info = metadata.info(name).ok_or_else(|| corrupt(format!("no tensor {name:?}")))?;
            if Some(info.dtype) != file_dtype(value.dtype) {
                let (found, expected) = (info.dtype, value.dtype);
                return Err(corrupt(format!("tensor {name:?} has dtype {found}, expected {expected}")));
            }
            let expected =
                value.shape.iter().map(|dim| dim.as_constant().and_then(|dim| usize::try_from(dim).ok()));
            if !expected.clone().eq(info.shape.iter().map(|&dim| Some(dim))) {
                let expected: Vec<_> = expected.flatten().collect();
                let found = &info.shape;
                return Err(corrupt(format!("tensor {name:?} has shape {found:?}, expected {expected:?}")));
            }
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            if bytes.start % value.dtype.size() != 0 {
                let start = bytes.start;
                return Err(corrupt(format!("tensor {name:?} begins at byte {start}, inside of an element")));
            }
            tensors.insert(name.clone(), Tensor { dtype: value.dtype, shape: info.shape.clone(), bytes });
        }
        Ok(Self { map, tensors })
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The bytes of one of its tensors, row-major little-endian elements, aligned to their size.
    #[must_use]
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        // `open` has checked the range.
        self.map.get(tensor.bytes.clone()).unwrap_or_default()
    }

    /// The size of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }
}
