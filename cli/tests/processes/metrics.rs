//! The metrics that Prometheus reads.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Service, json, run_llm, tiny_llama, wait_for};

/// The status line and the body of an answer.
fn get(address: &str, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The value of the first line that begins so.
fn value(text: &str, name: &str) -> Option<f64> {
    let line =
        text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn both_services_show_what_they_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let work_dir = format!("{path}/compiler");
    let cache_dir = format!("{path}/executor");
    let (compiler, of_compiler) = Service::measured("compiler", folder.path(), &["--work-dir", &work_dir]);
    let (executor, of_executor) = Service::measured("executor", folder.path(), &["--cache-dir", &cache_dir]);
    let flags = ["--backend", "cpu", "--prompt", "a b c", "--raw", "--num-tokens", "8", "--ignore-eos"];
    let answer = json(&run_llm(&compiler, &executor, &tiny_llama(), &flags));
    let tokens = answer["output_token_ids"].as_array().unwrap().len() as f64;

    // A generation is counted when it has left its scheduler, which is a moment after its last message.
    let text = wait_for(|| {
        let (status, text) = get(&of_executor, "GET", "/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        value(&text, "roundhouse_requests_finished_total").is_some().then_some(text)
    });
    let expected = [
        ("roundhouse_generation_tokens_total", tokens),
        ("roundhouse_inter_token_latency_seconds_count", tokens - 1.0),
        ("roundhouse_time_to_first_token_seconds_count", 1.0),
        ("roundhouse_e2e_request_latency_seconds_count", 1.0),
        ("roundhouse_request_queue_time_seconds_count", 1.0),
        ("roundhouse_requests_finished_total", 1.0),
        ("roundhouse_num_requests_running", 0.0),
        ("roundhouse_num_engines", 1.0),
        ("roundhouse_kv_cache_used_bytes", 0.0),
    ];
    for (name, expected) in expected {
        assert_eq!(value(&text, name), Some(expected), "{name} in\n{text}");
    }
    assert!(text.contains("finished_reason=\"max_tokens\""), "{text}");
    for name in ["roundhouse_step_time_seconds_count", "roundhouse_scheduler_overhead_seconds_count"] {
        assert!(value(&text, name).unwrap() >= tokens, "{name} in\n{text}");
    }
    for name in ["roundhouse_engine_memory_bytes", "roundhouse_executor_resident_memory_bytes"] {
        assert!(value(&text, name).unwrap() > 0.0, "{name} in\n{text}");
    }

    let (_, text) = get(&of_compiler, "GET", "/metrics");
    assert_eq!(value(&text, "roundhouse_builds_finished_total"), Some(1.0), "{text}");
    assert_eq!(value(&text, "roundhouse_num_builds_running"), Some(0.0), "{text}");
    assert_eq!(get(&of_compiler, "GET", "/").0, "HTTP/1.1 404 Not Found");
    assert_eq!(get(&of_compiler, "POST", "/metrics").0, "HTTP/1.1 405 Method Not Allowed");
}
