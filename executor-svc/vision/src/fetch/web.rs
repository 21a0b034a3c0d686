//! Images on the web.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use url::{Host, Url};

use super::address::is_public;
use super::{Collected, HttpPolicy};
use crate::VisionError;
use crate::limits::ImageLimits;
use crate::source::{invalid, refused};

const USER_AGENT: &str = concat!("roundhouse/", env!("CARGO_PKG_VERSION"));

/// Gets images by HTTP.
#[derive(Debug)]
pub(super) struct WebClient {
    policy: Arc<HttpPolicy>,
    client: Client,
}

impl WebClient {
    pub(super) fn new(policy: HttpPolicy) -> Result<Self, VisionError> {
        roundhouse_tls::choose_provider();
        let policy = Arc::new(policy);
        let client = Client::builder()
            .user_agent(USER_AGENT)
            // A proxy would resolve names itself, and its own address is private.
            .no_proxy()
            // Each target is looked at before it is asked.
            .redirect(Policy::none())
            .dns_resolver(Arc::new(CheckedResolver { policy: Arc::clone(&policy) }))
            .connect_timeout(policy.connect_timeout)
            .build()
            .map_err(|error| VisionError::InvalidPolicy { what: format!("no HTTP client: {error}") })?;
        Ok(Self { policy, client })
    }

    /// The bytes behind a URL.
    pub(super) async fn fetch(&self, url: &Url, limits: &ImageLimits) -> Result<Bytes, VisionError> {
        let mut url = url.clone();
        for _ in 0..=self.policy.max_redirects {
            self.check(&url)?;
            let request = self.client.get(url.clone()).header(ACCEPT, "image/*");
            let response = request.send().await.map_err(|error| meaning(&error))?;
            match redirect(&response, &url)? {
                Some(target) => url = target,
                None => return body(response, limits).await,
            }
        }
        Err(refused(format!("more than {} redirects", self.policy.max_redirects)))
    }

    /// Looks at everything of a URL that is known before its host's name is resolved.
    fn check(&self, url: &Url) -> Result<(), VisionError> {
        match url.scheme() {
            "https" => {}
            "http" if self.policy.plaintext => {}
            "http" => return Err(refused("images are fetched by https only".to_owned())),
            scheme => return Err(refused(format!("a redirect to a URL of scheme {scheme:?}"))),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("credentials in the URL".to_owned()));
        }
        // An address takes no resolving, and so passes by the resolver.
        let (host, address) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), None),
            Some(Host::Ipv4(address)) => (address.to_string(), Some(IpAddr::V4(address))),
            Some(Host::Ipv6(address)) => (address.to_string(), Some(IpAddr::V6(address))),
            None => return Err(invalid("a URL without a host".to_owned())),
        };
        if !self.policy.allows(&host) {
            return Err(refused("this service reads no images from that host".to_owned()));
        }
        match address {
            Some(address) if !is_public(address) && !self.policy.allows_private(&host) => Err(not_public()),
            _ => Ok(()),
        }
    }
}

/// Resolves names to public addresses only: what it gives is what is connected to.
struct CheckedResolver {
    policy: Arc<HttpPolicy>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let resolved = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = resolved.collect();
            // One private address among public ones is an attempt to get at it.
            let all_public = addresses.iter().all(|address| is_public(address.ip()));
            if !all_public && !policy.allows_private(name.as_str()) {
                return Err(Box::new(NotPublic) as Box<dyn StdError + Send + Sync>);
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// A name stands for an address that is not of the public internet.
#[derive(Debug, thiserror::Error)]
#[error("the host is not on the public internet")]
struct NotPublic;

fn not_public() -> VisionError {
    refused("the host is not on the public internet".to_owned())
}

/// Where an answer leads to, if it is a redirect.
fn redirect(response: &Response, url: &Url) -> Result<Option<Url>, VisionError> {
    let status = response.status();
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = location.and_then(|location| url.join(location).ok());
    target.map(Some).ok_or_else(|| failed(format!("it answered {status} without a place to go to")))
}

async fn body(mut response: Response, limits: &ImageLimits) -> Result<Bytes, VisionError> {
    let status = response.status();
    if status != StatusCode::OK {
        let what = format!("the server answered {status}");
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        return Err(if passing { failed(what) } else { VisionError::NotFound { what } });
    }
    let mut collected = Collected::new(response.content_length(), limits.max_encoded_bytes)?;
    while let Some(piece) = response.chunk().await.map_err(|error| meaning(&error))? {
        collected.push(&piece)?;
    }
    Ok(collected.finish())
}

/// What a client's error means. Its text is left out: it may name addresses.
fn meaning(error: &reqwest::Error) -> VisionError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<NotPublic>() {
            return not_public();
        }
        cause = error.source();
    }
    failed(if error.is_connect() { "no connection".to_owned() } else { "the transfer broke off".to_owned() })
}

fn failed(what: String) -> VisionError {
    VisionError::SourceFailed { what }
}
