//! Which files make a Hugging Face checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::HubError;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Where processors of vision-language models kept the chat template before `chat_template.jinja`.
pub(crate) const CHAT_TEMPLATE_JSON: &str = "chat_template.json";
pub(crate) const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";
/// Where ModelOpt says how it quantised the weights.
pub(crate) const QUANTIZATION_CONFIG: &str = "hf_quant_config.json";
const SINGLE_WEIGHTS: &str = "model.safetensors";
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
const PICKLED_WEIGHTS: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Files beside the weights that are read when they are there.
pub(crate) const OPTIONAL: [&str; 6] = [
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    PREPROCESSOR_CONFIG,
    QUANTIZATION_CONFIG,
];

/// Every name that [`Layout::of`] looks for, for places that cannot list.
pub(crate) fn candidates() -> impl Iterator<Item = &'static str> {
    [CONFIG, TOKENIZER, SINGLE_WEIGHTS, WEIGHTS_INDEX].into_iter().chain(OPTIONAL).chain(PICKLED_WEIGHTS)
}

/// Where the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightFiles {
    /// In `model.safetensors`.
    Single,
    /// In the files that `model.safetensors.index.json` names.
    Indexed,
}

/// The files of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Everything but the weights.
    pub(crate) small: Vec<&'static str>,
    pub(crate) weights: WeightFiles,
}

impl Layout {
    /// Decides from the names of the files that are there. `place` is for errors.
    ///
    /// # Errors
    /// When there is no config, no tokenizer, or no weights in a form that is read.
    pub(crate) fn of(place: &str, names: &BTreeSet<String>) -> Result<Self, HubError> {
        let has = |name: &str| names.contains(name);
        let place = place.to_owned();
        let ending = |suffix: &str| names.iter().find(|name| name.ends_with(suffix));
        if !has(CONFIG) {
            return Err(match ending(".gguf") {
                Some(file) => HubError::Unsupported {
                    place,
                    found: format!("a folder of GGUF files ({file}, …) without {CONFIG}"),
                    supported: "the path or object-store URL of one GGUF file".to_owned(),
                },
                None => HubError::MissingFile { place, file: CONFIG.to_owned() },
            });
        }
        if !has(TOKENIZER) {
            return Err(HubError::MissingTokenizer { place });
        }
        let weights = if has(SINGLE_WEIGHTS) {
            WeightFiles::Single
        } else if has(WEIGHTS_INDEX) {
            WeightFiles::Indexed
        } else if let Some(pickled) = PICKLED_WEIGHTS.into_iter().find(|name| has(name)) {
            return Err(HubError::Unsupported {
                place,
                found: format!("pickled weights ({pickled})"),
                supported: "safetensors; convert with transformers' save_pretrained, or name a revision that has them"
                    .to_owned(),
            });
        } else {
            return Err(HubError::MissingFile {
                place,
                file: format!("{SINGLE_WEIGHTS} or {WEIGHTS_INDEX}"),
            });
        };
        let small = [CONFIG, TOKENIZER].into_iter().chain(OPTIONAL).filter(|name| has(name)).collect();
        Ok(Self { small, weights })
    }

    /// The names of the weight files, given the content of the index when there is one.
    ///
    /// # Errors
    /// When the index is broken or names files outside the checkpoint's folder.
    pub(crate) fn weight_files(index: Option<&WeightIndex>) -> BTreeSet<String> {
        match index {
            None => BTreeSet::from([SINGLE_WEIGHTS.to_owned()]),
            Some(index) => index.weight_map.values().cloned().collect(),
        }
    }
}

/// `model.safetensors.index.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct WeightIndex {
    /// Tensor to file.
    pub(crate) weight_map: BTreeMap<String, String>,
}

impl WeightIndex {
    /// Reads it. The error says what is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if index.weight_map.is_empty() {
            return Err("weight_map names no files".to_owned());
        }
        match index.weight_map.values().find(|file| !is_plain_name(file) || !file.ends_with(".safetensors")) {
            Some(file) => {
                Err(format!("weight_map names {file:?}, which is no safetensors file of this folder"))
            }
            None => Ok(index),
        }
    }
}

/// Whether this names a file in the folder it is in, and nothing else.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.bytes().any(|byte| matches!(byte, b'/' | b'\\' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<Layout, HubError> {
        Layout::of("here", &names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn only_files_that_are_read_are_part_of_it() {
        let layout = of(&[
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
            "x.bin",
        ]);
        let layout = layout.unwrap();
        assert_eq!(layout.small, ["config.json", "tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(layout.weights, WeightFiles::Single);
        assert_eq!(
            of(&["config.json", "tokenizer.json", "model.safetensors.index.json"]).unwrap().weights,
            WeightFiles::Indexed
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |names: &[&str]| of(names).unwrap_err().to_string();
        assert_eq!(message(&["model.safetensors", "tokenizer.json"]), "here has no config.json");
        assert!(
            message(&["config.json", "model.safetensors", "tokenizer.model"]).contains("no tokenizer.json")
        );
        assert!(message(&["config.json", "tokenizer.json"]).contains("no model.safetensors"));
        assert!(
            message(&["config.json", "tokenizer.json", "pytorch_model.bin"]).contains("pytorch_model.bin")
        );
        assert!(message(&["a-Q4_K_M.gguf"]).contains("a-Q4_K_M.gguf"));
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        for file in
            ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "", ".safetensors", "x.bin"]
        {
            let index = format!(r#"{{"weight_map": {{"w": {}}}}}"#, serde_json::to_string(file).unwrap());
            assert!(WeightIndex::parse(index.as_bytes()).is_err(), "{file:?}");
        }
        assert!(WeightIndex::parse(br#"{"weight_map": {}}"#).is_err());
        assert!(WeightIndex::parse(br#"{"weight_map": {"w": "model-1.safetensors"}}"#).is_ok());
    }
}
