//! What an executor is told of images.

use clap::Args;
use roundhouse_executor::ImageConfig;
use roundhouse_executor::vision::{FetchPolicy, HttpPolicy};

/// What an executor is told of images.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArgs {
    /// Bytes of memory for the features of images that come again; 0 keeps none.
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    image_cache_bytes: u64,
    /// Hosts whose https URLs requests may give for images: names, `*.example.org`, or `*` for all of the public internet.
    /// None by default.
    #[arg(long, value_delimiter = ',', value_name = "HOST,…")]
    image_hosts: Vec<String>,
}

impl Default for ImageArgs {
    fn default() -> Self {
        Self { image_cache_bytes: 256 << 20, image_hosts: Vec::new() }
    }
}

impl ImageArgs {
    /// As the executor takes it.
    pub(crate) fn config(&self) -> ImageConfig {
        let hosts = Some(self.image_hosts.clone()).filter(|hosts| !hosts.iter().any(|host| host == "*"));
        let http = (!self.image_hosts.is_empty()).then(|| HttpPolicy { hosts, ..HttpPolicy::default() });
        ImageConfig {
            fetch: FetchPolicy { http, ..FetchPolicy::default() },
            feature_cache_bytes: self.image_cache_bytes,
            ..ImageConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_fetched_unless_hosts_are_named() {
        assert!(ImageArgs::default().config().fetch.http.is_none());
        let hosts = |hosts: &[&str]| {
            let image_hosts = hosts.iter().map(|&host| host.to_owned()).collect();
            ImageArgs { image_hosts, ..ImageArgs::default() }.config().fetch.http.unwrap().hosts
        };
        assert_eq!(hosts(&["a.example"]), Some(vec!["a.example".to_owned()]));
        assert_eq!(hosts(&["*"]), None);
    }
}
