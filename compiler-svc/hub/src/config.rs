//! Where checkpoints come from and where they are kept.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The hub.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Environment variables that configure object stores, by prefix.
const STORE_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Where checkpoints come from and where they are kept.
#[derive(Clone)]
pub struct HubConfig {
    /// The hub's address.
    pub endpoint: String,
    /// The token that the hub is shown, and nobody else.
    pub token: Option<String>,
    /// The hub's cache, in the layout that Python's `huggingface_hub` uses and shares.
    pub hub_cache: PathBuf,
    /// Roundhouse's own cache: checkpoints of object stores, and digests of files.
    pub cache: PathBuf,
    /// Only what is cached, no network.
    pub offline: bool,
    /// Whether paths of this machine may be opened. A service for others says no.
    pub local_paths: bool,
    /// How long the first retry waits; every further one waits twice as long.
    pub retry_delay: Duration,
    /// Options of object stores, by object_store's names.
    pub object_store: BTreeMap<String, String>,
}

/// The values that may be credentials are left out.
impl fmt::Debug for HubConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.is_some())
            .field("hub_cache", &self.hub_cache)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("local_paths", &self.local_paths)
            .field("retry_delay", &self.retry_delay)
            .field("object_store", &self.object_store.keys())
            .finish()
    }
}

impl HubConfig {
    /// From the variables that `huggingface_hub` reads (`HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`), those of the object stores (`AWS_…`,
    /// `GOOGLE_…`, `AZURE_…`), and `XDG_CACHE_HOME`. Local paths are allowed. Reads the token's file, if there is one.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::env::vars_os())
    }

    fn from_variables(
        get: impl Fn(&str) -> Option<OsString>,
        all: impl Iterator<Item = (OsString, OsString)>,
    ) -> Self {
        let text = |name: &str| {
            get(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
        };
        let path = |name: &str| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let is_on = |name: &str| {
            text(name)
                .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let caches = path("XDG_CACHE_HOME")
            .or_else(|| path("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        let hub_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let hub_cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let object_store = all.filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let known = STORE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            known.then_some((name, value.into_string().ok()?))
        });
        Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token: token.filter(|_| !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            hub_cache: hub_cache.unwrap_or_else(|| hub_home.join("hub")),
            cache: caches.join("roundhouse"),
            offline: is_on("HF_HUB_OFFLINE"),
            local_paths: true,
            retry_delay: Duration::from_millis(500),
            object_store: object_store.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        let all: Vec<(OsString, OsString)> =
            variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        let get = |name: &str| all.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        HubConfig::from_variables(get, all.clone().into_iter())
    }

    #[test]
    fn caches_are_where_huggingface_hub_has_them() {
        let cache = |variables: &[(&str, &str)]| config(variables).hub_cache;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
    }

    #[test]
    fn the_token_is_the_variables_or_the_files() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let token = |variables: &[(&str, &str)]| config(variables).token;
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).as_deref(),
            Some("hf_variable")
        );
        assert_eq!(token(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", "/none")]), None);
    }

    #[test]
    fn credentials_are_not_printed() {
        let printed =
            format!("{:?}", config(&[("HF_TOKEN", "hf_secret"), ("AWS_SECRET_ACCESS_KEY", "aws_secret")]));
        assert!(printed.contains("AWS_SECRET_ACCESS_KEY") && !printed.contains("_secret"), "{printed}");
    }

    #[test]
    fn offline_is_said_in_the_usual_ways() {
        for (value, offline) in [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("", false)] {
            assert_eq!(config(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
        }
    }
}
