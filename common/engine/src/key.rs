//! The engine key.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{EngineOptions, Target};

/// Hex SHA-256 over everything that makes an engine what it is.
///
/// Always 64 lower-case hex digits, also when read from JSON, so it is safe as a folder's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EngineKey(String);

/// Text that is no engine key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found:?} is no engine key: expected 64 lower-case hex digits")]
pub struct InvalidKey {
    /// The text, cut to [`InvalidKey::MAX_FOUND`] characters.
    pub found: String,
}

impl InvalidKey {
    /// Characters of the text that an error repeats.
    pub const MAX_FOUND: usize = 80;
}

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
    /// The key of these inputs: SHA-256 of their compact JSON, members in the order of declaration. A field added to
    /// [`KeyInputs`], [`EngineOptions`] or [`Target`] therefore makes every earlier engine a different one.
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
        is_sha256_hex(text).then(|| Self(text.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether this is a SHA-256 as this crate writes it: 64 lower-case hex digits.
pub(crate) fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl TryFrom<String> for EngineKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        if is_sha256_hex(&text) {
            return Ok(Self(text));
        }
        Err(InvalidKey { found: text.chars().take(InvalidKey::MAX_FOUND).collect() })
    }
}

impl FromStr for EngineKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text.to_owned())
    }
}

impl From<EngineKey> for String {
    fn from(key: EngineKey) -> Self {
        key.0
    }
}

impl std::fmt::Display for EngineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackendKind, CacheKind, ComputeCapabilities, Precision, WeightQuantization};

    const CHECKPOINT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// The name of an input, and what changes it.
    type Change = (&'static str, fn(&mut Case));

    #[derive(Clone)]
    struct Case {
        checkpoint_digest: String,
        options: EngineOptions,
        backend_version: String,
        target: Target,
        compiler_version: String,
    }

    impl Case {
        fn base() -> Self {
            Self {
                checkpoint_digest: CHECKPOINT.to_owned(),
                options: EngineOptions {
                    precision: Precision::Fp16,
                    cache: CacheKind::InPlace,
                    backend: BackendKind::Cpu,
                    max_seq_len: 4096,
                    max_batch_size: 8,
                    all_logits: false,
                    targets: ComputeCapabilities::NONE,
                    quantization: WeightQuantization::None,
                    tensorrt: None,
                },
                backend_version: "cpu-1".to_owned(),
                target: Target {
                    os: "linux".to_owned(),
                    arch: "x86_64".to_owned(),
                    compute_capabilities: Vec::new(),
                },
                compiler_version: "0.1.0".to_owned(),
            }
        }

        fn key(&self) -> EngineKey {
            EngineKey::new(&KeyInputs {
                checkpoint_digest: &self.checkpoint_digest,
                options: &self.options,
                backend_version: &self.backend_version,
                target: &self.target,
                compiler_version: &self.compiler_version,
            })
            .unwrap()
        }
    }

    /// The expected values come from Python's hashlib over the JSON text written by hand.
    #[test]
    fn key_is_stable() {
        assert_eq!(
            Case::base().key().as_str(),
            "243468b6942c9d92e0e932ff9466ff7af558f0f00458ed65c719e39abccb44b8"
        );
        let mut gpu = Case::base();
        gpu.target.compute_capabilities = vec!["sm_80".to_owned(), "sm_90".to_owned()];
        assert_eq!(gpu.key().as_str(), "b0b5377649b0a27e8c7082ad0a6de2d61164d06a96318d33d150d67ba7b42f1e");
    }

    #[test]
    fn key_changes_with_every_input() {
        let base = Case::base();
        let changes: [Change; 13] = [
            ("checkpoint_digest", |case| case.checkpoint_digest.replace_range(0..1, "b")),
            ("precision", |case| case.options.precision = Precision::Bf16),
            ("cache", |case| case.options.cache = CacheKind::StaticV2),
            ("backend", |case| case.options.backend = BackendKind::Cuda),
            ("max_seq_len", |case| case.options.max_seq_len += 1),
            ("max_batch_size", |case| case.options.max_batch_size += 1),
            ("all_logits", |case| case.options.all_logits = true),
            ("backend_version", |case| case.backend_version.push('1')),
            ("os", |case| case.target.os = "macos".to_owned()),
            ("arch", |case| case.target.arch = "aarch64".to_owned()),
            ("compute_capabilities", |case| case.target.compute_capabilities.push("sm_80".to_owned())),
            ("compiler_version", |case| case.compiler_version.push('1')),
            // Text moved from one input into its neighbour.
            ("boundary", |case| {
                case.backend_version.push_str("linux");
                case.target.os.clear();
            }),
        ];
        let mut keys = vec![base.key()];
        for (what, change) in changes {
            let mut changed = base.clone();
            change(&mut changed);
            let key = changed.key();
            assert!(!keys.contains(&key), "{what} does not change the key");
            assert_eq!(key, changed.key(), "{what}: the same inputs give the same key");
            keys.push(key);
        }
    }

    #[test]
    fn only_lower_case_hex_of_64_digits_is_a_key() {
        let good = Case::base().key();
        assert_eq!(EngineKey::parse(good.as_str()), Some(good.clone()));
        assert_eq!(good.as_str().parse(), Ok(good.clone()));
        let upper = good.as_str().to_uppercase();
        for bad in ["", "abc", &upper, &"g".repeat(64), &"a".repeat(65), "../../../../etc/passwd"] {
            assert_eq!(EngineKey::parse(bad), None, "{bad}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<EngineKey>(&json).is_err(), "{bad} from JSON");
        }
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<EngineKey>(&json).unwrap(), good);
    }
}
