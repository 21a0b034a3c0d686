//! What a manifest promises: it survives JSON, and a hostile one is refused by name.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

use roundhouse_engine::{
    BackendKind, BlobRef, CacheKind, ComputeCapabilities, EngineFiles, EngineKey, EngineOptions, KeyInputs,
    KvRing, Manifest, ManifestError, MemoryPlan, ModelInfo, Precision, Target, WeightQuantization,
    blob_names,
};
use roundhouse_graph::PassReport;
use serde_json::{Value, json};

fn manifest() -> Manifest {
    let options = EngineOptions {
        precision: Precision::Bf16,
        cache: CacheKind::InPlace,
        backend: BackendKind::Cuda,
        max_seq_len: 4096,
        max_batch_size: 8,
        all_logits: false,
        targets: ComputeCapabilities::NONE,
        quantization: WeightQuantization::None,
        tensorrt: None,
    };
    let target = Target {
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        compute_capabilities: vec!["sm_90".to_owned()],
    };
    let checkpoint_digest = "0123456789abcdef".repeat(4);
    let key = EngineKey::new(&KeyInputs {
        checkpoint_digest: &checkpoint_digest,
        options: &options,
        backend_version: "cuda-1",
        target: &target,
        compiler_version: "0.1.0",
    })
    .unwrap();
    let blob =
        |name: &str, digit: &str, size| BlobRef { name: name.to_owned(), sha256: digit.repeat(64), size };
    Manifest {
        format: Manifest::FORMAT,
        key,
        model: "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned(),
        revision: None,
        checkpoint_digest,
        info: ModelInfo {
            model_type: "llama".to_owned(),
            architecture: "LlamaForCausalLM".to_owned(),
            vocab_size: 49_152,
            num_hidden_layers: 30,
            max_position_embeddings: 8192,
            eos_token_ids: vec![2],
            bos_token_id: Some(1),
            vision: None,
        },
        options,
        target,
        backend_version: "cuda-1".to_owned(),
        compiler_version: "0.1.0".to_owned(),
        passes: vec![PassReport::new("static_cache_v2", [("attention_nodes", 30)])],
        memory_plan: MemoryPlan {
            weight_bytes: 269_030_016,
            kv_bytes_per_token: 23_040,
            kv_rings: vec![KvRing { tokens: 1023, bytes_per_token: 20_000 }],
            workspace_bytes: 1 << 20,
        },
        blobs: vec![
            blob(blob_names::GRAPH, "a", 10),
            blob(blob_names::WEIGHTS, "b", 269_030_016),
            blob(blob_names::SOURCE_GRAPH, "a", 10),
        ],
        created_unix_ms: 1_767_225_600_000,
    }
}

fn read(manifest: &Manifest, json: &Value) -> Result<Manifest, ManifestError> {
    Manifest::from_json(&manifest.key, &serde_json::to_vec(json).unwrap())
}

/// What `from_json` says after `change`d the JSON of a good manifest.
fn read_changed(change: impl FnOnce(&mut Value)) -> Result<Manifest, ManifestError> {
    let good = manifest();
    let mut json = serde_json::to_value(&good).unwrap();
    change(&mut json);
    read(&good, &json)
}

#[test]
fn json_round_trips() {
    let manifest = manifest();
    let json = manifest.to_json().unwrap();
    assert_eq!(Manifest::from_json(&manifest.key, &json).unwrap(), manifest);
}

#[test]
fn json_has_the_field_names_that_other_tools_read() {
    let json: Value = serde_json::from_slice(&manifest().to_json().unwrap()).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["key"].as_str().unwrap().len(), 64);
    assert_eq!(json["options"]["precision"], "bf16");
    assert_eq!(json["options"]["cache"], "in_place");
    assert_eq!(json["options"]["backend"], "cuda");
    assert_eq!(json["target"]["compute_capabilities"], json!(["sm_90"]));
    assert_eq!(json["blobs"][0], json!({"name": "graph.json", "sha256": "a".repeat(64), "size": 10}));
    assert_eq!(json["passes"][0]["counts"]["attention_nodes"], 30);
}

