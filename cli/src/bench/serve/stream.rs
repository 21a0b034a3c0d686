//! One stream of a load test: opened, read or left as its plan says, and judged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    CancelRequest, CreateSessionRequest, DeleteSessionRequest, FinishReason, GenerateRequest,
    GenerateResponse, SamplingOptions, StoppingOptions, TokenIds, generate_request,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use super::plan::{Behaviour, Moment, StreamPlan};

/// New tokens of the first turn of a session.
const FIRST_TURN_TOKENS: u32 = 2;
/// The window of a slow reader's connection, in bytes: a few messages.
const SLOW_WINDOW: u32 = 1024;
/// The longest that a slow reader pauses in all; then it reads on without a pause.
const SLOW_PAUSES: Duration = Duration::from_secs(2);

/// The executor that is loaded.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) engine: String,
    endpoint: Endpoint,
    /// Connections for streams, in turn.
    streams: Vec<ExecutorClient<Channel>>,
    next: AtomicUsize,
    /// For calls that must not wait behind streams.
    control: ExecutorClient<Channel>,
}

/// How a stream went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// Tokens that came.
    pub(super) tokens: u32,
    /// From the call to the first token.
    pub(super) first_token: Option<Duration>,
    /// Between messages with tokens, of streams that were read without pauses.
    pub(super) gaps: Vec<Duration>,
    pub(super) elapsed: Duration,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// With its last message.
    Finished(FinishReason),
    /// With a status of the service, or what the transport made of the end of the client's own connection or deadline.
    Status(Box<Status>),
    /// The client left it.
    Left,
    /// In a way that it must not.
    Wrong(String),
}

impl Target {
    /// Connects so many times.
    pub(super) async fn connect(
        endpoint: Endpoint,
        connections: usize,
        engine: String,
    ) -> anyhow::Result<Self> {
        let mut streams = Vec::with_capacity(connections);
        for _ in 0..connections.max(1) {
            streams.push(ExecutorClient::new(endpoint.connect().await?));
        }
        let control = ExecutorClient::new(endpoint.connect().await?);
        Ok(Self { engine, endpoint, streams, next: AtomicUsize::new(0), control })
    }

    pub(super) fn control(&self) -> ExecutorClient<Channel> {
        self.control.clone()
    }

