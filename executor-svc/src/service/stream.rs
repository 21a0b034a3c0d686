//! The stream of a Generate call.

use std::pin::Pin;

use roundhouse_proto::executor::{GenerateRequest, GenerateResponse};
use roundhouse_rpc::{Failure, reason};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _, StreamMap};
use tonic::{Code, Status};

use super::caller::Caller;
use super::until::Until;
use super::{ExecutorService, convert, failure};

pub(super) type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

impl ExecutorService {
    /// Begins a generation; its messages until the deadline.
    #[tracing::instrument(skip_all, fields(request_id))]
    pub(super) async fn stream(
        &self,
        caller: Caller,
        mut message: GenerateRequest,
    ) -> Result<GenerateStream, Status> {
        let deadline = caller.deadline;
        let service = self.clone();
        let session = match message.session_id.as_deref() {
            Some(id) => Some(self.session(&caller, id).await?),
            None => None,
        };
        let engine = match &session {
            Some(session) => self.engine(Some(session.engine().as_str()), deadline).await?,
            None => self.engine(message.engine.as_deref(), deadline).await?,
        };
        let images = self.take_images(&mut message, &engine, session.as_ref(), deadline).await?;
        let stored = session.clone();
        // Templates and tokenizers take milliseconds for long inputs.
        let starting = tokio::task::spawn_blocking(move || {
            let started = service.start(message, &images, caller, session);
            // It was held so that it stayed loaded until the generation was in its scheduler.
            drop(engine);
            started
        });
        let started = starting
            .await
            .map_err(|error| Failure::new(Code::Internal, reason::INTERNAL, error.to_string()))??;
        tracing::Span::current().record("request_id", &started.request_id);
        let mut outputs = StreamMap::with_capacity(started.outputs.len());
        for (index, deltas) in (0..).zip(started.outputs) {
            outputs.insert(index, ReceiverStream::new(deltas));
        }
        let stream = outputs.then(move |(index, delta)| {
            let (request_id, stored) = (started.request_id.clone(), stored.clone());
            async move {
                let delta = delta.map_err(|error| failure::of_generate(&error))?;
                // Who reads the end of a turn finds it in the history, wherever the session is stored.
                if delta.finish.is_some()
                    && let Some(session) = stored
                {
                    session.settled().await.map_err(|error| failure::of_session(&error))?;
                }
                Ok::<_, Status>(convert::response(&request_id, index, delta))
            }
        });
        Ok(Box::pin(Until::new(stream, deadline)))
    }
}
