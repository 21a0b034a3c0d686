//! A server that speaks the hub's HTTP: a revision's files, HEAD with the hub's headers, redirects of large files to a
//! storage server of another origin, ranges, and connections that break.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_hub::{Checkpoint, Checkpoints, HubConfig, HubError, Unwatched};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::checkpoint_files::{Files, config};

pub(crate) const ID: &str = "org/name";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What `refs/pr/1` is at.
pub(crate) const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Percent-encoded, without the host.
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// Whether the storage server got it.
    pub(crate) is_storage: bool,
}

/// What the hub has and how it behaves.
pub(crate) struct Behaviour {
    pub(crate) files: Files,
    /// After how many bytes connections for a file's content break, one after the other.
    pub(crate) breaks: BTreeMap<String, Vec<usize>>,
    /// Whether the storage server knows ranges.
    pub(crate) ranges: bool,
    /// Status and `X-Error-Code` of every answer.
    pub(crate) refuses: Option<(u16, &'static str)>,
    /// Files whose content is sent as this.
    pub(crate) sends_instead: Files,
    /// Files whose ETag is this.
    pub(crate) etags: BTreeMap<String, String>,
    /// The status of the next answers.
    pub(crate) hiccups: Vec<u16>,
    /// The model's former name.
    pub(crate) former_id: Option<&'static str>,
}

/// A running server. It ends with its runtime.
pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    pub(crate) behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl HubServer {
    pub(crate) async fn start(files: Files) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour {
            files,
            breaks: BTreeMap::new(),
            ranges: true,
            refuses: None,
            sends_instead: Files::new(),
            etags: BTreeMap::new(),
            hiccups: Vec::new(),
            former_id: None,
        }));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let storage_at = format!("http://{}", storage.local_addr().unwrap());
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (behaviour, requests, storage_at) =
                (Arc::clone(&behaviour), Arc::clone(&requests), storage_at.clone());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (behaviour, requests) = (Arc::clone(&behaviour), Arc::clone(&requests));
                    let storage_at = storage_at.clone();
                    tokio::spawn(async move {
                        // A client that leaves early is none of the server's business.
                        let _ = serve(stream, is_storage, &storage_at, &behaviour, &requests).await;
                    });
                }
            });
        }
        Self { endpoint, behaviour, requests }
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock())
    }

    pub(crate) fn config(&self, folder: &Path) -> HubConfig {
        HubConfig { endpoint: self.endpoint.clone(), ..config(folder) }
    }

    pub(crate) async fn open(&self, folder: &Path) -> Result<Checkpoint, HubError> {
        self.open_revision(folder, None).await
    }

    pub(crate) async fn open_revision(
        &self,
        folder: &Path,
        revision: Option<&str>,
    ) -> Result<Checkpoint, HubError> {
        Checkpoints::new(self.config(folder)).open(ID, revision, &Unwatched).await
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    breaks_after: Option<usize>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), breaks_after: None }
    }
}

async fn serve(
    mut stream: TcpStream,
    is_storage: bool,
    storage_at: &str,
    behaviour: &Mutex<Behaviour>,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let request = Request {
        method: first.next().unwrap().to_owned(),
        path: first.next().unwrap().to_owned(),
        range: header("range"),
        authorization: header("authorization"),
        is_storage,
    };
    requests.lock().push(request.clone());
    let reply = {
        let mut behaviour = behaviour.lock();
        if is_storage { storage(&mut behaviour, &request) } else { hub(&mut behaviour, &request, storage_at) }
    };
    let mut out = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        out += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| *name == "Content-Length") {
        out += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{out}\r\n").as_bytes()).await?;
    if request.method != "HEAD" {
        let length = reply.breaks_after.unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..length]).await?;
    }
    stream.shutdown().await
}

fn hub(behaviour: &mut Behaviour, request: &Request, storage_at: &str) -> Reply {
    if !behaviour.hiccups.is_empty() {
        return Reply::new(behaviour.hiccups.remove(0));
    }
    if let Some((status, code)) = behaviour.refuses {
        let mut reply = Reply::new(status);
        reply.headers.push(("X-Error-Code", code.to_owned()));
        return reply;
    }
    if let Some(former) = behaviour.former_id
        && let Some(rest) =
            request.path.split_once(ID).map(|(before, rest)| format!("{before}{former}{rest}"))
    {
        let mut reply = Reply::new(307);
        reply.headers.push(("Location", rest));
        return reply;
    }
    let id = behaviour.former_id.unwrap_or(ID);
    if let Some(revision) = request.path.strip_prefix(&format!("/api/models/{id}/revision/")) {
        let commit = match revision {
            "main" => COMMIT,
            "refs%2Fpr%2F1" => OTHER_COMMIT,
            COMMIT | OTHER_COMMIT => revision,
            _ => {
                let mut reply = Reply::new(404);
                reply.headers.push(("X-Error-Code", "RevisionNotFound".to_owned()));
                return reply;
            }
        };
        let siblings: Vec<_> =
            behaviour.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let mut reply = Reply::new(200);
        reply.headers.push(("Content-Type", "application/json".to_owned()));
        reply.body = serde_json::to_vec(&serde_json::json!({"sha": commit, "siblings": siblings})).unwrap();
        return reply;
    }
    let file = request.path.strip_prefix(&format!("/{id}/resolve/")).and_then(|rest| rest.split_once('/'));
    let Some((commit, name)) = file.filter(|(_, name)| behaviour.files.contains_key(*name)) else {
        return Reply::new(404);
    };
    let content = &behaviour.files[name];
    let etag = behaviour.etags.get(name).cloned();
    if name.ends_with(".safetensors") {
        let digest = etag.unwrap_or_else(|| sha256(content));
        let mut reply = Reply::new(302);
        reply.headers = vec![
            ("X-Repo-Commit", commit.to_owned()),
            ("X-Linked-Etag", format!("\"{digest}\"")),
            ("X-Linked-Size", content.len().to_string()),
            ("Location", format!("{storage_at}/{name}")),
        ];
        return reply;
    }
    // Git's object ids have 40 digits.
    let etag = etag.unwrap_or_else(|| sha256(content)[..40].to_owned());
    let mut reply = send(behaviour, name, request.range.as_deref());
    reply.headers.extend([("X-Repo-Commit", commit.to_owned()), ("ETag", format!("\"{etag}\""))]);
    reply
}

fn storage(behaviour: &mut Behaviour, request: &Request) -> Reply {
    let name = request.path.trim_start_matches('/').to_owned();
    let range = request.range.clone().filter(|_| behaviour.ranges);
    send(behaviour, &name, range.as_deref())
}

fn send(behaviour: &mut Behaviour, name: &str, range: Option<&str>) -> Reply {
    let content = behaviour.sends_instead.get(name).unwrap_or(&behaviour.files[name]).clone();
    let from =
        range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    let mut reply = Reply::new(if from.is_some() { 206 } else { 200 });
    let start = from.unwrap_or(0);
    if start >= content.len() && start > 0 {
        return Reply::new(416);
    }
    if from.is_some() {
        reply
            .headers
            .push(("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len())));
    }
    reply.body = content[start..].to_vec();
    let breaks = behaviour.breaks.get_mut(name).filter(|breaks| !breaks.is_empty());
    reply.breaks_after = breaks.map(|breaks| breaks.remove(0));
    reply
}
