//! What may be fetched.

use std::collections::BTreeMap;
use std::time::Duration;

/// What may be fetched. By default nothing but what is in the request itself.
#[derive(Debug, Clone)]
pub struct FetchPolicy {
    /// Images on the web; `None`: none at all.
    pub http: Option<HttpPolicy>,
    /// Images in object stores.
    pub object_stores: ObjectStorePolicy,
    /// How long one image may take, redirects and all.
    pub timeout: Duration,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self { http: None, object_stores: ObjectStorePolicy::default(), timeout: Duration::from_secs(10) }
    }
}

/// Which images on the web may be fetched.
///
/// An address that a host name stands for is looked at after it was resolved, for every redirect anew, and it is that very
/// address which is connected to: it must be one of the public internet.
#[derive(Debug, Clone)]
pub struct HttpPolicy {
    /// Whether `http` is allowed beside `https`.
    pub plaintext: bool,
    /// Hosts that may be asked: names and addresses, or `*.example.org` for everything below a name. `None`: all of the
    /// public internet.
    pub hosts: Option<Vec<String>>,
    /// Hosts that may have private addresses: a service of one's own that keeps images. Names and addresses as above, never
    /// all. They need not be in `hosts`.
    pub private_hosts: Vec<String>,
    /// Redirects that are followed.
    pub max_redirects: usize,
    /// How long connecting may take, in all [`FetchPolicy::timeout`] at most.
    pub connect_timeout: Duration,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            plaintext: false,
            hosts: None,
            private_hosts: Vec::new(),
            max_redirects: 3,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl HttpPolicy {
    /// Whether this host may be asked at all.
    pub(super) fn allows(&self, host: &str) -> bool {
        self.hosts.as_deref().is_none_or(|hosts| matches_any(hosts, host)) || self.allows_private(host)
    }

    /// Whether this host may have a private address.
    pub(super) fn allows_private(&self, host: &str) -> bool {
        matches_any(&self.private_hosts, host)
    }
}

fn matches_any(patterns: &[String], host: &str) -> bool {
    let host = host.trim_end_matches('.');
    patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
        Some(parent) => {
            let (host, parent) = (host.to_ascii_lowercase(), parent.to_ascii_lowercase());
            host.strip_suffix(&parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        }
        None => pattern.trim_matches(['[', ']']).eq_ignore_ascii_case(host),
    })
}

/// Which objects may be fetched, with the service's own credentials: so only what is named here.
#[derive(Clone, Default)]
pub struct ObjectStorePolicy {
    /// URLs below which everything may be read, such as `s3://bucket` or `gs://bucket/uploads`.
    pub prefixes: Vec<String>,
    /// Options of the storage clients, by object_store's names: `aws_region`, `aws_endpoint`, ….
    pub options: BTreeMap<String, String>,
}

/// The values of the options are left out: they are credentials.
impl std::fmt::Debug for ObjectStorePolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options: Vec<_> = self.options.keys().collect();
        f.debug_struct("ObjectStorePolicy")
            .field("prefixes", &self.prefixes)
            .field("options", &options)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_match_by_name_and_below_a_name() {
        let patterns = ["example.org".to_owned(), "*.cdn.example".to_owned(), "[::1]".to_owned()];
        for host in ["example.org", "EXAMPLE.org.", "a.cdn.example", "a.b.cdn.example", "::1"] {
            assert!(matches_any(&patterns, host), "{host}");
        }
        for host in
            ["a.example.org", "cdn.example", ".cdn.example", "evilcdn.example", "example.org.evil", ""]
        {
            assert!(!matches_any(&patterns, host), "{host}");
        }
    }

    #[test]
    fn nothing_is_allowed_by_default_and_credentials_are_not_printed() {
        let policy = FetchPolicy::default();
        assert!(policy.http.is_none() && policy.object_stores.prefixes.is_empty());
        let options = BTreeMap::from([("aws_secret_access_key".to_owned(), "hidden".to_owned())]);
        let printed = format!("{:?}", ObjectStorePolicy { prefixes: Vec::new(), options });
        assert!(printed.contains("aws_secret_access_key") && !printed.contains("hidden"), "{printed}");
    }
}
