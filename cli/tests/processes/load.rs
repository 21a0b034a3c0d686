//! The load test, short: what a client may do to a stream, done two hundred times at once.

use crate::support::{Service, json, roundhouse, tiny_llama};

#[test]
fn two_hundred_clients_that_behave_in_every_way_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (compiler, executor) = (Service::compiler(folder.path()), Service::executor(folder.path()));
    let model = tiny_llama();
    let report = json(&roundhouse(&[
        "bench",
        "serve",
        "--json",
        "--compiler",
        &compiler.url,
        "--executor",
        &executor.url,
        "--backend",
        "cpu",
        "--streams",
        "200",
        "--seconds",
        "5",
        "--seed",
        "7",
        "--model",
        model.to_str().unwrap(),
    ]));
    let count = |group: &str, name: &str| report[group][name].as_u64().unwrap_or(0);
    assert!(report["streams"].as_u64().unwrap() >= 200);
    for behaviour in ["read", "read slowly", "cancel", "drop", "disconnect", "delete session", "deadline"] {
        assert!(count("behaviours", behaviour) > 0, "{behaviour}: {report}");
    }
    for end in ["max_tokens", "cancelled", "left"] {
        assert!(count("ends", end) > 0, "{end}: {report}");
    }
    assert_eq!(report["fault_count"], 0, "{report}");
    assert_eq!(report["held_after"]["kv_bytes_used"], 0);
    assert!(report["tokens_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_soak_in_one_process_leaves_no_slot_and_no_memory_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap().to_owned();
    let model = tiny_llama();
    let mut arguments = vec!["bench", "soak", "--json", "--backend", "cpu", "--home", &home];
    arguments.extend(["--streams", "32", "--seconds", "20", "--seed", "11", "--model"]);
    arguments.push(model.to_str().unwrap());
    let report = json(&roundhouse(&arguments));
    assert!(report["streams"].as_u64().unwrap() > 32, "{report}");
    for held in ["running", "waiting", "sessions", "kv_bytes_used"] {
        assert_eq!(report["held_after"][held], 0, "{report}");
    }
    for memory in ["start_bytes", "first_quarter_bytes", "last_quarter_bytes", "end_bytes"] {
        assert!(report["resident_memory"][memory].as_u64().unwrap() > 0, "{report}");
    }
    assert!(report["scheduler"]["step_p99_us"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["fault_count"], 0, "{report}");
}

#[test]
fn many_sessions_are_measured_against_one_and_while_prompts_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_llama().with_file_name("tiny-llama-3.1");
    let home = folder.path().to_str().unwrap().to_owned();
    let mut arguments = vec!["bench", "batching", "--json", "--backend", "cpu", "--home", &home];
    arguments.extend(["--sessions", "4", "--osl", "256", "--iterations", "1", "--max-seq-len", "512"]);
    arguments.extend(["--arrivals", "2", "--arrival-tokens", "64", "--arrival-interval-ms", "10", "--model"]);
    arguments.push(model.to_str().unwrap());
    let report = json(&roundhouse(&arguments));
    for field in ["alone_tokens_per_s", "together_tokens_per_s", "ratio"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{report}");
    }
    assert!(report["arrivals"]["inter_token_latency"]["count"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["arrivals"]["time_to_first_token"]["count"], 2);
}
