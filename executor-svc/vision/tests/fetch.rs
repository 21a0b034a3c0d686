//! Images are fetched from where the configuration allows, and from nowhere else.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test's helper is a failed test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use roundhouse_vision::{
    Fault, FetchPolicy, Fetcher, HttpPolicy, ImageLimits, ImageSource, ObjectStorePolicy, VisionError,
};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const IMAGE: &[u8] = b"\x89PNG\r\n\x1a\n and so on";
const LIMIT: usize = 1000;

/// A web server on this machine, stopped when dropped.
struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(async move {
                    // Clients go away in the middle of some answers.
                    let _ = answer(socket, address).await;
                });
            }
        });
        Self { address, _tasks: tasks }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn answer(mut socket: TcpStream, address: SocketAddr) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let redirect =
        |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let status = |line: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let reply = match path.as_str() {
        "/image" => {
            let mut reply =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", IMAGE.len()).into_bytes();
            reply.extend(IMAGE);
            reply
        }
        "/redirect" => redirect("/image"),
        "/loop" => redirect("/loop"),
        "/to-file" => redirect("file:///etc/passwd"),
        "/to-localhost" => redirect(&format!("http://localhost:{}/image", address.port())),
        "/to-metadata" => redirect("http://169.254.169.254/latest/meta-data/"),
        "/to-private" => redirect("http://[fd00::1]/image"),
        "/to-nowhere" => status("302 Found"),
        "/large" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n".to_vec(),
        "/endless" => {
            socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            loop {
                socket.write_all(b"10\r\n0123456789abcdef\r\n").await?;
            }
        }
        "/cut" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort".to_vec(),
        "/empty" => status("200 OK"),
        "/silent" => {
            std::future::pending::<()>().await;
            Vec::new()
        }
        "/busy" => status("503 Service Unavailable"),
        "/denied" => status("403 Forbidden"),
        _ => status("404 Not Found"),
    };
    socket.write_all(&reply).await
}

fn limits() -> ImageLimits {
    ImageLimits { max_encoded_bytes: LIMIT, ..ImageLimits::default() }
}

fn http(change: impl FnOnce(&mut HttpPolicy)) -> Fetcher {
    let mut policy =
        HttpPolicy { plaintext: true, private_hosts: vec!["127.0.0.1".to_owned()], ..HttpPolicy::default() };
    change(&mut policy);
    let policy =
        FetchPolicy { http: Some(policy), timeout: Duration::from_secs(30), ..FetchPolicy::default() };
    Fetcher::new(policy, limits()).unwrap()
}

async fn get(fetcher: &Fetcher, url: &str) -> Result<bytes::Bytes, VisionError> {
    fetcher.fetch(&ImageSource::from_url(url)?).await
}

async fn refusal(fetcher: &Fetcher, url: &str) -> String {
    let error = get(fetcher, url).await.expect_err(url);
    assert!(matches!(error, VisionError::RefusedSource { .. }), "{url}: {error}");
    assert_eq!((error.fault(), error.reason()), (Fault::Caller, "IMAGE_SOURCE_REFUSED"));
    let text = format!("{error} {error:?}");
    for address in ["127.0.0.1", "::1", "169.254", "fd00"] {
        assert!(!text.contains(address), "{url}: {text}");
    }
    text
}

#[tokio::test]
async fn by_default_only_what_is_in_the_request_is_read() {
    let server = Server::start().await;
    let fetcher = Fetcher::new(FetchPolicy::default(), limits()).unwrap();
    assert_eq!(fetcher.fetch(&ImageSource::Bytes(IMAGE.into())).await.unwrap(), IMAGE);
    assert_eq!(get(&fetcher, "data:image/png;base64,aGVsbG8=").await.unwrap(), "hello");
    refusal(&fetcher, &server.url("/image")).await;
    refusal(&fetcher, "https://example.org/image").await;
    refusal(&fetcher, "s3://bucket/image").await;
    let error = fetcher.fetch(&ImageSource::Bytes(vec![0; LIMIT + 1].into())).await.unwrap_err();
    assert!(matches!(error, VisionError::TooLarge { .. }), "{error}");
    let error = fetcher.fetch(&ImageSource::Bytes(bytes::Bytes::new())).await.unwrap_err();
    assert!(matches!(error, VisionError::Empty), "{error}");
}

