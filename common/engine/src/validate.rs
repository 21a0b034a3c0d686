//! What a manifest from outside must hold before anything it names is used.

use std::collections::BTreeMap;

use crate::key::is_sha256_hex;
use crate::{Manifest, ManifestError};

/// The most blobs that an engine has.
const MAX_BLOBS: usize = 1024;
/// The most bytes of a blob's name.
const MAX_NAME_BYTES: usize = 128;
/// The most bytes of a line of text: a model's name, a version.
const MAX_TEXT_BYTES: usize = 4096;
/// The largest blob: what a file offset can hold.
const MAX_BLOB_BYTES: u64 = i64::MAX as u64;

impl Manifest {
    /// Checks what a stranger could have written into it: blob names are file names without any separator, digests are
    /// lower-case hex, no name comes twice, one digest has one size, sizes fit a file, rings are a part of the caches,
    /// and text has no control characters (it ends up in terminals and logs).
    ///
    /// # Errors
    /// [`ManifestError::Format`] or [`ManifestError::Invalid`], which names the first value that is wrong.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.format != Self::FORMAT {
            return Err(ManifestError::Format {
                key: self.key.to_string(),
                found: u64::from(self.format),
                expected: Self::FORMAT,
            });
        }
        self.validate_texts()
            .and_then(|()| self.validate_memory_plan())
            .and_then(|()| self.validate_blobs())
            .map_err(|what| ManifestError::Invalid { key: self.key.to_string(), what })
    }

    fn validate_texts(&self) -> Result<(), String> {
        let texts = [
            ("model", self.model.as_str()),
            ("revision", self.revision.as_deref().unwrap_or_default()),
            ("model_type", &self.info.model_type),
            ("architecture", &self.info.architecture),
            ("os", &self.target.os),
            ("arch", &self.target.arch),
            ("backend_version", &self.backend_version),
            ("compiler_version", &self.compiler_version),
        ];
        let capabilities = self.target.compute_capabilities.iter();
        let capabilities = capabilities.map(|text| ("compute_capabilities", text.as_str()));
        let passes = self.passes.iter().map(|report| ("pass", report.pass.as_str()));
        let counts = self.passes.iter().flat_map(|report| report.counts.keys());
        let counts = counts.map(|name| ("counts", name.as_str()));
        for (field, text) in texts.into_iter().chain(capabilities).chain(passes).chain(counts) {
            if text.len() > MAX_TEXT_BYTES {
                return Err(format!("{field} has {} bytes; at most {MAX_TEXT_BYTES} are read", text.len()));
            }
            if text.chars().any(char::is_control) {
                return Err(format!("{field} {text:?} has a control character"));
            }
        }
        if !is_sha256_hex(&self.checkpoint_digest) {
            return Err(format!("checkpoint_digest {:?} is no hex SHA-256", cut(&self.checkpoint_digest)));
        }
        Ok(())
    }

    fn validate_memory_plan(&self) -> Result<(), String> {
        let plan = &self.memory_plan;
        let rings = plan.kv_rings.iter().fold(0, |sum: u64, ring| sum.saturating_add(ring.bytes_per_token));
        if rings > plan.kv_bytes_per_token {
            let all = plan.kv_bytes_per_token;
            return Err(format!("kv_rings of {rings} bytes a token, of {all} bytes of all layers"));
        }
        Ok(())
    }

    fn validate_blobs(&self) -> Result<(), String> {
        if self.blobs.len() > MAX_BLOBS {
            return Err(format!("{} blobs; at most {MAX_BLOBS} are read", self.blobs.len()));
        }
        let mut names = BTreeMap::new();
        let mut sizes = BTreeMap::new();
        for blob in &self.blobs {
            let name = blob.name.as_str();
            if !is_safe_name(name) {
                return Err(format!(
                    "blob name {:?}: expected at most {MAX_NAME_BYTES} letters, digits, '.', '_' and '-', the first \
                     one a letter or digit",
                    cut(name)
                ));
            }
            if !is_sha256_hex(&blob.sha256) {
                return Err(format!("blob {name}: {:?} is no hex SHA-256", cut(&blob.sha256)));
            }
            if blob.size > MAX_BLOB_BYTES {
                return Err(format!("blob {name}: {} bytes fit no file", blob.size));
            }
            if names.insert(name, ()).is_some() {
                return Err(format!("blob {name} comes twice"));
            }
            let size = *sizes.entry(blob.sha256.as_str()).or_insert(blob.size);
            if size != blob.size {
                return Err(format!("blob {name}: {} has {size} and {} bytes", blob.sha256, blob.size));
            }
        }
        Ok(())
    }
}

/// Whether a name is one file's on any system: no separator, no drive, no parent, not hidden.
fn is_safe_name(name: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.len() <= MAX_NAME_BYTES
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(safe)
}

/// The start of a text from outside, short enough for a message.
fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME_BYTES).collect()
}
