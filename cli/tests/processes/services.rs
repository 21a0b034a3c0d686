//! The services as processes, and the commands against them.

use std::process::{Command, Stdio};

use crate::support::{BINARY, Service, checkpoint, json, roundhouse, run_llm, tiny_llama, wait_for};

#[test]
fn two_processes_compile_and_answer_and_the_second_time_reuse_the_engine_within_their_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (compiler, executor) = (Service::compiler(folder.path()), Service::executor(folder.path()));
    let flags =
        ["--prompt", "What is the capital of France?", "--num_tokens", "32", "--model_precision", "FP16"];
    let flags = [&flags[..], &["--backend", "cpu"]].concat();
    let first = json(&run_llm(&compiler, &executor, &checkpoint(), &flags));
    let second = json(&run_llm(&compiler, &executor, &checkpoint(), &flags));
    assert_eq!(first["engine_reused"], false);
    assert_eq!(second["engine_reused"], true);
    assert_eq!(first["engine_key"], second["engine_key"]);
    assert_eq!(first["output_token_ids"], second["output_token_ids"]);
    assert!(first["text"].as_str().unwrap().contains("Paris"), "{}", first["text"]);
    assert_eq!((first["backend"].as_str(), first["precision"].as_str()), (Some("cpu"), Some("fp16")));

    let engine = json(&roundhouse(&[
        "engines",
        "get",
        first["engine_key"].as_str().unwrap(),
        "--json",
        "--compiler",
        &compiler.url,
    ]));
    assert!(engine["quantization"].is_string());
    assert_eq!(first["quantization"], engine["quantization"]);
    let blobs = engine["blobs"].as_array().unwrap();
    let weights =
        blobs.iter().find(|blob| blob["name"] == "weights.safetensors").unwrap()["size"].as_u64().unwrap();
    let compile_peak = first["compile_peak_memory_bytes"].as_u64().unwrap();
    assert!(
        compile_peak > 0 && compile_peak * 10 <= weights * 13,
        "{compile_peak} bytes for {weights} of weights"
    );
    let plan = json(&roundhouse(&[
        "compile",
        "--dry-run",
        "--json",
        "--compiler",
        &compiler.url,
        "--model",
        checkpoint().to_str().unwrap(),
    ]));
    let bytes = |field: &str| plan[field].as_u64().unwrap();
    // Layers of sliding windows take no more than their rings keep.
    let spared = |ring: &serde_json::Value| {
        let number = |field: &str| ring[field].as_u64().unwrap();
        128_u64.saturating_sub(number("tokens")) * number("bytes_per_token")
    };
    let spared: u64 = plan["kv_rings"].as_array().unwrap().iter().map(spared).sum();
    let kv_bytes = bytes("kv_bytes_per_token") * 128 - spared;
    assert!(kv_bytes <= bytes("kv_bytes_per_sequence"));
    let planned = bytes("weight_bytes") + bytes("workspace_bytes") + kv_bytes;
    let peak = second["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak <= planned + 150_000_000, "the executor had {peak} bytes, planned were {planned}");
}

#[test]
fn a_compiler_that_is_killed_leaves_no_engine_and_the_next_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Service::compiler(folder.path());
    let mut command = Command::new(BINARY)
        .args(["compile", "--compiler", &compiler.url, "--model", checkpoint().to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Bytes of a blob are on their way into the store: it is uploading.
    let blobs = folder.path().join("store/blobs");
    wait_for(|| std::fs::read_dir(blobs.join("sha256")).ok()?.next()).unwrap();
    compiler.signal("-KILL");
    assert!(!command.wait().unwrap().success(), "the command must not report an engine");
    let engines = folder.path().join("store/engines");
    let manifests = std::fs::read_dir(&engines).map_or(0, Iterator::count);
    assert_eq!(manifests, 0, "a killed upload left a manifest");
    drop(compiler);

    let compiler = Service::compiler(folder.path());
    let compiled = json(&roundhouse(&[
        "compile",
        "--json",
        "--compiler",
        &compiler.url,
        "--model",
        checkpoint().to_str().unwrap(),
    ]));
    assert_eq!(compiled["reused"], false);
    let executor = Service::executor(folder.path());
    let answer = json(&run_llm(&compiler, &executor, &checkpoint(), &["--num-tokens", "4"]));
    assert_eq!(answer["engine_key"], compiled["engine_key"]);
    assert_eq!(answer["output_token_ids"].as_array().unwrap().len(), 4);
}

#[test]
fn a_service_that_is_told_to_stop_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    for mut service in [Service::compiler(folder.path()), Service::executor(folder.path())] {
        service.signal("-TERM");
        let status = wait_for(|| service.process.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

#[test]
fn errors_say_what_is_wrong_and_fail_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["compile", "--model", "/nowhere/model.gguf", "--home", home], "/nowhere/model.gguf"),
        (&["compile", "--model", "no model at all", "--home", home], "no model at all"),
        (&["engines", "get", "abc", "--home", home], "abc"),
        (&["sessions", "list"], "--executor"),
        (&["run-llm", "--model", "m", "--precision", "fp8"], "fp8"),
        (&["run-llm", "--model", "m", "--backend", "metal"], "metal"),
        (&["compile", "--model", "m", "--target", "sm_89,sm_1"], "sm_1"),
        (&["compile", "--model", "m", "--dry-run", "--dump-graph", "d"], "--dump-graph"),
        (&["compile", "--model", "m", "--compiler", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
    ];
    for (arguments, named) in cases {
        let output = roundhouse(arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(message.contains(named), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{arguments:?}: {message}");
    }
}

#[test]
fn a_conversation_is_read_from_standard_input() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().unwrap();
    let mut chat = Command::new(BINARY)
        .args(["chat", "--num-tokens", "8", "--home", folder.path().to_str().unwrap(), "--model"])
        .arg(tiny_llama())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin.take().unwrap().write_all(b"hello\n\nand again\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // An answer a message; the empty line is none.
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() >= 2);
}

#[test]
fn an_executor_that_does_not_answer_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (compiler, executor) = (Service::compiler(folder.path()), Service::executor(folder.path()));
    // Nothing listens at the first address.
    let executors = format!("http://127.0.0.1:1,{}", executor.url);
    let model = tiny_llama();
    let answer = roundhouse(&[
        "run-llm",
        "--compiler",
        &compiler.url,
        "--executor",
        &executors,
        "--json",
        "--num-tokens",
        "4",
        "--model",
        model.to_str().unwrap(),
    ]);
    assert_eq!(json(&answer)["output_token_ids"].as_array().unwrap().len(), 4);
}

#[test]
fn a_benchmark_prints_json() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    let model = tiny_llama();
    let report = json(&roundhouse(&[
        "run-llm",
        "--model",
        model.to_str().unwrap(),
        "--home",
        home,
        "--benchmark",
        "--iterations",
        "2",
        "--isl",
        "40",
        "--num_tokens",
        "8",
        "--batch_size",
        "2",
        "--json",
    ]));
    assert!(report["benchmark"]["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(report["benchmark"]["batch_size"], 2);
}
