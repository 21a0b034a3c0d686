//! A GGUF file as a checkpoint: tensors under their Hugging Face names, config and tokenizer rebuilt from metadata.

mod architecture;
mod byte_pair;
mod config;
mod container;
mod metadata;
mod packing;
mod quantisation;
mod rope;
mod sentencepiece;
mod tensor_names;
mod tokenizer;
mod weights;

use std::path::Path;

use crate::digest::{self, FileDigests};
use crate::progress::Cancelled;
use crate::{Checkpoint, HubError};

use architecture::Architecture;
use container::Container;
use weights::GgufWeights;

/// The name that a GGUF file's content has in a checkpoint's digest, wherever the file is and whatever it is called.
const DIGEST_NAME: &str = "gguf";

/// Opens a GGUF file. `hashed` gets the bytes hashed so far and those of the file.
///
/// # Errors
/// When the file is broken, or its architecture, a tensor's type or its tokenizer is not supported.
pub(crate) fn open(
    path: &Path,
    model: &str,
    digests: &FileDigests,
    hashed: &mut dyn FnMut(u64, u64) -> Result<(), Cancelled>,
) -> Result<Checkpoint, HubError> {
    let container = Container::open(path)?;
    let architecture = Architecture::of(&container)?;
    let config = architecture.config(&container)?;
    let tokenizer = tokenizer::rebuild(&container.metadata)?;
    let total = container.file.len();
    let weights = GgufWeights::new(container, architecture)?;
    let mut done = 0;
    let sha256 = digests.of_file(path, &mut |bytes| {
        done += bytes;
        hashed(done, total)
    })?;
    Ok(Checkpoint {
        model: model.to_owned(),
        revision: None,
        digest: digest::of_checkpoint([(DIGEST_NAME, sha256.as_str())]),
        config,
        tokenizer_json: Some(tokenizer.json),
        tokenizer_config: Some(tokenizer.config),
        chat_template: tokenizer.chat_template,
        generation_config: Some(tokenizer.generation_config),
        preprocessor_config: None,
        weight_bytes: weights.stored_bytes(),
        weights: Box::new(weights),
    })
}
