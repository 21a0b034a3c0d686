//! Runs the generations of one engine together, step by step, on a thread of its own.

mod generation;
mod policy;
mod prompt_scores;
mod request;
mod worker;

pub use policy::{Candidate, Share, StepLimits, plan};
pub use prompt_scores::PromptLogprobs;
pub use request::{Cancellation, Delta, Echo, Finish, FinishReason, GenerateError, Limits, Request};
pub use worker::{Load, Scheduler, SchedulerConfig, SubmitError};
