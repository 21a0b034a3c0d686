//! What a model's name means.

use std::path::{Path, PathBuf};

use url::Url;

use crate::HubError;

/// Schemes of object stores.
const SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "https"];
/// The hub's own bound on an id.
const MAX_ID_LENGTH: usize = 96;

/// Where a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model of the hub.
    HubId {
        /// `organisation/name`, or `name` alone.
        id: String,
        /// A branch, tag or commit; the hub's `main` when absent.
        revision: Option<String>,
    },
    /// A local folder with `config.json`, safetensors and `tokenizer.json`.
    Directory(PathBuf),
    /// A local GGUF file.
    GgufFile(PathBuf),
    /// The same folder or file in an object store: the URL of a file ends in `.gguf`.
    ObjectStore(Url),
}

impl ModelSource {
    /// Reads a model's name, first match wins:
    ///
    /// 1. With a scheme: `file://` is the local path in it; `s3:// gs:// az:// abfss://` (and their variants) and
    ///    `https://` are object stores. Other schemes are errors.
    /// 2. Something that exists on this machine is that: a folder, or a GGUF file.
    /// 3. Text that can only be a path (it starts with `/`, `./`, `../` or `~`, or ends in `.gguf`) is an error.
    /// 4. `organisation/name` or `name`, of letters, digits, `-`, `_` and `.`, is an id of the hub.
    ///
    /// With `local_paths` false the first and third kind of local path are refused, and the second is not looked for,
    /// so that a service does not tell its callers which files it has.
    ///
    /// # Errors
    /// [`HubError::InvalidSource`], also for a revision of something that has none; [`HubError::PathNotFound`];
    /// [`HubError::LocalPathsForbidden`].
    pub fn parse(text: &str, revision: Option<&str>, local_paths: bool) -> Result<Self, HubError> {
        let invalid = |what: &str| HubError::InvalidSource { text: text.to_owned(), what: what.to_owned() };
        let source = Self::without_revision(text, local_paths)?;
        match (source, revision) {
            (Self::HubId { id, .. }, Some(revision)) => {
                if !is_revision(revision) {
                    return Err(invalid(&format!("{revision:?} is no branch, tag or commit")));
                }
                Ok(Self::HubId { id, revision: Some(revision.to_owned()) })
            }
            (source, None) => Ok(source),
            (_, Some(revision)) => Err(invalid(&format!(
                "revision {revision:?} was given, and only models of the hub have revisions"
            ))),
        }
    }

    fn without_revision(text: &str, local_paths: bool) -> Result<Self, HubError> {
        let invalid = |what: &str| HubError::InvalidSource { text: text.to_owned(), what: what.to_owned() };
        let forbidden = || HubError::LocalPathsForbidden { path: text.to_owned() };
        if text.is_empty() || text.contains('\0') {
            return Err(invalid("it is empty or has a NUL"));
        }
        if text.contains("://") {
            let url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
            return match url.scheme() {
                "file" if !local_paths => Err(forbidden()),
                "file" => Self::local(&url.to_file_path().map_err(|()| invalid("it is no absolute path"))?),
                scheme if SCHEMES.contains(&scheme) => Ok(Self::ObjectStore(url)),
                scheme => {
                    Err(invalid(&format!("scheme {scheme:?} is not one of file, {}", SCHEMES.join(", "))))
                }
            };
        }
        let path = Path::new(text);
        let is_path = ["/", "./", "../", "~"].iter().any(|start| text.starts_with(start))
            || text == "."
            || text == ".."
            || text.ends_with(".gguf");
        if local_paths && (is_path || path.exists()) {
            return Self::local(path);
        }
        if is_path {
            return Err(forbidden());
        }
        if !is_hub_id(text) {
            return Err(invalid(
                "it is no path on this machine, no object-store URL, and no id like organisation/name",
            ));
        }
        Ok(Self::HubId { id: text.to_owned(), revision: None })
    }

