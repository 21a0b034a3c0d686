//! The tensors of a checkpoint's safetensors files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use roundhouse_backend::{WeightError, WeightSource};
use safetensors::Dtype;

use crate::layout::{self, Layout, WeightFiles};
use crate::safetensors::SafetensorsFile;
use crate::{HubError, directory};

/// The tensors of one or many safetensors files.
#[derive(Debug)]
pub(crate) struct SafetensorsWeights {
    files: BTreeMap<String, SafetensorsFile>,
    /// Tensor to file.
    tensors: BTreeMap<String, String>,
}

impl SafetensorsWeights {
    /// Opens the files and checks that each has the tensors that the index says.
    pub(crate) fn open(directory: &Path, weights: WeightFiles) -> Result<Self, HubError> {
        let index = match weights {
            WeightFiles::Single => None,
            WeightFiles::Indexed => Some(directory::read_index(directory)?),
        };
        let mut files = BTreeMap::new();
        for name in Layout::weight_files(index.as_ref()) {
            let path = directory.join(&name);
            if !path.exists() {
                return Err(HubError::MissingFile { place: directory.display().to_string(), file: name });
            }
            files.insert(name, SafetensorsFile::open(&path)?);
        }
        let tensors = match index {
            Some(index) => index.weight_map,
            None => files
                .iter()
                .flat_map(|(file, content)| content.names().map(|name| (name.clone(), file.clone())))
                .collect(),
        };
        for (tensor, file) in &tensors {
            if files.get(file).is_none_or(|content| content.shape(tensor).is_err()) {
                let path = directory.join(layout::WEIGHTS_INDEX);
                return Err(HubError::corrupt(&path, format!("tensor {tensor:?} is not in {file:?}")));
            }
        }
        Ok(Self { files, tensors })
    }

    /// The files by name.
    pub(crate) fn files(&self) -> &BTreeMap<String, SafetensorsFile> {
        &self.files
    }

    /// How a tensor is stored, if there is one of this name.
    pub(crate) fn dtype(&self, tensor: &str) -> Option<Dtype> {
        self.file_of(tensor).ok()?.dtype(tensor)
    }

    /// As [`SafetensorsFile::read_bytes`].
    pub(crate) fn read_bytes(&self, tensor: &str, first: u64, out: &mut [u8]) -> Result<(), WeightError> {
        self.file_of(tensor)?.read_bytes(tensor, first, out)
    }

    fn file_of(&self, tensor: &str) -> Result<&SafetensorsFile, WeightError> {
        let file = self.tensors.get(tensor).and_then(|file| self.files.get(file));
        file.ok_or_else(|| WeightError::NotFound { name: tensor.to_owned() })
    }
}

impl WeightSource for SafetensorsWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        self.file_of(name)?.shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        self.file_of(name)?.read_rows(name, rows, out)
    }

    fn read_elements(&self, name: &str, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        self.file_of(name)?.read_elements(name, first, out)
    }
}
