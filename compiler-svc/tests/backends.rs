//! What the compiler service says of a backend and its options: refused with a typed status, or filled in and reported.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use roundhouse_backend::LibrarySearch;
use roundhouse_compiler::{CompilerConfig, CompilerService};
use roundhouse_hub::HubConfig;
use roundhouse_proto::compiler::compiler_server::Compiler as _;
use roundhouse_proto::compiler::{
    Backend, CompileEngineRequest, CompileEngineResponse, CompileOptions, GetEngineFileRequest,
    TensorRtOptions,
};
use roundhouse_proto::google::longrunning::operations_server::Operations as _;
use roundhouse_proto::google::longrunning::{WaitOperationRequest, operation};
use roundhouse_rpc::reason;
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A service over an empty store.
async fn service(tensorrt: LibrarySearch) -> (CompilerService, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = CompilerConfig {
        store: folder.path().join("store").display().to_string(),
        build_dir: folder.path().join("builds"),
        hub: HubConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            token: None,
            hub_cache: folder.path().join("hub"),
            cache: folder.path().join("checkpoints"),
            offline: true,
            local_paths: true,
            retry_delay: Duration::from_millis(1),
            object_store: BTreeMap::new(),
        },
        tensorrt,
        nvrtc: nowhere(),
        concurrent_builds: 1,
        queue_limit: 8,
    };
    (CompilerService::open(config).await.unwrap(), folder)
}

fn nowhere() -> LibrarySearch {
    LibrarySearch { path: Some(PathBuf::from("/nowhere/libtensorrt_rtx.so.1")), folders: Vec::new() }
}

fn request(options: CompileOptions, validate_only: bool) -> CompileEngineRequest {
    CompileEngineRequest {
        model: workspace().join("tests/golden/tiny-llama-2").display().to_string(),
        options: Some(options),
        validate_only: Some(validate_only),
        ..CompileEngineRequest::default()
    }
}

fn tensorrt(targets: &[&str]) -> CompileOptions {
    CompileOptions {
        backend: Some(Backend::Tensorrt.into()),
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        ..CompileOptions::default()
    }
}

async fn compile(
    service: &CompilerService,
    request: CompileEngineRequest,
) -> Result<CompileEngineResponse, Status> {
    let operation = service.compile_engine(Request::new(request)).await?.into_inner();
    let wait = WaitOperationRequest { name: operation.name, timeout: None };
    match service.wait_operation(Request::new(wait)).await?.into_inner().result.unwrap() {
        operation::Result::Response(any) => Ok(CompileEngineResponse::decode(&any.value[..]).unwrap()),
        operation::Result::Error(status) => {
            let details = status.encode_to_vec().into();
            Err(Status::with_details(Code::from(status.code), status.message, details))
        }
    }
}

