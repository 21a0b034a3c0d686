//! What the hub refuses, and what it should not have answered.

use roundhouse_hub::{Checkpoints, HubConfig, HubError, Unwatched};

use crate::checkpoint_files::{read, run, sharded, single};
use crate::hub_server::{HubServer, ID};

async fn refused(status: u16, code: &'static str, token: Option<&str>) -> HubError {
    let server = HubServer::start(single(1)).await;
    server.behaviour.lock().refuses = Some((status, code));
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { token: token.map(str::to_owned), ..server.config(cache.path()) };
    Checkpoints::new(config).open(ID, None, &Unwatched).await.unwrap_err()
}

#[test]
fn an_unknown_model_is_said_to_be_unknown() {
    run(async {
        // To those who show no token, the hub says 401 of models that there are not.
        for (status, code) in [(404, "RepoNotFound"), (404, ""), (401, "RepoNotFound")] {
            let error = refused(status, code, None).await;
            assert!(
                matches!(&error, HubError::ModelNotFound { model, .. } if model == ID),
                "{status} {code}: {error}"
            );
        }
    });
}

#[test]
fn a_model_that_asks_for_permission_says_what_to_do() {
    run(async {
        let cases = [
            (401, "", None, "set HF_TOKEN"),
            (401, "", Some("hf_old"), "expired"),
            (403, "", Some("hf_other"), "may not read it"),
            (401, "GatedRepo", None, "accept its terms at"),
            (403, "GatedRepo", Some("hf_mine"), "accept its terms at"),
        ];
        for (status, code, token, expected) in cases {
            let error = refused(status, code, token).await;
            assert!(matches!(&error, HubError::AccessDenied { .. }), "{status} {code}: {error}");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.to_string().contains("hf_"), "the token is not shown: {error}");
        }
    });
}

#[test]
fn failures_that_pass_are_waited_out() {
    run(async {
        let server = HubServer::start(single(1)).await;
        server.behaviour.lock().hiccups = vec![503, 429, 500];
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = server.open(cache.path()).await.unwrap();
        assert_eq!(read(&checkpoint, "weight"), [0.0, 1.0, 2.0, 3.0]);
    });
}

#[test]
fn failures_that_do_not_pass_are_network_errors() {
    run(async {
        let error = refused(503, "", None).await;
        assert!(matches!(&error, HubError::Network { what, .. } if what.contains("503")), "{error}");
        let error = refused(418, "", None).await;
        assert!(matches!(&error, HubError::UnexpectedAnswer { what, .. } if what.contains("418")), "{error}");
    });
}

#[test]
fn a_model_without_a_tokenizer_is_refused_before_its_weights_come() {
    run(async {
        let mut files = single(1);
        files.remove("tokenizer.json");
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(error, HubError::MissingTokenizer { .. }), "{error}");
        assert!(!server.requests().iter().any(|request| request.path.contains("/resolve/")));
    });
}

#[test]
fn models_without_safetensors_are_refused_by_what_they_have() {
    run(async {
        let mut files = single(1);
        files.remove("model.safetensors");
        files.insert("pytorch_model.bin".to_owned(), vec![0; 10]);
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(
            matches!(&error, HubError::Unsupported { found, .. } if found.contains("pytorch_model.bin")),
            "{error}"
        );
    });
}

#[test]
fn a_shard_that_the_index_names_and_the_model_lacks_is_named() {
    run(async {
        let mut files = sharded();
        files.remove("model-00002-of-00002.safetensors");
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(&error, HubError::MissingFile { file, .. } if file.contains("00002-of")), "{error}");
    });
}

#[test]
fn a_server_cannot_make_us_write_outside_the_cache() {
    run(async {
        for etag in ["../../../escaped", "/tmp/escaped", "..", ".hidden", "", "a b"] {
            let server = HubServer::start(single(1)).await;
            server.behaviour.lock().etags.insert("model.safetensors".to_owned(), etag.to_owned());
            let cache = tempfile::tempdir().unwrap();
            let error = server.open(cache.path()).await.unwrap_err();
            assert!(matches!(error, HubError::UnexpectedAnswer { .. }), "{etag:?}: {error}");
        }
        let mut files = sharded();
        files.insert(
            "model.safetensors.index.json".to_owned(),
            br#"{"weight_map": {"a": "../../../../escaped.safetensors"}}"#.to_vec(),
        );
        let server = HubServer::start(files).await;
        let cache = tempfile::tempdir().unwrap();
        let error = server.open(cache.path()).await.unwrap_err();
        assert!(matches!(&error, HubError::Corrupt { what, .. } if what.contains("escaped")), "{error}");
    });
}

#[test]
fn an_endpoint_that_is_no_url_is_an_error() {
    run(async {
        for endpoint in ["", "not a url", "mailto:a@b"] {
            let cache = tempfile::tempdir().unwrap();
            let config =
                HubConfig { endpoint: endpoint.to_owned(), ..crate::checkpoint_files::config(cache.path()) };
            let error = Checkpoints::new(config).open(ID, None, &Unwatched).await.unwrap_err();
            assert!(matches!(error, HubError::Network { .. }), "{endpoint:?}: {error}");
        }
    });
}
