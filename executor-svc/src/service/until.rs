//! A stream that ends at its caller's deadline even when nothing comes any more: a step that does not end keeps the
//! scheduler from ending its generations.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use roundhouse_proto::executor::GenerateResponse;
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::Status;

use super::failure;
use crate::scheduler::GenerateError;

/// The messages of a stream until the deadline, and then DEADLINE_EXCEEDED.
pub(super) struct Until<S> {
    /// `None` when it is over: what a generation holds for its client goes at once.
    messages: Option<Pin<Box<S>>>,
    deadline: Option<Pin<Box<Sleep>>>,
    output_tokens: usize,
}

impl<S> Until<S> {
    pub(super) fn new(messages: S, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())));
        Self { messages: Some(Box::pin(messages)), deadline, output_tokens: 0 }
    }
}

impl<S: Stream<Item = Result<GenerateResponse, Status>>> Stream for Until<S> {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
        if let Poll::Ready(message) = messages.as_mut().poll_next(context) {
            if let Some(Ok(message)) = &message {
                self.output_tokens += message.token_ids.len();
            }
            return Poll::Ready(message);
        }
        let is_late =
            self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready());
        if !is_late {
            return Poll::Pending;
        }
        self.messages = None;
        let error = GenerateError::DeadlineExceeded { output_tokens: self.output_tokens };
        Poll::Ready(Some(Err(failure::of_generate(&error).into())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_stream::StreamExt as _;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_stream_in_which_nothing_comes_ends_at_its_deadline() {
        let message = GenerateResponse { token_ids: vec![1, 2], ..GenerateResponse::default() };
        let messages = tokio_stream::once(Ok(message.clone())).chain(tokio_stream::pending());
        let mut stream = Until::new(messages, Some(Instant::now() + Duration::from_millis(20)));
        assert_eq!(stream.next().await.unwrap().unwrap(), message);
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("after 2 tokens"), "{status}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_ends_in_time_is_as_it_was() {
        let messages: Vec<_> = (0..3)
            .map(|token| Ok(GenerateResponse { token_ids: vec![token], ..GenerateResponse::default() }))
            .collect();
        for deadline in [None, Some(Instant::now() + Duration::from_secs(3600))] {
            let stream = Until::new(tokio_stream::iter(messages.clone()), deadline);
            let tokens: Vec<_> = stream.map(|message| message.unwrap().token_ids[0]).collect().await;
            assert_eq!(tokens, [0, 1, 2]);
        }
    }
}