    fn local(path: &Path) -> Result<Self, HubError> {
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => HubError::PathNotFound { path: path.to_owned() },
            _ => HubError::Io { path: path.to_owned(), source: error },
        })?;
        Ok(if metadata.is_dir() { Self::Directory(path.to_owned()) } else { Self::GgufFile(path.to_owned()) })
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_hub_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    // `--` stands for `/` in the cache's folder names.
    text.len() <= MAX_ID_LENGTH
        && parts.len() <= 2
        && parts.iter().all(|part| is_word(part))
        && !text.contains("--")
        && !text.contains("..")
}

/// Branches may have slashes. It becomes a path under the cache's `refs`.
fn is_revision(text: &str) -> bool {
    text.len() <= 255
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'?' | b'*' | b':' | b'~' | b'^'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelSource, HubError> {
        ModelSource::parse(text, None, true)
    }

    #[test]
    fn what_exists_here_is_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("model.gguf");
        std::fs::write(&file, "").unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        assert_eq!(
            parse(&text(directory.path())).unwrap(),
            ModelSource::Directory(directory.path().to_owned())
        );
        assert_eq!(parse(&text(&file)).unwrap(), ModelSource::GgufFile(file.clone()));
        assert_eq!(parse(&format!("file://{}", text(&file))).unwrap(), ModelSource::GgufFile(file));
        assert_eq!(parse("src").unwrap(), ModelSource::Directory("src".into()));
        for missing in ["/no/such/model", "./no-such", "models/none.gguf", "file:///no/such/model"] {
            assert!(matches!(parse(missing), Err(HubError::PathNotFound { .. })), "{missing}");
        }
    }

    #[test]
    fn a_service_without_local_paths_says_nothing_about_them() {
        for text in ["/etc", "./src", "file:///etc", "/no/such/model", "none.gguf"] {
            let result = ModelSource::parse(text, None, false);
            assert!(matches!(result, Err(HubError::LocalPathsForbidden { .. })), "{text}: {result:?}");
        }
        assert!(matches!(ModelSource::parse("src", None, false), Ok(ModelSource::HubId { .. })));
    }

    #[test]
    fn object_store_urls_are_recognised_by_their_scheme() {
        for text in
            ["s3://bucket/a/model", "gs://b/m.gguf", "az://container/m", "abfss://c@a.dfs.core.windows.net/m"]
        {
            assert!(matches!(parse(text), Ok(ModelSource::ObjectStore(_))), "{text}");
        }
        for text in ["ftp://host/m", "memory:///m", "s3://"] {
            let result = parse(text);
            assert!(
                matches!(result, Err(HubError::InvalidSource { .. })) || text == "s3://",
                "{text}: {result:?}"
            );
        }
    }

    #[test]
    fn names_are_hub_ids() {
        for id in ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b_c.d-1"] {
            assert_eq!(parse(id).unwrap(), ModelSource::HubId { id: id.to_owned(), revision: None });
        }
        for text in ["", "a/b/c", "a b", "a/", "/", "a/..", "a/b--c", "ä/b", "-a/b", "a\0b", &"a".repeat(97)]
        {
            assert!(parse(text).is_err() || text == "/", "{text:?}");
        }
    }

    #[test]
    fn only_hub_ids_have_revisions() {
        let with = |text: &str, revision: &str| ModelSource::parse(text, Some(revision), true);
        assert_eq!(
            with("org/name", "refs/pr/1").unwrap(),
            ModelSource::HubId { id: "org/name".to_owned(), revision: Some("refs/pr/1".to_owned()) }
        );
        for revision in ["", "../x", "a/../b", "a b", "/a", "a//b"] {
            assert!(with("org/name", revision).is_err(), "{revision:?}");
        }
        assert!(matches!(with("src", "main"), Err(HubError::InvalidSource { .. })));
        assert!(matches!(with("s3://bucket/m", "main"), Err(HubError::InvalidSource { .. })));
    }
}