    fn client(&self) -> ExecutorClient<Channel> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.streams[next % self.streams.len()].clone()
    }

    /// Runs a stream; one that has not ended after `bound` is wrong.
    pub(super) async fn run(&self, plan: &StreamPlan, bound: Duration) -> Outcome {
        let started = Instant::now();
        let mut seen = Seen::new(started);
        let end = self.stream(plan, bound, &mut seen).await;
        let end = end.unwrap_or_else(|status| End::Status(Box::new(status)));
        Outcome {
            end: judged(plan, end),
            tokens: seen.tokens,
            first_token: seen.first_token,
            gaps: seen.gaps,
            elapsed: started.elapsed(),
        }
    }

    async fn stream(&self, plan: &StreamPlan, bound: Duration, seen: &mut Seen) -> Result<End, Status> {
        let late = |seen: &Seen| End::Wrong(format!("no end after {bound:?}, {} tokens came", seen.tokens));
        if !plan.in_session {
            let end = tokio::time::timeout(bound, self.generate(plan, None, seen)).await;
            return end.unwrap_or_else(|_elapsed| Ok(late(seen)));
        }
        let create =
            CreateSessionRequest { engine: Some(self.engine.clone()), ..CreateSessionRequest::default() };
        let session = self.control().create_session(create).await?.into_inner().id;
        let end = tokio::time::timeout(bound, self.turns(plan, &session, seen)).await;
        let end = end.unwrap_or_else(|_elapsed| Ok(late(seen)));
        let deleted = self.control().delete_session(DeleteSessionRequest { session_id: session }).await;
        match (deleted, plan.behaviour) {
            // It was the client's plan that it is gone.
            (Err(status), Behaviour::DeleteSession(_)) if status.code() == Code::NotFound => end,
            (Err(status), _) => Ok(End::Wrong(format!("deleting the session: {status}"))),
            (Ok(_), _) => end,
        }
    }

    async fn turns(&self, plan: &StreamPlan, session: &str, seen: &mut Seen) -> Result<End, Status> {
        let first = StreamPlan {
            request_id: format!("{}-first", plan.request_id),
            max_tokens: FIRST_TURN_TOKENS,
            behaviour: Behaviour::Read,
            ..plan.clone()
        };
        match self.generate(&first, Some(session), &mut Seen::new(seen.started)).await? {
            End::Finished(_) => {}
            other => return Ok(other),
        }
        // Of the second turn.
        *seen = Seen::new(Instant::now());
        self.generate(plan, Some(session), seen).await
    }

    async fn generate(
        &self,
        plan: &StreamPlan,
        session: Option<&str>,
        seen: &mut Seen,
    ) -> Result<End, Status> {
        let mut client = match plan.behaviour {
            Behaviour::Disconnect(_) => ExecutorClient::new(own(self.endpoint.clone()).await?),
            Behaviour::ReadSlowly(_) => {
                ExecutorClient::new(own(self.endpoint.clone().initial_stream_window_size(SLOW_WINDOW)).await?)
            }
            _ => self.client(),
        };
        let mut request = Request::new(self.request(plan, session));
        if let Behaviour::Deadline(deadline) = plan.behaviour {
            request.set_timeout(deadline);
        }
        let mut stream = client.generate(request).await?.into_inner();
        let leaves = plan.behaviour.leaves();
        let leaving = async {
            match leaves {
                Some(Moment::AtOnce) => {}
                Some(Moment::After(delay)) => tokio::time::sleep(delay).await,
                Some(Moment::AfterMessages(_)) | None => std::future::pending().await,
            }
        };
        let most = match leaves {
            Some(Moment::AfterMessages(messages)) => messages,
            _ => u32::MAX,
        };
        let ended = tokio::select! {
            ended = seen.read(&mut stream, plan.behaviour, most) => ended?,
            () = leaving => None,
        };
        if let Some(end) = ended {
            return Ok(end);
        }
        match plan.behaviour {
            Behaviour::Cancel(_) => {
                let cancel = CancelRequest { request_id: plan.request_id.clone(), keep_session: None };
                self.control().cancel(cancel).await?;
            }
            Behaviour::DeleteSession(_) => {
                let session_id = session.unwrap_or_default().to_owned();
                self.control().delete_session(DeleteSessionRequest { session_id }).await?;
            }
            // The stream, and the connection that only it has, go with this call.
            _ => return Ok(End::Left),
        }
        let ended = seen.read(&mut stream, Behaviour::Read, u32::MAX).await?;
        Ok(ended.unwrap_or(End::Left))
    }

    fn request(&self, plan: &StreamPlan, session: Option<&str>) -> GenerateRequest {
        GenerateRequest {
            engine: Some(self.engine.clone()),
            session_id: session.map(str::to_owned),
            request_id: Some(plan.request_id.clone()),
            input: Some(generate_request::Input::TokenIds(TokenIds { ids: plan.prompt.clone() })),
            sampling: plan.sampling_seed.map(|seed| SamplingOptions {
                temperature: Some(1.0),
                seed: Some(seed),
                ..SamplingOptions::default()
            }),
            stopping: Some(StoppingOptions {
                max_tokens: Some(plan.max_tokens),
                ignore_eos: Some(true),
                ..StoppingOptions::default()
            }),
            ..GenerateRequest::default()
        }
    }
}

/// A connection of one stream alone.
async fn own(endpoint: Endpoint) -> Result<Channel, Status> {
    endpoint.connect().await.map_err(|error| Status::from_error(error.into()))
}

/// What came of a stream so far.
#[derive(Debug)]
struct Seen {
    started: Instant,
    tokens: u32,
    first_token: Option<Duration>,
    last: Option<Instant>,
    gaps: Vec<Duration>,
    /// Of the last message. Reading may stop between that and the end of the stream, and go on later.
    finished: Option<FinishReason>,
}

impl Seen {
    fn new(started: Instant) -> Self {
        Self { started, tokens: 0, first_token: None, last: None, gaps: Vec::new(), finished: None }
    }