#[test]
fn another_format_is_named_even_when_the_rest_is_unknown() {
    let key = manifest().key;
    let error = Manifest::from_json(&key, br#"{"format": 2, "what": "a later version writes"}"#).unwrap_err();
    assert!(matches!(error, ManifestError::Format { found: 2, expected: 1, .. }), "{error}");
    assert!(error.to_string().contains("rebuild the engine"), "{error}");
}

#[test]
fn text_that_is_no_manifest_is_refused() {
    let key = manifest().key;
    let deep = format!("{{\"format\":1,\"x\":{}", "[".repeat(100_000));
    for json in
        [&b""[..], b"null", b"[]", b"{}", b"{\"format\":1}", b"{\"format\":-1}", b"\xff\xfe", deep.as_bytes()]
    {
        let error = Manifest::from_json(&key, json).unwrap_err();
        assert!(matches!(error, ManifestError::Json { .. }), "{error}");
        assert!(error.to_string().contains(key.as_str()), "{error}");
    }
    let large = vec![b' '; Manifest::MAX_JSON_BYTES as usize + 1];
    let error = Manifest::from_json(&key, &large).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { .. }), "{error}");
}

#[test]
fn another_engines_manifest_is_refused() {
    let error = read_changed(|json| json["key"] = json!("c".repeat(64))).unwrap_err();
    assert!(matches!(error, ManifestError::OtherEngine { .. }), "{error}");
    let error = read_changed(|json| json["key"] = json!("../../etc")).unwrap_err();
    assert!(matches!(error, ManifestError::Json { .. }), "{error}");
}

#[test]
fn hostile_blob_names_are_refused() {
    let long = "a".repeat(129);
    let names = [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        ".hidden",
        "-rf",
        "a b",
        "a\0b",
        "a\nb",
        "ä",
        "a%2fb",
        "a#1",
        &long,
    ];
    for name in names {
        let error = read_changed(|json| json["blobs"][0]["name"] = json!(name)).unwrap_err();
        assert!(matches!(error, ManifestError::Invalid { .. }), "{name:?}: {error}");
        assert!(error.to_string().contains("blob name"), "{name:?}: {error}");
    }
    for name in ["a", "plan.sm_90.bin", "0-x", &long[..128]] {
        read_changed(|json| json["blobs"][0]["name"] = json!(name)).unwrap();
    }
}

#[test]
fn hostile_digests_are_refused() {
    for digest in ["", "../../x", &"A".repeat(64), &"a".repeat(63), &"a".repeat(1 << 20)] {
        let error = read_changed(|json| json["blobs"][0]["sha256"] = json!(digest)).unwrap_err();
        assert!(error.to_string().contains("is no hex SHA-256"), "{error}");
        assert!(error.to_string().len() < 500, "a message does not repeat a megabyte");
        let error = read_changed(|json| json["checkpoint_digest"] = json!(digest)).unwrap_err();
        assert!(error.to_string().contains("checkpoint_digest") && error.to_string().len() < 500, "{error}");
    }
}

#[test]
fn sizes_that_fit_no_file_are_refused() {
    for size in [json!(-1), json!(1.5), json!(u64::MAX), json!(i64::MAX as u64 + 1)] {
        assert!(read_changed(|json| json["blobs"][1]["size"] = size.clone()).is_err(), "{size}");
    }
    let error = read_changed(|json| json["blobs"][0]["size"] = json!(11)).unwrap_err();
    assert!(error.to_string().contains("has 11 and 10 bytes"), "one digest has one size: {error}");
}

#[test]
fn a_blob_name_comes_once_and_blobs_are_counted() {
    let error = read_changed(|json| json["blobs"][1]["name"] = json!(blob_names::GRAPH)).unwrap_err();
    assert!(error.to_string().contains("graph.json comes twice"), "{error}");
    let many: Vec<_> =
        (0..1025).map(|i| json!({"name": format!("b{i}"), "sha256": "a".repeat(64), "size": 0})).collect();
    assert!(read_changed(|json| json["blobs"] = json!(many)).is_err());
}

