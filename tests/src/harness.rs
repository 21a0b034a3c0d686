//! The real services in this process, over real gRPC on loopback.
//!
//! [`shared`] has one compiler, one executor and one store for all tests of a process, so that an engine is compiled
//! once however many tests use it: the engine key makes that safe. A test that looks at a whole service (its load, its
//! store, its health) starts its own: [`Compiler::start`], [`Executor::start`].

mod compiler;
mod executor;
mod folder;
mod gated;
mod generated;
mod node;
mod requests;
mod shared;
mod status;

use std::time::Duration;

use anyhow::{Result, bail};

pub use compiler::{Compiler, operation_result};
pub use executor::{Executor, LoadedEngine};
pub use gated::{Gate, GatedRuntime};
pub use generated::Generated;
pub use node::Node;
pub(crate) use requests::cache_message;
pub use requests::{
    SMOLLM2_MAX_SEQ_LEN, chat, compile_options, compile_request, precision_message, prompt, smollm2_request,
    tiny_llama_request, tokens,
};
pub use shared::{Shared, engine_files, shared, smollm2};
pub use status::{field, metadata, reason};

/// How long a test waits for something that should come at once: enough for a busy machine, and far below the time
/// that a generation which nothing stopped would take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state that has no event is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks again and again until there is something, at most for [`PATIENCE`].
///
/// # Errors
/// When there is nothing in time, naming `what`, or the look fails.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            if let Some(found) = look().await? {
                return Ok(found);
            }
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_elapsed) => bail!("waited for {PATIENCE:?}: {what}"),
    }
}
