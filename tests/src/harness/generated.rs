//! A generation, read to its end.

use std::collections::BTreeMap;

use roundhouse_proto::executor::{Echo, FinishReason, GenerateResponse, Timings, TokenLogprobs, Usage};
use tonic::{Status, Streaming};

/// A generation, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Its name, the same in every message.
    pub request_id: String,
    /// Which of its request's outputs it is.
    pub index: u32,
    /// The prompt, where asked for.
    pub echo: Option<Echo>,
    /// The text of each message.
    pub deltas: Vec<String>,
    /// The tokens of all messages.
    pub token_ids: Vec<u32>,
    /// One a token, where asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens, where asked for: what each message had.
    pub prompt_logprobs: Vec<Vec<TokenLogprobs>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Of the last message.
    pub usage: Usage,
    /// Of the last message.
    pub timings: Timings,
}

impl Generated {
    /// Reads a stream to its end, and checks what every stream promises: a finish reason, usage and timings on the last
    /// message and on no other, one request ID, as many output tokens as were sent, and nothing of the
    /// prompt after the first of them.
    ///
    /// # Errors
    /// The status that the stream ended with; INTERNAL when it breaks a promise.
    pub async fn read(stream: &mut Streaming<GenerateResponse>) -> Result<Self, Status> {
        Self::read_after(Vec::new(), stream).await
    }

    /// As [`Generated::read`], of a stream whose first messages were read before.
    ///
    /// # Errors
    /// As [`Generated::read`].
    pub async fn read_after(
        mut messages: Vec<GenerateResponse>,
        stream: &mut Streaming<GenerateResponse>,
    ) -> Result<Self, Status> {
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Self::of(messages)
    }

    /// Reads the stream of a request with several outputs to its end: each of them, in the order of their indices. Each is
    /// checked as by [`Generated::read`].
    ///
    /// # Errors
    /// As [`Generated::read`].
    pub async fn read_all(stream: &mut Streaming<GenerateResponse>) -> Result<Vec<Self>, Status> {
        let mut outputs: BTreeMap<u32, Vec<GenerateResponse>> = BTreeMap::new();
        while let Some(message) = stream.message().await? {
            outputs.entry(message.index).or_default().push(message);
        }
        outputs.into_values().map(Self::of).collect()
    }

    /// The output that these messages are of.
    fn of(messages: Vec<GenerateResponse>) -> Result<Self, Status> {
        let broken = |what: &str| Status::internal(format!("the stream breaks a promise: {what}"));
        let last = messages.last().ok_or_else(|| broken("it has no message"))?;
        let (Some(usage), Some(timings)) = (last.usage, last.timings) else {
            return Err(broken("the last message has no usage or timings"));
        };
        if last.finish_reason.is_none() {
            return Err(broken("the last message has no finish reason"));
        }
        let (finish_reason, request_id) = (last.finish_reason(), last.request_id.clone());
        let (_, earlier) = messages.split_last().ok_or_else(|| broken("it has no message"))?;
        if earlier.iter().any(|message| message.finish_reason.is_some() || message.usage.is_some()) {
            return Err(broken("it goes on after its finish reason or usage"));
        }
        if messages.iter().any(|message| message.request_id != request_id) {
            return Err(broken("its messages have several request IDs"));
        }
        let index = last.index;
        if messages.iter().any(|message| message.index != index) {
            return Err(broken("its messages are of several outputs"));
        }
        if messages.iter().skip(1).any(|message| message.echo.is_some()) {
            return Err(broken("the prompt comes after the first message"));
        }
        let output = messages.iter().position(|message| !message.token_ids.is_empty());
        let after_output = output.map(|first| &messages[first + 1..]).unwrap_or_default();
        if after_output.iter().any(|message| !message.prompt_logprobs.is_empty()) {
            return Err(broken("log-probabilities of the prompt come after output"));
        }
        let token_ids: Vec<u32> = messages.iter().flat_map(|message| message.token_ids.clone()).collect();
        if usage.output_tokens as usize != token_ids.len() {
            return Err(broken("usage counts other output tokens than were sent"));
        }
        Ok(Self {
            request_id,
            index,
            echo: messages.first().and_then(|message| message.echo.clone()),
            deltas: messages.iter().map(|message| message.text.clone()).collect(),
            token_ids,
            prompt_logprobs: messages.iter().map(|message| message.prompt_logprobs.clone()).collect(),
            logprobs: messages.into_iter().flat_map(|message| message.logprobs).collect(),
            finish_reason,
            usage,
            timings,
        })
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        self.deltas.concat()
    }
}
