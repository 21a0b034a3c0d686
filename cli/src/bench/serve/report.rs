//! What a load test found, without keeping its streams.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tonic_types::StatusExt as _;

use super::plan::StreamPlan;
use super::stream::{End, Outcome};
use super::watch::{Held, Memory, Most, Overhead};
use crate::bench::histogram::{Histogram, Quantiles};
use crate::generate::finish_reason_name;
use crate::output;

/// Faults that a report spells out; the others are only counted.
const MAX_FAULTS: usize = 20;

/// Adds up the streams of a load test.
#[derive(Debug, Default)]
pub(super) struct Tally {
    streams: u64,
    ends: BTreeMap<String, u64>,
    behaviours: BTreeMap<&'static str, u64>,
    output_tokens: u64,
    first_token: Histogram,
    gaps: Histogram,
    longest: Duration,
    faults: Vec<String>,
    fault_count: u64,
}

/// The result of a load test.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) engine_key: String,
    pub(super) seed: u64,
    pub(super) concurrency: usize,
    pub(super) elapsed_s: f64,
    pub(super) streams: u64,
    /// By how the client behaved.
    pub(super) behaviours: BTreeMap<&'static str, u64>,
    /// By finish reason, status with its reason, or `left` by the client.
    pub(super) ends: BTreeMap<String, u64>,
    pub(super) output_tokens: u64,
    pub(super) tokens_per_s: f64,
    pub(super) time_to_first_token: Quantiles,
    pub(super) inter_token_latency: Quantiles,
    pub(super) longest_stream_s: f64,
    pub(super) most: Most,
    pub(super) held_before: Held,
    pub(super) held_after: Held,
    pub(super) resident_memory: Memory,
    pub(super) scheduler: Overhead,
    /// How many things were wrong, and the first of them.
    pub(super) fault_count: u64,
    pub(super) faults: Vec<String>,
}

/// What a report has beside its streams.
pub(super) struct Surroundings {
    pub(super) model: String,
    pub(super) engine_key: String,
    pub(super) seed: u64,
    pub(super) concurrency: usize,
    pub(super) elapsed: Duration,
    pub(super) most: Most,
    pub(super) held_before: Held,
    pub(super) held_after: Held,
    pub(super) memory: Memory,
    pub(super) scheduler: Overhead,
}

impl Tally {
    pub(super) fn add(&mut self, plan: &StreamPlan, outcome: Outcome) {
        self.streams += 1;
        *self.behaviours.entry(plan.behaviour.name()).or_default() += 1;
        let end = match outcome.end {
            End::Finished(reason) => finish_reason_name(reason).to_owned(),
            End::Status(status) => {
                let details = status.get_error_details();
                let reason = details.error_info().map_or("of the client", |info| info.reason.as_str());
                format!("{:?} ({reason})", status.code())
            }
            End::Left => "left".to_owned(),
            End::Wrong(what) => {
                self.fault(format!("{}: {what}", plan.request_id));
                "wrong".to_owned()
            }
        };
        *self.ends.entry(end).or_default() += 1;
        self.output_tokens += u64::from(outcome.tokens);
        if let Some(duration) = outcome.first_token {
            self.first_token.add(duration);
        }
        outcome.gaps.into_iter().for_each(|gap| self.gaps.add(gap));
        self.longest = self.longest.max(outcome.elapsed);
    }

    pub(super) fn fault(&mut self, what: String) {
        self.fault_count += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what);
        }
    }

    pub(super) fn report(mut self, of: Surroundings) -> Report {
        if of.held_after != of.held_before {
            self.fault(format!(
                "the executor holds {:?}, before the test {:?}",
                of.held_after, of.held_before
            ));
        }
        if !of.memory.flat {
            self.fault(format!("the executor's memory grew: {:?}", of.memory));
        }
        let elapsed_s = of.elapsed.as_secs_f64();
        Report {
            model: of.model,
            engine_key: of.engine_key,
            seed: of.seed,
            concurrency: of.concurrency,
            elapsed_s,
            streams: self.streams,
            behaviours: self.behaviours,
            ends: self.ends,
            output_tokens: self.output_tokens,
            tokens_per_s: self.output_tokens as f64 / elapsed_s.max(f64::MIN_POSITIVE),
            time_to_first_token: self.first_token.quantiles(),
            inter_token_latency: self.gaps.quantiles(),
            longest_stream_s: self.longest.as_secs_f64(),
            most: of.most,
            held_before: of.held_before,
            held_after: of.held_after,
            resident_memory: of.memory,
            scheduler: of.scheduler,
            fault_count: self.fault_count,
            faults: self.faults,
        }
    }
}

impl Report {
    pub(super) fn show(&self) {
        println!(
            "{}: {} streams, {} at a time, in {:.1} s, seed {}",
            self.model, self.streams, self.concurrency, self.elapsed_s, self.seed
        );
        let line = |name: &str, counts: Vec<String>| println!("{name:20} {}", counts.join(", "));
        line("clients", self.behaviours.iter().map(|(name, count)| format!("{name} {count}")).collect());
        line("ends", self.ends.iter().map(|(name, count)| format!("{name} {count}")).collect());
        println!("{:20} {:.1} ({} in all)", "tokens/s", self.tokens_per_s, self.output_tokens);
        self.time_to_first_token.show("time to first token");
        self.inter_token_latency.show("inter-token latency");
        println!("{:20} {:.2} s", "longest stream", self.longest_stream_s);
        println!(
            "{:20} {} running, {} waiting, {} sessions, {} of keys and values",
            "most at a time",
            self.most.running,
            self.most.waiting,
            self.most.sessions,
            output::bytes(self.most.kv_bytes_used)
        );
        let held = self.held_after;
        println!(
            "{:20} {} running, {} waiting, {} sessions, {} of keys and values",
            "held at the end",
            held.running,
            held.waiting,
            held.sessions,
            output::bytes(held.kv_bytes_used)
        );
        let memory = self.resident_memory;
        println!(
            "{:20} {} at the start, {} in the first quarter, {} in the last, {} at the end",
            "resident memory",
            output::bytes(memory.start_bytes),
            output::bytes(memory.first_quarter_bytes),
            output::bytes(memory.last_quarter_bytes),
            output::bytes(memory.end_bytes)
        );
        println!(
            "{:20} p99 {} µs a step, {} µs for its output; {} preemptions",
            "scheduler", self.scheduler.step_p99_us, self.scheduler.output_p99_us, self.scheduler.preemptions
        );
        self.faults.iter().for_each(|fault| println!("FAULT {fault}"));
    }
}
