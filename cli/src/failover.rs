//! Several executors, of which one is used until it fails: a session's turn that it does not finish is asked of the next
//! one, which restores the session from the store that they share.

use anyhow::{bail, ensure};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    GenerateRequest, GetSessionRequest, LoadEngineRequest, TruncateSessionRequest,
};
use roundhouse_rpc::MAX_MESSAGE_BYTES;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::generate::{Generated, generate};
use crate::output;

/// Executors that share their sessions.
#[derive(Debug)]
pub(crate) struct Executors {
    endpoints: Vec<Endpoint>,
    /// The one that is used, and its place among the endpoints.
    current: watch::Sender<(usize, ExecutorClient<Channel>)>,
}

impl Executors {
    /// Connects to the first that answers.
    pub(crate) async fn connect(endpoints: Vec<Endpoint>) -> anyhow::Result<Self> {
        let current = watch::Sender::new(first_that_answers(&endpoints, 0).await?);
        Ok(Self { endpoints, current })
    }

    /// The one that is used.
    pub(crate) fn client(&self) -> ExecutorClient<Channel> {
        self.current.borrow().1.clone()
    }

    /// Turns to the next one that answers, with the engine loaded and the session where it was before the turn.
    async fn fail_over(&self, turn: &Turn<'_>) -> anyhow::Result<()> {
        let next = self.current.borrow().0 + 1;
        let (place, mut client) = first_that_answers(&self.endpoints, next).await?;
        client.load_engine(LoadEngineRequest { engine_key: turn.engine.to_owned() }).await?;
        let session = GetSessionRequest { session_id: turn.session.to_owned() };
        let there = client.get_session(session).await?.into_inner().num_tokens;
        ensure!(
            there >= turn.num_tokens,
            "the session has {there} tokens in the next executor and had {} before the turn",
            turn.num_tokens
        );
        if there > turn.num_tokens {
            // The turn was stored, or a part of it: it is asked again.
            let (session_id, num_tokens) = (turn.session.to_owned(), turn.num_tokens);
            client.truncate_session(TruncateSessionRequest { session_id, num_tokens }).await?;
        }
        self.current.send_replace((place, client));
        Ok(())
    }

    /// Runs a turn; `show` gets each piece of text as it comes, and each once, whoever makes it. A turn that fails with its
    /// executor is asked again of the others, where the session is as it was before. Its text is the same where its tokens
    /// are chosen greedily or with a seed.
    pub(crate) async fn turn(
        &self,
        turn: &Turn<'_>,
        request: &GenerateRequest,
        mut show: impl FnMut(&str),
    ) -> anyhow::Result<Generated> {
        let mut shown = 0;
        for left in (0..self.endpoints.len()).rev() {
            let mut again = String::new();
            let generating = generate(&mut self.client(), request.clone(), |piece| {
                again.push_str(piece);
                // What was shown before an executor failed comes again first.
                if let Some(new) = again.get(shown..).filter(|new| !new.is_empty()) {
                    show(new);
                    shown = again.len();
                }
            })
            .await;
            let error = match generating {
                Ok(generated) => return Ok(generated),
                Err(error) => error,
            };
            let Some(status) = error.downcast_ref().filter(|status| left > 0 && is_of_executor(status))
            else {
                return Err(error);
            };
            tracing::warn!(error = output::describe(status), "trying the next executor");
            self.fail_over(turn).await?;
        }
        bail!("there is no executor")
    }
}

/// Where a turn is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    /// The engine's key.
    pub(crate) engine: &'a str,
    /// The session's ID.
    pub(crate) session: &'a str,
    /// Tokens of the session's history before the turn.
    pub(crate) num_tokens: u32,
}

/// The first endpoint that answers, from number `start` on and around.
async fn first_that_answers(
    endpoints: &[Endpoint],
    start: usize,
) -> anyhow::Result<(usize, ExecutorClient<Channel>)> {
    let mut failure = None;
    for offset in 0..endpoints.len() {
        let index = (start + offset) % endpoints.len();
        match endpoints[index].connect().await {
            Ok(channel) => {
                let client = ExecutorClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES);
                return Ok((index, client));
            }
            Err(error) => {
                let uri = endpoints[index].uri();
                failure = Some(anyhow::Error::new(error).context(format!("executor service at {uri}")));
            }
        }
    }
    Err(failure.unwrap_or_else(|| anyhow::anyhow!("no executor service is named")))
}

/// Whether a call failed with its executor or the way to it, and not for what it asks.
fn is_of_executor(status: &Status) -> bool {
    // What the transport makes of a connection that breaks has no details.
    let of_transport = status.get_error_details().error_info().is_none();
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => of_transport,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_rpc::{Failure, reason};

    use super::*;

    #[test]
    fn only_what_fails_with_its_executor_is_asked_of_another_one() {
        let typed = |code| Status::from(Failure::new(code, reason::INTERNAL, "m"));
        for code in [Code::Unavailable, Code::Unknown, Code::Internal] {
            assert!(is_of_executor(&Status::new(code, "transport error")), "{code:?}");
        }
        assert!(is_of_executor(&typed(Code::Unavailable)), "draining");
        for code in [Code::Internal, Code::NotFound, Code::InvalidArgument, Code::ResourceExhausted] {
            assert!(!is_of_executor(&typed(code)), "{code:?}");
        }
    }
}
