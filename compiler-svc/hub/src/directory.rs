//! A Hugging Face checkpoint in a local folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roundhouse_backend::WeightSource;
use serde_json::Value;

use crate::digest::{self, FileDigests};
use crate::layout::{self, Layout, WeightIndex};
use crate::progress::Cancelled;
use crate::quantized::{QuantizedWeights, Scheme};
use crate::safetensors::SafetensorsFile;
use crate::shards::SafetensorsWeights;
use crate::{Checkpoint, HubError};

/// A file beside the weights that is larger than this is not what its name says.
const MAX_SMALL_FILE_BYTES: u64 = 512 * 1024 * 1024;

/// Opens the checkpoint in `directory`. `hashed` gets the bytes hashed so far and those of all files.
///
/// # Errors
/// When files are missing, broken, or in a form that is not read.
pub(crate) fn open(
    directory: &Path,
    model: &str,
    digests: &FileDigests,
    hashed: &mut dyn FnMut(u64, u64) -> Result<(), Cancelled>,
) -> Result<Checkpoint, HubError> {
    let layout = Layout::of(&directory.display().to_string(), &file_names(directory)?)?;
    let small: BTreeMap<&str, Vec<u8>> = layout
        .small
        .iter()
        .map(|&name| Ok((name, read_small(&directory.join(name))?)))
        .collect::<Result<_, HubError>>()?;
    let json = |name: &str| -> Result<Option<Value>, HubError> {
        let Some(bytes) = small.get(name) else { return Ok(None) };
        let value = serde_json::from_slice(bytes)
            .map_err(|error| HubError::corrupt(&directory.join(name), error.to_string()))?;
        Ok(Some(value))
    };
    let mut config = json(layout::CONFIG)?.unwrap_or_default();
    let scheme = Scheme::take(&mut config, json(layout::QUANTIZATION_CONFIG)?.as_ref())
        .map_err(|refused| refused.at(&directory.join(layout::CONFIG)))?;
    let tokenizer_config = json(layout::TOKENIZER_CONFIG)?;
    let chat_template = chat_template(
        small.get(layout::CHAT_TEMPLATE).map(Vec::as_slice),
        tokenizer_config.as_ref(),
        json(layout::CHAT_TEMPLATE_JSON)?.as_ref(),
    )
    .map_err(|what| HubError::corrupt(&directory.join(layout::CHAT_TEMPLATE), what))?;

    let weights = SafetensorsWeights::open(directory, layout.weights)?;
    let digest = digest_of(directory, &layout, &weights, digests, hashed)?;
    let weight_bytes = weights.files().values().map(SafetensorsFile::data_bytes).sum();
    let weights: Box<dyn WeightSource> = match scheme {
        Some(scheme) => Box::new(
            QuantizedWeights::new(weights, &scheme).map_err(|what| HubError::corrupt(directory, what))?,
        ),
        None => Box::new(weights),
    };
    Ok(Checkpoint {
        model: model.to_owned(),
        revision: None,
        digest,
        config,
        tokenizer_config,
        chat_template,
        generation_config: json(layout::GENERATION_CONFIG)?,
        preprocessor_config: json(layout::PREPROCESSOR_CONFIG)?,
        tokenizer_json: small.get(layout::TOKENIZER).cloned(),
        weight_bytes,
        weights,
    })
}

/// The names of a folder's files.
pub(crate) fn file_names(directory: &Path) -> Result<BTreeSet<String>, HubError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(HubError::io(directory))? {
        let entry = entry.map_err(HubError::io(directory))?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.insert(name);
        }
    }
    Ok(names)
}

pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, HubError> {
    let size = path.metadata().map_err(HubError::io(path))?.len();
    if size > MAX_SMALL_FILE_BYTES {
        return Err(HubError::corrupt(
            path,
            format!("{size} bytes, at most {MAX_SMALL_FILE_BYTES} are read"),
        ));
    }
    std::fs::read(path).map_err(HubError::io(path))
}

/// Reads and checks `model.safetensors.index.json` of a folder.
pub(crate) fn read_index(directory: &Path) -> Result<WeightIndex, HubError> {
    let path = directory.join(layout::WEIGHTS_INDEX);
    WeightIndex::parse(&read_small(&path)?).map_err(|what| HubError::corrupt(&path, what))
}

/// The error says what is wrong.
fn chat_template(
    jinja: Option<&[u8]>,
    tokenizer_config: Option<&Value>,
    processor: Option<&Value>,
) -> Result<Option<String>, String> {
    if let Some(bytes) = jinja {
        return String::from_utf8(bytes.to_vec()).map(Some).map_err(|error| error.to_string());
    }
    let in_configs = [tokenizer_config, processor].into_iter().flatten();
    Ok(in_configs.filter_map(|config| config.get("chat_template")).find_map(default_template))
}

/// A template, or of a list of named ones that called `default`.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

fn digest_of(
    directory: &Path,
    layout: &Layout,
    weights: &SafetensorsWeights,
    digests: &FileDigests,
    hashed: &mut dyn FnMut(u64, u64) -> Result<(), Cancelled>,
) -> Result<String, HubError> {
    let mut names: BTreeSet<&str> = layout.small.iter().copied().collect();
    names.extend(weights.files().keys().map(String::as_str));
    let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
    let mut total = 0;
    for path in &paths {
        total += path.metadata().map_err(HubError::io(path))?.len();
    }
    let mut done = 0;
    let mut sums = Vec::with_capacity(paths.len());
    for path in &paths {
        sums.push(digests.of_file(path, &mut |bytes| {
            done += bytes;
            hashed(done, total)
        })?);
    }
    Ok(digest::of_checkpoint(names.iter().copied().zip(sums.iter().map(String::as_str))))
}
