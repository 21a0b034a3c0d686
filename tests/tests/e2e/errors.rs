//! What goes wrong is said in the typed way: code, reason, field, and the name of the thing; and it leaves nothing
//! behind.

use std::fs;
use std::path::{Path, PathBuf};

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::{
    ChatMessages, GenerateRequest, StoppingOptions, TokenIds, generate_request,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden::{self, Message};
use roundhouse_tests::harness::{
    Compiler, Generated, LoadedEngine, chat, compile_options, compile_request, field, metadata, prompt,
    reason, shared, smollm2, tiny_llama_request, tokens,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// What a status has to say.
struct Expected<'a> {
    code: Code,
    reason: &'a str,
    /// The field that it names; empty for none.
    field: &'a str,
    /// What its message has to contain.
    message: &'a [&'a str],
}

impl Expected<'_> {
    fn check(&self, case: &str, status: &Status) {
        assert_eq!(status.code(), self.code, "{case}: {status}");
        assert_eq!(reason(status), self.reason, "{case}: {status}");
        assert_eq!(field(status), self.field, "{case}: {status}");
        for part in self.message {
            assert!(status.message().contains(part), "{case}: {part:?} is not in {:?}", status.message());
        }
    }
}

fn invalid<'a>(field: &'a str, message: &'a [&'a str]) -> Expected<'a> {
    Expected { code: Code::InvalidArgument, reason: reasons::INVALID_FIELD, field, message }
}