#[tokio::test]
async fn an_allowed_host_is_read_and_its_redirects_are_followed() {
    let server = Server::start().await;
    let fetcher = http(|_| {});
    assert_eq!(get(&fetcher, &server.url("/image")).await.unwrap(), IMAGE);
    assert_eq!(get(&fetcher, &server.url("/redirect")).await.unwrap(), IMAGE);
    // By name, too.
    let named = http(|policy| policy.private_hosts = vec!["localhost".to_owned()]);
    let url = format!("http://localhost:{}/image", server.address.port());
    assert_eq!(get(&named, &url).await.unwrap(), IMAGE);
}

#[tokio::test]
async fn private_addresses_are_refused_however_they_are_written() {
    let server = Server::start().await;
    let port = server.address.port();
    let fetcher = http(|policy| policy.private_hosts.clear());
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
        // A name that resolves to one.
        "localhost",
        "LOCALHOST",
    ] {
        refusal(&fetcher, &format!("http://{host}:{port}/image")).await;
    }
    // Some systems resolve it with its last dot, and some do not: it is not read either way.
    let error = get(&fetcher, &format!("http://localhost.:{port}/image")).await.unwrap_err();
    let known = ["IMAGE_SOURCE_REFUSED", "IMAGE_SOURCE_UNAVAILABLE"];
    assert!(known.contains(&error.reason()) && !error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn redirects_are_looked_at_as_the_first_url_is() {
    let server = Server::start().await;
    let fetcher = http(|_| {});
    for path in ["/to-file", "/to-localhost", "/to-metadata", "/to-private", "/loop"] {
        refusal(&fetcher, &server.url(path)).await;
    }
    let none = http(|policy| policy.max_redirects = 0);
    assert!(refusal(&none, &server.url("/redirect")).await.contains("redirects"));
    let error = get(&fetcher, &server.url("/to-nowhere")).await.unwrap_err();
    assert!(matches!(error, VisionError::SourceFailed { .. }), "{error}");
}

#[tokio::test]
async fn schemes_hosts_and_credentials_are_refused_before_anything_is_asked() {
    let server = Server::start().await;
    let secure = http(|policy| policy.plaintext = false);
    assert!(refusal(&secure, &server.url("/image")).await.contains("https"));
    let elsewhere = http(|policy| {
        policy.private_hosts.clear();
        policy.hosts = Some(vec!["example.org".to_owned()]);
    });
    assert!(refusal(&elsewhere, &server.url("/image")).await.contains("host"));
    refusal(&elsewhere, "http://example.org.localhost/image").await;
    let url = format!("http://user:password@{}/image", server.address);
    assert!(refusal(&http(|_| {}), &url).await.contains("credentials"));
}

#[tokio::test]
async fn what_is_too_large_is_not_read_to_its_end() {
    let server = Server::start().await;
    let fetcher = http(|_| {});
    for path in ["/large", "/endless"] {
        let error = get(&fetcher, &server.url(path)).await.expect_err(path);
        assert!(
            matches!(error, VisionError::TooLarge { limit, .. } if limit == LIMIT as u64),
            "{path}: {error}"
        );
    }
}

#[tokio::test]
async fn failures_keep_their_meaning_and_name_no_address() {
    let server = Server::start().await;
    let fetcher = http(|_| {});
    for (path, reason, fault) in [
        ("/missing", "IMAGE_NOT_FOUND", Fault::Caller),
        ("/denied", "IMAGE_NOT_FOUND", Fault::Caller),
        ("/busy", "IMAGE_SOURCE_UNAVAILABLE", Fault::Source),
        ("/cut", "IMAGE_SOURCE_UNAVAILABLE", Fault::Source),
        ("/empty", "IMAGE_EMPTY", Fault::Caller),
    ] {
        let error = get(&fetcher, &server.url(path)).await.expect_err(path);
        assert_eq!((error.reason(), error.fault()), (reason, fault), "{path}: {error}");
        assert!(!error.to_string().contains("127.0.0.1"), "{path}: {error}");
    }
    let url = server.url("/image");
    drop(server);
    let error = get(&fetcher, &url).await.unwrap_err();
    assert!(matches!(error, VisionError::SourceFailed { .. }), "{error}");
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_given_up() {
    let server = Server::start().await;
    let policy =
        HttpPolicy { plaintext: true, private_hosts: vec!["127.0.0.1".to_owned()], ..HttpPolicy::default() };
    let limit = Duration::from_millis(100);
    let policy = FetchPolicy { http: Some(policy), timeout: limit, ..FetchPolicy::default() };
    let fetcher = Fetcher::new(policy, limits()).unwrap();
    let error = get(&fetcher, &server.url("/silent")).await.unwrap_err();
    assert!(matches!(error, VisionError::FetchTimeout { limit: found } if found == limit), "{error}");
    assert_eq!(error.fault(), Fault::Source);
}

/// An S3 server over a folder with one bucket.
async fn s3() -> (SocketAddr, TempDir, JoinSet<()>) {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in [
        ("bucket/images/a b.png", IMAGE.to_vec()),
        ("bucket/images/large.png", vec![0; LIMIT + 1]),
        ("bucket/images-of-others/secret.png", IMAGE.to_vec()),
        ("bucket/secret.png", IMAGE.to_vec()),
        ("other/images/secret.png", IMAGE.to_vec()),
    ] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, folder, tasks)
}

fn object_policy(address: SocketAddr) -> FetchPolicy {
    let options = [
        ("aws_endpoint", format!("http://{address}")),
        ("aws_allow_http", "true".to_owned()),
        ("aws_region", "us-east-1".to_owned()),
        ("aws_access_key_id", "key".to_owned()),
        ("aws_secret_access_key", "secret".to_owned()),
    ];
    let options: BTreeMap<_, _> = options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let object_stores = ObjectStorePolicy { prefixes: vec!["s3://bucket/images".to_owned()], options };
    FetchPolicy { object_stores, timeout: Duration::from_secs(30), ..FetchPolicy::default() }
}

#[tokio::test]
async fn objects_below_an_allowed_prefix_are_read_and_no_others() {
    let (address, _folder, _tasks) = s3().await;
    let fetcher = Fetcher::new(object_policy(address), limits()).unwrap();
    assert_eq!(get(&fetcher, "s3://bucket/images/a%20b.png").await.unwrap(), IMAGE);
    for url in [
        "s3://bucket/secret.png",
        "s3://bucket/images/../secret.png",
        "s3://bucket/images/%2e%2e/secret.png",
        "s3://bucket/images-of-others/secret.png",
        "s3://other/images/secret.png",
        "gs://bucket/images/a.png",
        "s3://user:password@bucket/images/a%20b.png",
    ] {
        refusal(&fetcher, url).await;
    }
    // An encoded separator is no way out either, however it is refused.
    assert!(get(&fetcher, "s3://bucket/images/..%2fsecret.png").await.is_err());
    let error = get(&fetcher, "s3://bucket/images/missing.png").await.unwrap_err();
    assert!(matches!(error, VisionError::NotFound { .. }), "{error}");
    let error = get(&fetcher, "s3://bucket/images/large.png").await.unwrap_err();
    assert!(matches!(error, VisionError::TooLarge { .. }), "{error}");
    assert!(!format!("{fetcher:?}").contains("secret\""), "{fetcher:?}");
}

#[test]
fn a_policy_that_cannot_be_meant_is_refused_when_it_is_read() {
    for prefix in ["/var/images", "file:///var/images", "https://example.org/images", "bucket"] {
        let object_stores =
            ObjectStorePolicy { prefixes: vec![prefix.to_owned()], ..ObjectStorePolicy::default() };
        let policy = FetchPolicy { object_stores, ..FetchPolicy::default() };
        let error = Fetcher::new(policy, limits()).unwrap_err();
        assert!(matches!(error, VisionError::InvalidPolicy { .. }), "{prefix}: {error}");
        assert_eq!(error.fault(), Fault::Operator);
    }
}