fn reason_of(status: &Status) -> String {
    status.get_error_details().error_info().unwrap().reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_another_backend_are_refused_at_once() {
    let (service, _folder) = service(nowhere()).await;
    let cpu = || CompileOptions { backend: Some(Backend::Cpu.into()), ..CompileOptions::default() };
    let sm_89 = || vec!["sm_89".to_owned()];
    let own = TensorRtOptions::default();
    let cases = [
        (tensorrt(&["sm_89", "sm_61"]), "options.targets", "sm_61"),
        (
            CompileOptions { targets: vec!["hopper".to_owned()], ..CompileOptions::default() },
            "options.targets",
            "hopper",
        ),
        (CompileOptions { targets: sm_89(), ..cpu() }, "options.targets", "sm_89"),
        (CompileOptions { tensorrt: Some(own), ..cpu() }, "options.tensorrt", "cpu"),
        (
            CompileOptions { tensorrt: Some(TensorRtOptions { profiles: Some(7), ..own }), ..tensorrt(&[]) },
            "options.tensorrt.profiles",
            "7",
        ),
    ];
    for (options, field, named) in cases {
        let status = service.compile_engine(Request::new(request(options, false))).await.unwrap_err();
        assert_eq!(
            (status.code(), reason_of(&status).as_str()),
            (Code::InvalidArgument, reason::INVALID_FIELD)
        );
        assert!(status.message().contains(named), "{status}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_cannot_be_had_says_why() {
    let (service, _folder) = service(nowhere()).await;
    for validate_only in [true, false] {
        let status = compile(&service, request(tensorrt(&["sm_89"]), validate_only)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert_eq!(reason_of(&status), reason::BACKEND_UNAVAILABLE);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().metadata["backend"], "tensorrt");
        let named: &[&str] = if cfg!(feature = "tensorrt") {
            &["/nowhere/libtensorrt_rtx.so.1", "make tensorrt"]
        } else {
            &["cargo feature"]
        };
        assert!(named.iter().all(|named| status.message().contains(named)), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_the_nodes_and_builds_nothing() {
    let (service, folder) = service(nowhere()).await;
    let response = compile(&service, request(CompileOptions::default(), true)).await.unwrap();
    assert_eq!(response.ops["embedding"], 1);
    assert!(response.ops["linear"] > 1, "{:?}", response.ops);
    let engine = response.engine.unwrap();
    assert_eq!((engine.options.unwrap().backend(), engine.blobs.len()), (Backend::Cpu, 0));
    assert!(!folder.path().join("store/engines").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_an_engine_can_be_read() {
    let (service, _folder) = service(nowhere()).await;
    let key = compile(&service, request(CompileOptions::default(), false)).await.unwrap().engine.unwrap().key;
    let read = |key: &str, name: &str| {
        let request = GetEngineFileRequest { key: key.to_owned(), name: name.to_owned() };
        service.get_engine_file(Request::new(request))
    };
    for name in ["graph.source.json", "graph.json"] {
        let content = read(&key, name).await.unwrap().into_inner().content;
        let graph = roundhouse_graph::Graph::from_json(&String::from_utf8(content).unwrap()).unwrap();
        assert!(graph.nodes().count() > 10, "{name}");
    }
    assert_eq!(read(&key, "engine.plan").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(read(&"0".repeat(64), "graph.json").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(read("no key", "graph.json").await.unwrap_err().code(), Code::InvalidArgument);
}

/// With TensorRT's library, which `make test` has put into the workspace.
#[cfg(feature = "tensorrt")]
mod with_tensorrt {
    use roundhouse_proto::compiler::{AttentionForm, ListModelFamiliesRequest, Precision, WeightPlacement};

    use super::*;

    fn library() -> LibrarySearch {
        LibrarySearch {
            path: std::env::var_os("ROUNDHOUSE_TENSORRT_LIBRARY").map(PathBuf::from),
            folders: vec![workspace().join(".roundhouse/tensorrt")],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_library_does_not_build_is_refused_dry_or_not() {
        let (service, folder) = service(library()).await;
        let bf16 =
            CompileOptions { precision: Some(Precision::Bf16.into()), ..tensorrt(&["sm_75", "sm_89"]) };
        for (options, named) in [(tensorrt(&["sm_90"]), "sm_90"), (bf16, "sm_75")] {
            for validate_only in [true, false] {
                let status = compile(&service, request(options.clone(), validate_only)).await.unwrap_err();
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert_eq!(reason_of(&status), reason::UNSUPPORTED_OPTIONS, "{status}");
                assert!(status.message().contains(named), "{status}");
            }
        }
        assert!(!folder.path().join("store/engines").exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_request_leaves_open_is_filled_in() {
        let (service, _folder) = service(library()).await;
        let response = compile(&service, request(tensorrt(&[]), true)).await.unwrap();
        assert!(response.memory_plan.unwrap().weight_bytes > 0);
        assert!(response.passes.iter().any(|pass| pass.pass == "tensorrt"), "{:?}", response.passes);
        let engine = response.engine.unwrap();
        let options = engine.options.unwrap();
        assert_eq!(options.targets, ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]);
        assert!(engine.target.ends_with("sm_80+sm_86+sm_89+sm_120+sm_121"), "{}", engine.target);
        let own = options.tensorrt.unwrap();
        assert_eq!((own.fp32_accumulation, own.weight_streaming), (Some(true), Some(false)));
        assert_eq!(own.weights(), WeightPlacement::Embedded);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_engine_carries_the_options_it_was_built_with() {
        let (service, _folder) = service(library()).await;
        let asked = TensorRtOptions {
            fp32_accumulation: Some(false),
            attention: Some(AttentionForm::Decomposed.into()),
            weights: Some(WeightPlacement::Separate.into()),
            ..TensorRtOptions::default()
        };
        // Neither names the backend: the options do.
        let options = CompileOptions {
            targets: vec!["sm_89".to_owned()],
            tensorrt: Some(asked),
            max_seq_len: Some(64),
            ..CompileOptions::default()
        };
        let response = compile(&service, request(options, false)).await.unwrap();
        let engine = response.engine.unwrap();
        let options = engine.options.unwrap();
        assert_eq!(
            (options.backend(), options.targets.as_slice()),
            (Backend::Tensorrt, &["sm_89".to_owned()][..])
        );
        let own = options.tensorrt.unwrap();
        assert_eq!((own.attention(), own.weights()), (AttentionForm::Decomposed, WeightPlacement::Separate));
        assert_eq!(own.fp32_accumulation, Some(false));
        let names: Vec<_> = engine.blobs.iter().map(|blob| blob.name.as_str()).collect();
        for name in ["engine.plan", "network.json", "graph.json", "weights.safetensors"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn model_families_name_the_backends_that_can_be_had() {
        for (search, expected) in
            [(library(), vec![Backend::Tensorrt, Backend::Cpu]), (nowhere(), vec![Backend::Cpu])]
        {
            let (service, _folder) = service(search).await;
            let families = service.list_model_families(Request::new(ListModelFamiliesRequest {})).await;
            let families = families.unwrap().into_inner().families;
            let llama = families.iter().find(|family| family.model_type == "llama").unwrap();
            assert_eq!(llama.backends().collect::<Vec<_>>(), expected);
        }
    }
}
