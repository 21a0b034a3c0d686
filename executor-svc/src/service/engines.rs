//! The engine that a request is for: loaded where it is not, within the request's deadline.

use std::sync::Arc;
use std::time::Instant;

use roundhouse_rpc::{Failure, reason};
use tonic::Code;

use super::{ExecutorService, failure};
use crate::engine::LoadedEngine;

impl ExecutorService {
    /// The engine of this key or model; without a name the only one. Who holds it keeps it loaded.
    pub(super) async fn engine(
        &self,
        name: Option<&str>,
        deadline: Option<Instant>,
    ) -> Result<Arc<LoadedEngine>, Failure> {
        let finding = self.engines.find_or_load(name);
        let found = match deadline {
            None => finding.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), finding).await.map_err(|_elapsed| {
                    let message = "the deadline passed while the engine was being loaded";
                    Failure::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message)
                })?
            }
        };
        found.map_err(|error| failure::of_use(&error))
    }
}
