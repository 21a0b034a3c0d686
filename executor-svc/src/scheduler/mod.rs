//! Runs the generations of one engine together, step by step, on a thread of its own.

mod generation;
mod policy;
mod worker;

pub use generation::{Cancellation, Delta, Finish, FinishReason, GenerateError, Limits, Request};
pub use policy::{Candidate, Share, StepLimits, plan};
pub use worker::{Load, Scheduler, SchedulerConfig, SubmitError};
