//! What the store and the cache promise, one kind of promise a file.
#![expect(clippy::unwrap_used, reason = "a panic in a test is a failed test")]

mod cache;
mod conformance;
mod disk;
mod publish;
mod read;
mod s3;
mod support;
mod versions;