    /// Reads to the end, or so many messages: then there is no end yet.
    async fn read(
        &mut self,
        stream: &mut Streaming<GenerateResponse>,
        behaviour: Behaviour,
        most: u32,
    ) -> Result<Option<End>, Status> {
        let mut paused = Duration::ZERO;
        let mut messages = 0;
        while let Some(message) = stream.message().await? {
            if self.finished.is_some() {
                return Ok(Some(End::Wrong("a message after the last one".to_owned())));
            }
            self.take(&message, matches!(behaviour, Behaviour::ReadSlowly(_)));
            if message.finish_reason.is_some() {
                let usage = message.usage.unwrap_or_default();
                if usage.output_tokens != self.tokens {
                    let what = format!("{} tokens came, the usage says {}", self.tokens, usage.output_tokens);
                    return Ok(Some(End::Wrong(what)));
                }
                self.finished = Some(message.finish_reason());
            }
            messages += 1;
            if messages >= most && self.finished.is_none() {
                return Ok(None);
            }
            if let Behaviour::ReadSlowly(pause) = behaviour
                && paused < SLOW_PAUSES
            {
                paused += pause;
                tokio::time::sleep(pause).await;
            }
        }
        let missing = || End::Wrong("an end without a last message".to_owned());
        Ok(Some(self.finished.map_or_else(missing, End::Finished)))
    }

    fn take(&mut self, message: &GenerateResponse, slowly: bool) {
        let Ok(count @ 1..) = u32::try_from(message.token_ids.len()) else { return };
        let now = Instant::now();
        self.tokens += count;
        self.first_token.get_or_insert_with(|| now - self.started);
        if let Some(last) = self.last.replace(now)
            && !slowly
        {
            self.gaps.extend(std::iter::repeat_n((now - last) / count, count as usize));
        }
    }
}

/// Whether a stream may end so.
fn judged(plan: &StreamPlan, end: End) -> End {
    match &end {
        End::Finished(FinishReason::MaxTokens | FinishReason::CacheFull) => end,
        End::Finished(FinishReason::Cancelled) if matches!(plan.behaviour, Behaviour::Cancel(_)) => end,
        End::Finished(reason) => End::Wrong(format!("finish reason {reason:?} of {:?}", plan.behaviour)),
        End::Status(status) => {
            let typed = status.get_error_details().error_info().is_some();
            let by_client = matches!(plan.behaviour, Behaviour::Deadline(_))
                && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
            let allowed = match status.code() {
                Code::DeadlineExceeded => matches!(plan.behaviour, Behaviour::Deadline(_)),
                Code::Aborted => matches!(plan.behaviour, Behaviour::DeleteSession(_)),
                Code::NotFound => matches!(plan.behaviour, Behaviour::DeleteSession(_)),
                Code::ResourceExhausted => true,
                _ => false,
            };
            if by_client || (typed && allowed) {
                return end;
            }
            End::Wrong(format!("{:?} ended with {:?}: {}", plan.behaviour, status.code(), status.message()))
        }
        End::Left | End::Wrong(_) => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(behaviour: Behaviour) -> StreamPlan {
        StreamPlan {
            request_id: "r".to_owned(),
            prompt: vec![1],
            max_tokens: 1,
            sampling_seed: None,
            in_session: false,
            behaviour,
        }
    }

    fn status(code: Code, typed: bool) -> End {
        let failure = roundhouse_rpc::Failure::new(code, roundhouse_rpc::reason::INTERNAL, "m");
        End::Status(Box::new(if typed { failure.into() } else { Status::new(code, "m") }))
    }

    #[test]
    fn only_what_a_client_asked_for_may_end_its_stream() {
        let cancel = Behaviour::Cancel(Moment::AtOnce);
        let deadline = Behaviour::Deadline(Duration::ZERO);
        let cases = [
            (Behaviour::Read, End::Finished(FinishReason::MaxTokens), true),
            (Behaviour::Read, End::Finished(FinishReason::Cancelled), false),
            (cancel, End::Finished(FinishReason::Cancelled), true),
            (Behaviour::Read, status(Code::ResourceExhausted, true), true),
            (Behaviour::Read, status(Code::ResourceExhausted, false), false),
            (Behaviour::Read, status(Code::DeadlineExceeded, true), false),
            (Behaviour::Read, status(Code::Internal, true), false),
            (Behaviour::Read, status(Code::Unavailable, true), false),
            (deadline, status(Code::DeadlineExceeded, true), true),
            (deadline, status(Code::Cancelled, false), true),
            (cancel, status(Code::Cancelled, false), false),
        ];
        for (behaviour, end, allowed) in cases {
            let what = format!("{behaviour:?} {end:?}");
            assert_eq!(!matches!(judged(&plan(behaviour), end), End::Wrong(_)), allowed, "{what}");
        }
    }
}
