//! Runs the generations of one engine together, step by step, on a thread of its own.
//!
//! `policy` decides what is done next and knows no clock and no model; `worker` does it; `handle` is the way to it.

mod decode_run;
mod drafts;
mod fairness;
mod fork;
mod generation;
mod handle;
mod latency;
mod measured;
mod output;
mod pace;
mod policy;
mod prompt_scores;
mod request;
mod step_clock;
mod worker;

pub use drafts::PromptLookup;
pub use fairness::TenantId;
pub use fork::PromptBlocks;
pub use handle::{Load, Scheduler, SchedulerConfig, SchedulerParts, SubmitError};
pub use latency::Latencies;
pub use pace::{Pace, PaceLimits};
pub use policy::{Candidate, Memory, Plan, Policy, PolicyLimits, Refusal, Share, Status, StepLimits};
pub use prompt_scores::PromptLogprobs;
pub use request::{Cancellation, Delta, Echo, Finish, FinishReason, GenerateError, Limits, Request};
