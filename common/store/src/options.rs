//! How a store is reached and how bytes move.

use std::collections::BTreeMap;
use std::time::Duration;

use object_store::ClientConfigKey;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;

use crate::StoreError;

/// How a store is reached and how bytes move.
#[derive(Clone)]
pub struct StoreOptions {
    /// Options of the storage client, by object_store's names: `aws_region`, `google_service_account`,
    /// `azure_storage_account_name`, `timeout` (of one part or range), …. They win over the environment.
    pub config: BTreeMap<String, String>,
    /// The same from environment variables; names that no client knows are ignored.
    pub environment: BTreeMap<String, String>,
    /// Bytes of one part of an upload: S3 wants at least 5 MiB. Larger where a file would have too many parts.
    pub part_bytes: usize,
    /// Parts of one upload on their way at once. With [`StoreOptions::part_bytes`] it bounds an upload's memory: two
    /// more parts are read ahead. A store that is a folder has one on its way.
    pub parts_in_flight: usize,
    /// Bytes of one request of a download.
    pub range_bytes: u64,
    /// Requests of one pull on their way at once, over all its blobs. With [`StoreOptions::range_bytes`] it bounds a
    /// pull's memory: a few ranges more wait for the disk.
    pub ranges_in_flight: usize,
    /// How long a blob that no manifest names is left alone after its upload: its uploader may still be about to
    /// write the manifest. See [`crate::EngineStore::delete`].
    pub blob_grace: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            config: BTreeMap::new(),
            environment: BTreeMap::new(),
            part_bytes: 16 << 20,
            parts_in_flight: 4,
            range_bytes: 8 << 20,
            ranges_in_flight: 8,
            blob_grace: Duration::from_secs(3600),
        }
    }
}

/// The values are left out: they are credentials.
impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreOptions")
            .field("config", &self.config.keys())
            .field("environment", &self.environment.keys())
            .field("part_bytes", &self.part_bytes)
            .field("parts_in_flight", &self.parts_in_flight)
            .field("range_bytes", &self.range_bytes)
            .field("ranges_in_flight", &self.ranges_in_flight)
            .field("blob_grace", &self.blob_grace)
            .finish()
    }
}

impl StoreOptions {
    /// The prefixes of the environment variables that storage clients read.
    const ENVIRONMENT_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

    /// The defaults, with the environment variables that the clouds' own tools read: `AWS_ACCESS_KEY_ID`,
    /// `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, ….
    #[must_use]
    pub fn from_env() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let known = Self::ENVIRONMENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            known.then_some((name, value.into_string().ok()?))
        });
        Self { environment: variables.collect(), ..Self::default() }
    }

    /// With one option of the storage client.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(name.into(), value.into());
        self
    }

    /// The client's options, later ones winning.
    ///
    /// # Errors
    /// [`StoreError::UnknownOption`] for one of `config` that no client knows, since the clients ignore it silently.
    pub(crate) fn client_options(&self) -> Result<Vec<(String, String)>, StoreError> {
        if let Some(name) = self.config.keys().find(|name| !is_known(&name.to_ascii_lowercase())) {
            return Err(StoreError::UnknownOption { name: name.clone() });
        }
        let all = self.environment.iter().chain(&self.config);
        Ok(all.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

fn is_known(name: &str) -> bool {
    name.parse::<AmazonS3ConfigKey>().is_ok()
        || name.parse::<GoogleConfigKey>().is_ok()
        || name.parse::<AzureConfigKey>().is_ok()
        || name.parse::<ClientConfigKey>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_no_client_knows_is_refused() {
        for name in
            ["aws_region", "AWS_REGION", "google_service_account", "azure_storage_account_name", "timeout"]
        {
            assert!(StoreOptions::default().with(name, "x").client_options().is_ok(), "{name}");
        }
        let error = StoreOptions::default().with("aws_regoin", "x").client_options().unwrap_err();
        assert!(error.to_string().contains("aws_regoin"), "{error}");
    }

    #[test]
    fn options_win_over_the_environment_and_are_not_printed() {
        let mut options = StoreOptions::default().with("AWS_SECRET_ACCESS_KEY", "given");
        options.environment.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "ambient".to_owned());
        options.environment.insert("AWS_PROFILE_OF_SOMEBODY".to_owned(), "ignored".to_owned());
        let all = options.client_options().unwrap();
        let secret = all.iter().rfind(|(name, _)| name == "AWS_SECRET_ACCESS_KEY").unwrap();
        assert_eq!(secret.1, "given");
        let printed = format!("{options:?}");
        assert!(printed.contains("AWS_SECRET_ACCESS_KEY") && !printed.contains("given"), "{printed}");
    }
}
