//! Runs the generations of one engine together, step by step, on a thread of its own.

mod generation;
mod policy;
mod prompt_scores;
mod worker;

pub use generation::{Cancellation, Delta, Finish, FinishReason, GenerateError, Limits, Request};
pub use policy::{Candidate, Share, StepLimits, plan};
pub use prompt_scores::PromptLogprobs;
pub use worker::{Load, Scheduler, SchedulerConfig, SubmitError};
