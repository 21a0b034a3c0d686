//! What the doctor says of a machine, and of a backend on it.

use crate::support::{json, roundhouse};

fn backend<'a>(report: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    report["backends"].as_array().unwrap().iter().find(|backend| backend["name"] == name).unwrap()
}

#[test]
fn every_backend_is_reported_with_what_it_lacks() {
    let report = json(&roundhouse(&["doctor", "--json"]));
    let cpu = backend(&report, "cpu");
    assert_eq!((cpu["builds"].as_bool(), cpu["runs"].as_bool()), (Some(true), Some(true)));
    for name in ["cpu", "cuda", "tensorrt"] {
        let backend = backend(&report, name);
        let lacks_nothing = backend["missing"].as_array().unwrap().is_empty();
        assert_eq!(backend["builds"] == true && backend["runs"] == true, lacks_nothing, "{backend}");
    }
    let text = roundhouse(&["doctor"]);
    assert!(text.status.success() && String::from_utf8_lossy(&text.stdout).contains("tensorrt"));
}

#[test]
fn the_cpu_backend_keeps_every_promise_on_this_machine() {
    let output = roundhouse(&["doctor", "--backend", "cpu", "--json"]);
    let outcomes = json(&output)["conformance"].as_array().unwrap().clone();
    assert!(outcomes.len() > 10, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| outcome["failure"].is_null()), "{outcomes:?}");
}

/// On a machine with a GPU that TensorRT runs on it runs the suite; on any other it says what is missing.
#[test]
fn tensorrt_is_examined_or_refused_with_what_is_missing() {
    let output = roundhouse(&["doctor", "--backend", "tensorrt", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let tensorrt = backend(&report, "tensorrt");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!message.contains("panicked"), "{message}");
    if tensorrt["runs"] == true && tensorrt["builds"] == true {
        assert!(output.status.success(), "{message}");
        assert!(report["conformance"].as_array().unwrap().len() > 10);
        return;
    }
    assert!(!output.status.success());
    assert!(report.get("conformance").is_none());
    assert!(message.contains("the tensorrt backend cannot be examined here"), "{message}");
    for missing in tensorrt["missing"].as_array().unwrap() {
        assert!(message.contains(missing.as_str().unwrap()), "{message}");
    }
    if cfg!(feature = "tensorrt") {
        assert!(message.contains("NVIDIA") || message.contains("compute capability"), "{message}");
    } else {
        assert!(message.contains("cargo feature"), "{message}");
    }
}

#[cfg(feature = "tensorrt")]
#[test]
fn the_library_is_reported_with_its_version_and_gpus() {
    let report = json(&roundhouse(&["doctor", "--json"]));
    assert_eq!(backend(&report, "tensorrt")["builds"], true, "{report}");
    let names: Vec<_> =
        report["libraries"].as_array().unwrap().iter().map(|library| &library["path"]).collect();
    let same = |name: &&&serde_json::Value| name.as_str().unwrap().ends_with("libtensorrt_rtx.so.1");
    assert_eq!(names.iter().filter(same).count(), 1, "a library is listed once: {names:?}");
    let library = &report["libraries"][0];
    assert_eq!((library["usable"].as_bool(), library["flavour"].as_str()), (Some(true), Some("rtx")));
    assert!(library["version"].as_str().unwrap().starts_with("1.7."), "{library}");
    let gpus = library["compute_capabilities"].as_array().unwrap();
    assert!(gpus.iter().any(|gpu| gpu == "sm_89") && gpus.iter().all(|gpu| gpu != "sm_90"), "{library}");
    let missing = json(&roundhouse(&["doctor", "--json", "--tensorrt-library", "/nowhere/lib.so"]));
    let missing = backend(&missing, "tensorrt")["missing"].to_string();
    assert!(missing.contains("/nowhere/lib.so") && missing.contains("make tensorrt"), "{missing}");
}