/// A checkpoint that lacks something.
fn incomplete<'a>(message: &'a [&'a str]) -> Expected<'a> {
    Expected { code: Code::FailedPrecondition, reason: reasons::CORRUPT_CHECKPOINT, field: "", message }
}

/// A checkpoint whose bytes are wrong.
fn corrupt<'a>(message: &'a [&'a str]) -> Expected<'a> {
    Expected { code: Code::DataLoss, reason: reasons::CORRUPT_CHECKPOINT, field: "", message }
}

fn fp32() -> CompileOptions {
    compile_options(Precision::Fp32, CacheKind::InPlace)
}

fn golden_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A copy of a tiny Llama to be broken.
fn copy_of_tiny_llama(parent: &Path, name: &str) -> PathBuf {
    let copy = parent.join(name);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(golden_folder("tiny-llama-2")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

fn truncate(path: &Path, length: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// Compiles something broken, and checks what it says and that it leaves nothing.
async fn compile_fails(
    compiler: &Compiler,
    case: &str,
    request: CompileEngineRequest,
    expected: Expected<'_>,
) {
    let status = compiler.compile(request).await.unwrap_err();
    expected.check(case, &status);
    assert_eq!(compiler.stored_keys().unwrap(), [""; 0], "{case}");
    assert_eq!(compiler.builds().unwrap(), [""; 0], "{case}");
}

#[tokio::test]
async fn a_model_that_is_not_one_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(folder.path()).await.unwrap();
    let request = |model: &str| CompileEngineRequest {
        model: model.to_owned(),
        options: Some(fp32()),
        ..CompileEngineRequest::default()
    };
    let no_model = |message| invalid("model", message);
    let not_found = |message| Expected {
        code: Code::NotFound,
        reason: reasons::MODEL_NOT_FOUND,
        field: "model",
        message,
    };
    for (model, expected) in [
        ("/no/such/model", not_found(&["/no/such/model"])),
        ("./none.gguf", not_found(&["none.gguf"])),
        ("", no_model(&["names no model"])),
        ("too/many/parts", no_model(&["too/many/parts"])),
        ("white space/model", no_model(&["white space/model"])),
        ("ftp://host/model", no_model(&["ftp"])),
    ] {
        let status = compiler.client.clone().compile_engine(request(model)).await.unwrap_err();
        expected.check(model, &status);
    }
    let with_revision = CompileEngineRequest {
        revision: Some("main".to_owned()),
        ..request(&golden_folder("tiny-llama-2").display().to_string())
    };
    let status = compiler.client.clone().compile_engine(with_revision).await.unwrap_err();
    no_model(&["revision", "main"]).check("revision of a folder", &status);
    assert_eq!(compiler.stored_keys().unwrap(), [""; 0]);
}

#[tokio::test]
async fn options_that_cannot_be_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(folder.path()).await.unwrap();
    for (case, options, expected) in [
        (
            "longer than the model",
            CompileOptions { max_seq_len: Some(257), ..fp32() },
            invalid("options.max_seq_len", &["257", "256"]),
        ),
        (
            "no sequence",
            CompileOptions { max_seq_len: Some(0), ..fp32() },
            invalid("options.max_seq_len", &["max_seq_len is 0"]),
        ),
        (
            "no batch",
            CompileOptions { max_batch_size: Some(0), ..fp32() },
            invalid("options.max_batch_size", &["max_batch_size is 0"]),
        ),
        (
            "an unknown backend",
            CompileOptions { backend: Some(77), ..fp32() },
            invalid("options.backend", &["77"]),
        ),
        (
            "an unknown precision",
            CompileOptions { precision: Some(77), ..fp32() },
            invalid("options.precision", &["77"]),
        ),
        ("an unknown cache", CompileOptions { cache: Some(-1), ..fp32() }, invalid("options.cache", &["-1"])),
    ] {
        let request = compile_request(&golden_folder("tiny-llama-2"), options);
        compile_fails(&compiler, case, request, expected).await;
    }
}

#[tokio::test]
async fn a_broken_checkpoint_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(folder.path()).await.unwrap();
    let checkpoint = |name: &str, break_it: &dyn Fn(&Path)| {
        let copy = copy_of_tiny_llama(folder.path(), name);
        break_it(&copy);
        compile_request(&copy, fp32())
    };
    let weights = "model.safetensors";

    let request = checkpoint("other-architecture", &|copy| {
        edit_json(&copy.join("config.json"), |config| {
            config["architectures"] = json!(["RwkvForCausalLM"]);
            config["model_type"] = json!("rwkv");
        });
    });
    let expected = Expected {
        reason: reasons::UNSUPPORTED_MODEL,
        ..incomplete(&["RwkvForCausalLM", "LlamaForCausalLM"])
    };
    compile_fails(&compiler, "other architecture", request, expected).await;

    let request = checkpoint("truncated-weights", &|copy| {
        let path = copy.join(weights);
        let length = path.metadata().unwrap().len();
        truncate(&path, length - 1000);
    });
    compile_fails(&compiler, "truncated weights", request, corrupt(&[weights])).await;

    let request = checkpoint("no-header", &|copy| truncate(&copy.join(weights), 4));
    compile_fails(&compiler, "weights without a header", request, corrupt(&[weights])).await;

    let request = checkpoint("broken-config", &|copy| fs::write(copy.join("config.json"), "{").unwrap());
    compile_fails(&compiler, "broken config", request, corrupt(&["config.json"])).await;

    for (file, named) in
        [("tokenizer.json", "tokenizer.json"), ("config.json", "config.json"), (weights, "model.safetensors")]
    {
        let request =
            checkpoint(&format!("without-{file}"), &|copy| fs::remove_file(copy.join(file)).unwrap());
        compile_fails(&compiler, &format!("without {file}"), request, incomplete(&[named])).await;
    }

    let request = checkpoint("wrong-shape", &|copy| {
        edit_json(&copy.join("config.json"), |config| config["vocab_size"] = json!(300));
    });
    let expected = incomplete(&["model.embed_tokens.weight", "288", "300"]);
    compile_fails(&compiler, "tensor of the wrong shape", request, expected).await;

    let request = checkpoint("too-many-layers", &|copy| {
        edit_json(&copy.join("config.json"), |config| config["num_hidden_layers"] = json!(3));
    });
    let expected = incomplete(&["model.layers.2."]);
    compile_fails(&compiler, "missing tensor", request, expected).await;
}

#[tokio::test]
async fn a_broken_gguf_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(folder.path()).await.unwrap();
    let mut beginning = fs::read(golden::smollm2_checkpoint().unwrap()).unwrap();
    beginning.truncate(1 << 20);
    let mut huge_count = beginning[..64].to_vec();
    // The number of tensors.
    huge_count[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    for (name, bytes) in [
        ("magic.gguf", &b"GGML, or something else that is no GGUF"[..]),
        ("empty.gguf", &[][..]),
        ("header.gguf", &beginning[..20]),
        ("metadata.gguf", &beginning[..5000]),
        ("tensors.gguf", &beginning[..]),
        ("count.gguf", &huge_count),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        compile_fails(&compiler, name, compile_request(&path, fp32()), corrupt(&[name])).await;
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let shared = shared().await.unwrap();
    let executor = shared.executor_alone(|_| {}).await.unwrap();
    let unknown = "0".repeat(64);
    let expected =
        Expected { code: Code::NotFound, reason: reasons::ENGINE_NOT_FOUND, field: "", message: &[&unknown] };
    expected.check("load", &executor.load(&unknown).await.unwrap_err());

    let expected = Expected {
        code: Code::InvalidArgument,
        reason: reasons::INVALID_FIELD,
        field: "engine_key",
        message: &["not-a-key"],
    };
    expected.check("load of no key", &executor.load("not-a-key").await.unwrap_err());

    let request = GenerateRequest { engine: Some("org/model".to_owned()), ..tokens(&[1], 1) };
    let expected = Expected {
        code: Code::NotFound,
        reason: reasons::ENGINE_NOT_LOADED,
        field: "engine",
        message: &["org/model"],
    };
    expected.check("generate", &executor.generate(request).await.unwrap_err());

    let expected = Expected {
        code: Code::InvalidArgument,
        reason: reasons::ENGINE_NOT_LOADED,
        field: "engine",
        message: &["names no engine", "0 are loaded"],
    };
    expected.check("generate without a name", &executor.generate(tokens(&[1], 1)).await.unwrap_err());

    // A model of which two engines are loaded is no name of one.
    for cache in [CacheKind::InPlace, CacheKind::StaticV1] {
        let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, cache);
        executor.load(&shared.compiler.key(request).await.unwrap()).await.unwrap();
    }
    let model = golden_folder("tiny-llama-2").display().to_string();
    let request = GenerateRequest { engine: Some(model.clone()), ..tokens(&[1], 1) };
    let expected = Expected { message: &["2 loaded engines", &model], ..expected };
    expected.check("generate of an ambiguous model", &executor.generate(request).await.unwrap_err());
}

fn stopping(options: StoppingOptions) -> GenerateRequest {
    GenerateRequest { stopping: Some(options), ..tokens(&[1], 1) }
}

#[tokio::test]
async fn a_request_that_cannot_be_is_refused_before_the_stream_begins() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let options = StoppingOptions::default;
    let input = |input| GenerateRequest { input: Some(input), ..tokens(&[1], 1) };
    for (case, request, expected) in [
        ("no input", GenerateRequest { input: None, ..tokens(&[1], 1) }, invalid("input", &["prompt"])),
        ("no text", prompt("", 1), invalid("prompt", &["no tokens"])),
        ("no tokens", tokens(&[], 1), invalid("token_ids", &["no tokens"])),
        ("no messages", chat(&[], 1), invalid("messages", &["message"])),
        (
            "a token of another vocabulary",
            input(generate_request::Input::TokenIds(TokenIds { ids: vec![1, 49_152] })),
            invalid("token_ids", &["49152"]),
        ),
        (
            "a prompt that fills the cache",
            tokens(&[1; 2048], 1),
            Expected {
                code: Code::InvalidArgument,
                reason: reasons::PROMPT_TOO_LONG,
                field: "",
                message: &["2048"],
            },
        ),
        ("no new tokens", tokens(&[1], 0), invalid("stopping.max_tokens", &["max_tokens is 0"])),
        (
            "too many stop strings",
            stopping(StoppingOptions { stop: vec!["x".to_owned(); 17], ..options() }),
            invalid("stopping.stop", &["17", "16"]),
        ),
        (
            "a stop string that is too long",
            stopping(StoppingOptions { stop: vec!["x".repeat(257)], ..options() }),
            invalid("stopping.stop", &["257", "256"]),
        ),
        (
            "an empty stop string",
            stopping(StoppingOptions { stop: vec![String::new()], ..options() }),
            invalid("stopping.stop", &["empty"]),
        ),
        (
            "a name that is too long",
            GenerateRequest { request_id: Some("x".repeat(129)), ..tokens(&[1], 1) },
            invalid("request_id", &["129", "128"]),
        ),
        (
            "too many log-probabilities",
            GenerateRequest {
                response: Some(roundhouse_proto::executor::ResponseOptions {
                    logprobs: Some(21),
                    ..Default::default()
                }),
                ..tokens(&[1], 1)
            },
            invalid("response.logprobs", &["21", "20"]),
        ),
    ] {
        // Refused by the call itself, not by a stream that it opened.
        expected.check(case, &engine.stream(request).await.unwrap_err());
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_says_by_how_much() {
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let status = engine.stream(tokens(&[1; 3000], 1)).await.unwrap_err();
    let metadata = metadata(&status);
    assert_eq!(metadata.get("prompt_tokens").map(String::as_str), Some("3000"));
    assert_eq!(metadata.get("max_seq_len").map(String::as_str), Some("2048"));
}

#[tokio::test]
async fn a_name_that_runs_already_is_refused_and_free_again_afterwards() {
    let engine: LoadedEngine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let request = |max_tokens| GenerateRequest {
        request_id: Some("one of its kind".to_owned()),
        ..tokens(&[1, 2, 3], max_tokens)
    };
    let mut stream = engine.stream(request(1500)).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let expected = Expected {
        code: Code::AlreadyExists,
        reason: reasons::REQUEST_ID_IN_USE,
        field: "request_id",
        message: &["one of its kind"],
    };
    expected.check("a second one", &engine.stream(request(1)).await.unwrap_err());
    engine.executor.cancel("one of its kind").await.unwrap();
    Generated::read_after(vec![first], &mut stream).await.unwrap();
    // The end of the stream is the end of the claim.
    engine.generate(request(1)).await.unwrap();
}

#[tokio::test]
async fn messages_need_a_chat_template() {
    let shared = shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of_tiny_llama(folder.path(), "no-template");
    edit_json(&copy.join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    let key = shared.compiler.key(compile_request(&copy, fp32())).await.unwrap();
    let engine = shared.executor.engine(&key).await.unwrap();
    let message = Message { role: "user".to_owned(), content: "hello".to_owned() };
    let expected = Expected {
        code: Code::FailedPrecondition,
        reason: reasons::NO_CHAT_TEMPLATE,
        field: "",
        message: &["chat template"],
    };
    expected.check("messages", &engine.stream(chat(&[message], 1)).await.unwrap_err());
    // Text and tokens go without one.
    engine.generate(prompt("hello", 1)).await.unwrap();
}

#[tokio::test]
async fn a_kv_cache_that_does_not_fit_is_refused_with_the_numbers() {
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let key = shared.compiler.key(request).await.unwrap();
    let executor = shared.executor_alone(|config| config.kv_memory_bytes = 1000).await.unwrap();
    executor.load(&key).await.unwrap();
    let status = executor.stream(tokens(&[1], 100)).await.unwrap_err();
    let expected = Expected {
        code: Code::ResourceExhausted,
        reason: reasons::KV_MEMORY_EXHAUSTED,
        field: "",
        message: &["1000"],
    };
    expected.check("memory", &status);
    assert_eq!(metadata(&status).get("total_bytes").map(String::as_str), Some("1000"));
    executor.becomes_idle().await.unwrap();
}

#[tokio::test]
async fn an_unknown_role_is_the_templates_to_judge() {
    // SmolLM2's template takes any role; what matters is that nothing but the template decides.
    let engine = smollm2(Precision::Fp32, CacheKind::InPlace).await.unwrap();
    let messages = [Message { role: "tool".to_owned(), content: "42".to_owned() }];
    engine.generate(chat(&messages, 1)).await.unwrap();
    let empty = generate_request::Input::Messages(ChatMessages::default());
    let request = GenerateRequest { input: Some(empty), ..tokens(&[1], 1) };
    invalid("messages", &["at least one message"]).check("empty", &engine.stream(request).await.unwrap_err());
}
