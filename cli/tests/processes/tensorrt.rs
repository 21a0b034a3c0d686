//! Engines for GPUs, built by the command line on any machine.

use std::path::Path;

use crate::support::{json, roundhouse, tiny_llama};

fn compile(home: &Path, flags: &[&str]) -> serde_json::Value {
    let model = tiny_llama();
    let mut arguments = vec!["compile", "--json", "--home", home.to_str().unwrap()];
    arguments.extend(["--model", model.to_str().unwrap(), "--max-seq-len", "64"]);
    arguments.extend(flags);
    json(&roundhouse(&arguments))
}

#[test]
fn a_dry_run_says_what_would_be_built() {
    let home = tempfile::tempdir().unwrap();
    let flags = ["--backend", "tensorrt", "--target", "sm_89,sm_120", "--dry-run"];
    let plan = compile(home.path(), &flags);
    assert!(plan["target"].as_str().unwrap().ends_with("-sm_89+sm_120"), "{plan}");
    assert!(plan["weight_bytes"].as_u64().unwrap() > 0 && plan["ops"]["embedding"] == 1, "{plan}");
    assert_eq!(plan["engine_bytes"], 0);
    assert!(!home.path().join("store/engines").exists());
}

#[test]
fn an_engine_is_built_without_a_gpu_found_again_and_shown() {
    let (home, graphs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dump = graphs.path().join("new");
    let flags = ["--target", "sm_89", "--weights", "separate", "--attention", "decomposed", "--use_fp32_acc"];
    let dumping = [&flags[..], &["--dump-graph", dump.to_str().unwrap()]].concat();
    let built = compile(home.path(), &dumping);
    assert_eq!(built["reused"], false);
    assert!(built["engine_bytes"].as_u64().unwrap() > built["weight_bytes"].as_u64().unwrap(), "{built}");
    let again = compile(home.path(), &flags);
    assert_eq!((&again["reused"], &again["engine_key"]), (&true.into(), &built["engine_key"]));

    for name in ["graph.source", "graph"] {
        for form in ["txt", "dot", "json"] {
            let content = std::fs::read_to_string(dump.join(format!("{name}.{form}"))).unwrap();
            assert!(content.contains("embedding"), "{name}.{form}");
        }
    }
    let network = std::fs::read_to_string(dump.join("network.json")).unwrap();
    assert!(network.contains("input_ids"), "{network}");

    let key = built["engine_key"].as_str().unwrap();
    let engine =
        json(&roundhouse(&["engines", "get", key, "--json", "--home", home.path().to_str().unwrap()]));
    assert_eq!((&engine["backend"], &engine["targets"]), (&"tensorrt".into(), &serde_json::json!(["sm_89"])));
    let expected = serde_json::json!({
        "fp32_accumulation": true,
        "attention": "decomposed",
        "weights": "separate",
        "weight_streaming": false,
        "profiles": "one",
    });
    assert_eq!(engine["tensorrt"], expected);
}

#[test]
fn an_engine_that_this_machine_cannot_run_is_refused_before_it_is_loaded() {
    let home = tempfile::tempdir().unwrap();
    let doctor = json(&roundhouse(&["doctor", "--json"]));
    let backends = doctor["backends"].as_array().unwrap();
    let runs = backends.iter().any(|backend| backend["name"] == "tensorrt" && backend["runs"] == true);
    let (model, home) = (tiny_llama(), home.path().to_str().unwrap());
    let run = |backend: &str| {
        roundhouse(&[
            "run-llm",
            "--json",
            "--raw",
            "--num_tokens",
            "4",
            "--max-seq-len",
            "64",
            "--home",
            home,
            "--backend",
            backend,
            "--model",
            model.to_str().unwrap(),
        ])
    };
    let automatic = json(&run("auto"));
    assert_eq!(automatic["backend"], if runs { "tensorrt" } else { "cpu" });
    let asked = run("tensorrt");
    assert_eq!(asked.status.success(), runs);
    if !runs {
        let message = String::from_utf8_lossy(&asked.stderr);
        assert!(message.contains("ENGINE_INCOMPATIBLE"), "{message}");
        assert!(message.contains("NVIDIA") || message.contains("compute capability"), "{message}");
    }
}

#[test]
fn a_library_that_is_not_there_is_a_typed_error() {
    let model = tiny_llama();
    let output = roundhouse(&[
        "compile",
        "--backend",
        "tensorrt",
        "--dry-run",
        "--tensorrt-library",
        "/nowhere/lib.so",
        "--model",
        model.to_str().unwrap(),
    ]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["BACKEND_UNAVAILABLE", "/nowhere/lib.so", "make tensorrt"] {
        assert!(message.contains(part), "{message}");
    }
}
