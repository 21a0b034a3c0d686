//! The engine key.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{EngineOptions, Target};

/// Hex SHA-256 over everything that makes an engine what it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineKey(String);

/// What goes into a key.
#[derive(Debug, Clone, Serialize)]
pub struct KeyInputs<'a> {
    /// Hex SHA-256 that identifies the checkpoint's content.
    pub checkpoint_digest: &'a str,
    /// Every option, defaults filled in.
    pub options: &'a EngineOptions,
    /// The backend's exact version.
    pub backend_version: &'a str,
    /// What it runs on.
    pub target: &'a Target,
    /// The compiler's exact version.
    pub compiler_version: &'a str,
}

impl EngineKey {
    /// The key of these inputs.
    ///
    /// # Errors
    /// Never in practice: the inputs serialise.
    pub fn new(inputs: &KeyInputs<'_>) -> Result<Self, serde_json::Error> {
        let canonical = serde_json::to_vec(inputs)?;
        let digest = Sha256::digest(&canonical);
        Ok(Self(digest.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The key as text, if it is 64 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for EngineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
