//! The hub's HTTP interface: what a revision is, which files it has, and their bytes.
//!
//! Spoken directly and not through the crate `hf-hub` (1.0.0), whose downloads neither resume, nor check the status or
//! the length of what they write into the cache, nor verify digests, and which has no call that tells a large file's
//! digest for a downloader of one's own.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::{HubConfig, HubError};

const USER_AGENT: &str = concat!("roundhouse/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests that fail for a reason that may pass are sent again this often.
const RETRIES: u32 = 3;
/// No server may make us wait longer than that.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The answer about a revision lists its files, and some models have thousands.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// A renamed model is behind one.
const MAX_REDIRECTS: usize = 5;

/// A client of the hub.
#[derive(Debug, Clone)]
pub(crate) struct HubHttp {
    following: Client,
    /// The answer before a redirect to the storage network has what the hub says of a file.
    not_following: Client,
    endpoint: Url,
    token: Option<String>,
    retry_delay: Duration,
}

/// A revision of a model.
#[derive(Debug)]
pub(crate) struct Revision {
    pub(crate) commit: String,
    /// The names of its files.
    pub(crate) files: BTreeSet<String>,
}

/// What the hub says of a file.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Names the content: the SHA-256 of a large file, git's object id of a small one.
    pub(crate) etag: String,
    pub(crate) size: u64,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl HubHttp {
    pub(crate) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let invalid = |what: String| HubError::Network { url: config.endpoint.clone(), what };
        let endpoint = Url::parse(&config.endpoint).map_err(|error| invalid(error.to_string()))?;
        if endpoint.cannot_be_a_base() {
            return Err(invalid("the hub's endpoint is no base URL".to_owned()));
        }
        roundhouse_tls::choose_provider();
        let client = |policy| {
            let builder = Client::builder().user_agent(USER_AGENT).redirect(policy);
            let builder = builder.connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
            builder.build().map_err(|error| invalid(describe(&error)))
        };
        Ok(Self {
            // Drops the token when it leaves the hub's host.
            following: client(Policy::limited(MAX_REDIRECTS))?,
            not_following: client(Policy::none())?,
            endpoint,
            token: config.token.clone(),
            retry_delay: config.retry_delay,
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    pub(crate) fn retry_delay(&self) -> Duration {
        self.retry_delay
    }

    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    fn file_url(&self, id: &str, commit: &str, file: &str) -> Url {
        let parts: Vec<&str> = id.split('/').chain(["resolve", commit, file]).collect();
        self.url(&parts)
    }

    fn request(&self, client: &Client, method: Method, url: &Url) -> RequestBuilder {
        let request = client.request(method, url.clone());
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Finds the commit and the files of a branch, tag or commit.
    pub(crate) async fn revision(&self, id: &str, revision: &str) -> Result<Revision, HubError> {
        let parts: Vec<&str> =
            ["api", "models"].into_iter().chain(id.split('/')).chain(["revision", revision]).collect();
        let url = self.url(&parts);
        let response = self.send(&url, || self.request(&self.following, Method::GET, &url)).await?;
        let response = self.accept(response, id, revision, None)?;
        let body = limited_body(response, &url).await?;
        let info: ModelInfo =
            serde_json::from_slice(&body).map_err(|error| unexpected(&url, error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(unexpected(&url, format!("{:?} is no commit", info.sha)));
        }
        Ok(Revision {
            commit: info.sha,
            files: info.siblings.into_iter().map(|file| file.rfilename).collect(),
        })
    }

    /// Asks what a file is, without its content.
    pub(crate) async fn describe(&self, id: &str, commit: &str, file: &str) -> Result<RemoteFile, HubError> {
        let mut url = self.file_url(id, commit, file);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, || self.request(&self.not_following, Method::HEAD, &url)).await?;
            if let Some(location) = same_host_redirect(&response, &url) {
                url = location;
                continue;
            }
            let response = match response.status().is_redirection() {
                true => response,
                false => self.accept(response, id, commit, Some(file))?,
            };
            let headers = response.headers();
            if header(headers, "x-repo-commit").is_some_and(|found| found != commit) {
                return Err(unexpected(&url, "it is of another commit".to_owned()));
            }
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, ETAG.as_str()));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            let size = header(headers, "x-linked-size").or_else(|| header(headers, CONTENT_LENGTH.as_str()));
            return match (etag, size.and_then(|size| size.parse().ok())) {
                (Some(etag), Some(size)) if is_etag(etag) => Ok(RemoteFile { etag: etag.to_owned(), size }),
                _ => Err(unexpected(&url, "the answer lacks a file's ETag or size".to_owned())),
            };
        }
        Err(unexpected(&url, "too many redirects".to_owned()))
    }

    /// Asks for a file's content from byte `from` on. The caller looks at the status: 200 (all of it), 206 (the rest)
    /// or 416 (there is no rest).
    pub(crate) async fn content(
        &self,
        id: &str,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response, HubError> {
        let url = self.file_url(id, commit, file);
        let request = || {
            let request = self.request(&self.following, Method::GET, &url);
            if from > 0 { request.header(RANGE, format!("bytes={from}-")) } else { request }
        };
        let response = self.send(&url, request).await?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => self.accept(response, id, commit, Some(file)),
        }
    }

    /// Sends a request, and sends it again when it failed for a reason that may pass.
    async fn send(&self, url: &Url, request: impl Fn() -> RequestBuilder) -> Result<Response, HubError> {
        let mut delay = self.retry_delay;
        for attempt in 0.. {
            let result = request().send().await;
            let wait = match &result {
                Ok(response) if !may_pass(response.status()) => {
                    return result.map_err(|error| network(url, &error));
                }
                Ok(response) => retry_after(response.headers()),
                Err(_) => None,
            };
            if attempt >= RETRIES {
                let response = result.map_err(|error| network(url, &error))?;
                let what = format!("the server answered {}", response.status());
                return Err(HubError::Network { url: url.to_string(), what });
            }
            tokio::time::sleep(wait.unwrap_or(delay)).await;
            delay *= 2;
        }
        Err(HubError::Network { url: url.to_string(), what: "no answer".to_owned() })
    }

    /// Turns an answer that says no into its error.
    fn accept(
        &self,
        response: Response,
        id: &str,
        revision: &str,
        file: Option<&str>,
    ) -> Result<Response, HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let model = id.to_owned();
        let unknown =
            || HubError::ModelNotFound { model: id.to_owned(), endpoint: self.endpoint.to_string() };
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        Err(match (status, code) {
            // To those who may not see it, a private model does not exist.
            (_, "RepoNotFound") => unknown(),
            (_, "RevisionNotFound") => HubError::RevisionNotFound { model, revision: revision.to_owned() },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => self.access_denied(id, code),
            (StatusCode::NOT_FOUND, _) => match file {
                Some(file) => HubError::MissingFile { place: model, file: file.to_owned() },
                None => unknown(),
            },
            _ => unexpected(response.url(), format!("the server answered {status}")),
        })
    }

    fn access_denied(&self, id: &str, code: &str) -> HubError {
        let page = self.url(&id.split('/').collect::<Vec<_>>());
        let action = match (code, &self.token) {
            ("GatedRepo", _) => {
                format!("accept its terms at {page}, and set HF_TOKEN to a token of that account")
            }
            (_, None) => "set HF_TOKEN to a token that may read it".to_owned(),
            (_, Some(_)) => "the token in HF_TOKEN has expired or may not read it; set another".to_owned(),
        };
        let who = if self.token.is_some() { "this token" } else { "everybody" };
        HubError::AccessDenied { model: id.to_owned(), who, action }
    }
}

/// The whole of an answer that should be small.
async fn limited_body(mut response: Response, url: &Url) -> Result<Vec<u8>, HubError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| network(url, &error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(unexpected(url, format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Where a redirect leads that stays on the hub.
fn same_host_redirect(response: &Response, url: &Url) -> Option<Url> {
    let location =
        header(response.headers(), LOCATION.as_str()).filter(|_| response.status().is_redirection())?;
    let target = url.join(location).ok()?;
    // The storage network's redirects say what the file is; the hub's own only say where it is now.
    (target.origin() == url.origin() && response.headers().get("x-linked-etag").is_none()).then_some(target)
}

fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = header(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn unexpected(url: &Url, what: String) -> HubError {
    HubError::UnexpectedAnswer { url: url.to_string(), what }
}

fn network(url: &Url, error: &reqwest::Error) -> HubError {
    HubError::Network { url: url.to_string(), what: describe(error) }
}

/// An error with its causes: reqwest's own text leaves out what happened.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// It becomes a file's name.
fn is_etag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