#[test]
fn text_that_would_reach_a_terminal_has_no_control_characters() {
    let changes: [fn(&mut Value, Value); 5] = [
        |json, text| json["model"] = text,
        |json, text| json["revision"] = text,
        |json, text| json["backend_version"] = text,
        |json, text| json["target"]["compute_capabilities"][0] = text,
        |json, text| json["passes"][0]["pass"] = text,
    ];
    for change in changes {
        let error = read_changed(|json| change(json, json!("\u{1b}[2J"))).unwrap_err();
        assert!(matches!(error, ManifestError::Invalid { .. }), "{error}");
        assert!(!error.to_string().contains('\u{1b}'), "nor does the message");
        assert!(read_changed(|json| change(json, json!("x".repeat(4097)))).is_err());
    }
}

#[test]
fn a_blob_is_found_by_name_and_counted_once() {
    let manifest = manifest();
    assert_eq!(manifest.blob(blob_names::WEIGHTS).unwrap().size, 269_030_016);
    let error = manifest.blob(blob_names::CHAT_TEMPLATE).unwrap_err();
    assert!(error.to_string().contains("has no blob \"chat_template.jinja\""), "{error}");
    assert_eq!(manifest.total_bytes(), 269_030_026);
    let files = EngineFiles { paths: [(blob_names::GRAPH.to_owned(), "/cache/a".into())].into(), manifest };
    assert_eq!(files.path(blob_names::GRAPH).unwrap(), std::path::Path::new("/cache/a"));
    assert!(matches!(files.path(blob_names::WEIGHTS), Err(ManifestError::MissingBlob { .. })));
}

#[test]
fn a_manifest_from_before_there_were_rings_has_none() {
    let manifest = read_changed(|json| {
        json["memory_plan"].as_object_mut().unwrap().remove("kv_rings").unwrap();
    });
    let plan = manifest.unwrap().memory_plan;
    assert_eq!(plan.kv_rings, []);
    assert_eq!(plan.kv_bytes(5000), 5000 * 23_040);
    let json = serde_json::to_value(&plan).unwrap();
    assert!(json.get("kv_rings").is_none(), "nor does it get any: {json}");
}

#[test]
fn rings_are_a_part_of_the_caches() {
    let error = read_changed(|json| json["memory_plan"]["kv_rings"][0]["bytes_per_token"] = json!(23_041));
    let error = error.unwrap_err();
    assert!(matches!(&error, ManifestError::Invalid { what, .. } if what.contains("kv_rings")), "{error}");
}

#[test]
fn a_ring_stops_growing_at_its_length() {
    let plan = MemoryPlan {
        kv_bytes_per_token: 100,
        kv_rings: vec![
            KvRing { tokens: 10, bytes_per_token: 30 },
            KvRing { tokens: 50, bytes_per_token: 60 },
        ],
        ..MemoryPlan::default()
    };
    let expected = |tokens: u64| 10 * tokens + 30 * tokens.min(10) + 60 * tokens.min(50);
    for tokens in [0, 1, 10, 11, 50, 51, 1_000_000] {
        assert_eq!(plan.kv_bytes(tokens), expected(tokens), "{tokens}");
    }
    assert_eq!(plan.kv_bytes(u64::MAX), u64::MAX, "and does not overflow");
}

#[test]
fn a_plan_is_found_for_a_gpu_or_for_all() {
    let plan_for = |names: &[&str], device: &str| {
        let paths = names.iter().map(|&name| (name.to_owned(), name.into())).collect();
        let files = EngineFiles { manifest: manifest(), paths };
        files.plan(device.parse().unwrap()).map(std::path::Path::to_owned)
    };
    let each = [blob_names::plan_for("sm_80".parse().unwrap()), blob_names::plan_for("8.9".parse().unwrap())];
    let each = each.each_ref().map(String::as_str);
    assert_eq!(plan_for(&each, "sm_89").unwrap(), std::path::Path::new("engine.sm_89.plan"));
    assert!(matches!(plan_for(&each, "sm_86"), Err(ManifestError::MissingBlob { .. })));
    assert_eq!(plan_for(&[blob_names::PLAN], "sm_86").unwrap(), std::path::Path::new("engine.plan"));
}
