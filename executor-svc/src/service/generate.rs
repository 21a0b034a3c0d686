//! A Generate call, from its message to a request in the scheduler.

use std::sync::Arc;
use std::time::SystemTime;

use roundhouse_proto::executor::{GenerateRequest, ResponseOptions, SamplingOptions, generate_request};
use roundhouse_rpc::{Failure, reason};
use roundhouse_sampling::{MAX_TOP_LOGPROBS, Sampler, SamplingParams};
use roundhouse_text::{ChatMessage, Detokenizer, RenderOptions, StopMatcher, continue_conversation};
use tokio::sync::mpsc;
use tonic::Code;
use uuid::Uuid;

use super::caller::Caller;
use super::{ExecutorService, convert, failure};
use crate::engine::LoadedEngine;
use crate::prefix_cache::{BlockKey, SharedPrefix};
use crate::scheduler::{Cancellation, Delta, GenerateError, Limits, PromptLogprobs, Request};
use crate::session::{Lease, Session};

/// Deltas on their way to a client: how far a generation runs ahead of a client that reads slowly.
const DELTA_BUFFER: usize = 64;
/// The longest request ID in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Priorities are from its negative to it: each one is worth a wait, and so nothing waits longer than all of them.
const MAX_PRIORITY: i32 = 10;
/// Tokens of the prompt that the detokenizer sees before the first output: enough for the longest character and for a
/// word's leading space.
const DETOKENIZER_CONTEXT: usize = 8;

/// A generation that has begun.
pub(super) struct Started {
    pub(super) request_id: String,
    pub(super) deltas: mpsc::Receiver<Result<Delta, GenerateError>>,
}

/// The tokens of a call's input, and how they go on from a history.
struct Prompt {
    /// Tokens of the history that stay.
    keep: usize,
    /// What comes after them.
    new_tokens: Vec<u32>,
    /// The messages of this turn, where it came as messages.
    messages: Vec<ChatMessage>,
}

impl ExecutorService {
    /// Checks a call and hands it to its engine's scheduler. Everything that the caller can have got wrong is found
    /// here, before the stream begins.
    pub(super) fn start(
        &self,
        message: GenerateRequest,
        caller: Caller,
        session: Option<Arc<Session>>,
    ) -> Result<Started, Failure> {
        let engine = self.engine_of(message.engine.as_deref(), session.as_deref())?;
        let sampling = sampling_params(message.sampling.as_ref());
        let mut sampler = Sampler::new(sampling).map_err(|error| failure::of_sampling(&error))?;
        let response = message.response.unwrap_or_default();
        let logprobs = top_logprobs("response.logprobs", response.logprobs)?;
        let prompt_logprobs = prompt_logprobs(&response, &engine)?;
        let stopping = message.stopping.unwrap_or_default();
        let stop_strings = StopMatcher::new(&stopping.stop).map_err(|error| failure::of_text(&error))?;
        let request_id = request_id(message.request_id)?;
        let priority = priority(message.priority)?;
        let cancellation = Cancellation::default();
        let claim = self
            .requests
            .claim(&caller.tenant, &request_id, cancellation.clone(), message.session_id)
            .ok_or_else(|| in_use(&request_id))?;

        let leased = session.as_ref().map(Session::lease).transpose();
        let mut lease = leased.map_err(|error| failure::of_session(&error))?;
        let empty = (&[][..], &[][..]);
        let (history, conversation) = lease
            .as_mut()
            .and_then(|lease| lease.state())
            .map_or(empty, |state| (&state.tokens[..], &state.messages[..]));
        let input = message.input.ok_or_else(|| {
            Failure::invalid_field("input", "the request has none of prompt, token_ids and messages")
        })?;
        // A session's templates print the same time wherever and whenever it goes on.
        let now = session.as_ref().map_or(engine.template_time(), |session| session.created());
        let prompt = read_input(&engine, input, history, conversation, now)?;
        let length = prompt.keep + prompt.new_tokens.len();
        let max_tokens = stopping.max_tokens.map(|tokens| tokens as usize);
        if max_tokens == Some(0) && prompt_logprobs.is_none() {
            return Err(Failure::invalid_field(
                "stopping.max_tokens",
                "max_tokens is 0: expected at least 1 without prompt_logprobs",
            ));
        }
        let prompt_logprobs = prompt_logprobs.map(|top| PromptLogprobs { first: prompt.keep, top });
        // The next token needs a place too, where there is one.
        let needed = length + usize::from(max_tokens != Some(0));
        let mut lease = match lease {
            Some(lease) => lease,
            None => self.ephemeral(&engine, length, max_tokens)?,
        };
        let state = lease
            .state()
            .ok_or_else(|| Failure::new(Code::Internal, reason::INTERNAL, "the lease is empty"))?;
        check_length(length, needed, state.cache.capacity())?;
        let most_cached = most_cached(&prompt, prompt_logprobs.is_some());
        state.begin_turn(prompt.keep, prompt.new_tokens, prompt.messages, most_cached);
        state.shared = None;
        if !message.bypass_prefix_cache.unwrap_or(false) {
            let limit = prompt_logprobs.is_some().then_some(most_cached);
            let shared = self.shared_prefix(&engine, &caller, message.cache_salt.as_deref(), limit);
            shared.prefetch(&state.tokens);
            state.shared = Some(shared);
        }
        sampler.push_prompt(&state.tokens);
        let mut detokenizer = Detokenizer::new(response.skip_special_tokens.unwrap_or(true));
        for &token in &state.tokens[length.saturating_sub(DETOKENIZER_CONTEXT)..] {
            detokenizer.push(engine.tokenizer(), token).map_err(|error| failure::of_text(&error))?;
        }

        let (sender, deltas) = mpsc::channel(DELTA_BUFFER);
        let mut stop_tokens = stopping.stop_token_ids;
        if !stopping.ignore_eos.unwrap_or(false) {
            stop_tokens.extend(&engine.manifest().info.eos_token_ids);
        }
        // A prompt that is only scored has no answer that would join the conversation.
        let is_chat = !state.messages.is_empty() && max_tokens != Some(0);
        let request = Request {
            id: request_id.clone(),
            tenant: caller.tenant,
            priority,
            is_chat,
            lease,
            sampler,
            logprobs,
            prompt_logprobs,
            detokenizer,
            stop_strings,
            limits: Limits {
                max_tokens: max_tokens.unwrap_or(usize::MAX),
                min_tokens: stopping.min_tokens.unwrap_or(0) as usize,
                stop_tokens,
            },
            deadline: caller.deadline,
            cancellation,
            guard: Box::new(claim),
            deltas: sender,
        };
        engine.scheduler().submit(request).map_err(|error| failure::of_submit(&error))?;
        Ok(Started { request_id, deltas })
    }

    /// What a generation of a caller shares, and with whom.
    fn shared_prefix(
        &self,
        engine: &LoadedEngine,
        caller: &Caller,
        salt: Option<&str>,
        limit: Option<usize>,
    ) -> SharedPrefix {
        let root = BlockKey::root(&engine.manifest().key, &caller.tenant, salt.unwrap_or_default());
        SharedPrefix::new(Arc::clone(&self.prefixes), root, limit)
    }

    /// The engine that a call names, which must be its session's.
    fn engine_of(&self, name: Option<&str>, session: Option<&Session>) -> Result<Arc<LoadedEngine>, Failure> {
        let Some(session) = session else {
            return self.engines.find(name).map_err(|error| failure::of_find(&error));
        };
        let of_session = self.engines.find(Some(session.engine().as_str()));
        let engine = of_session.map_err(|error| failure::of_find(&error))?;
        match name {
            Some(name) if name != engine.manifest().key.as_str() && name != engine.manifest().model => {
                let message =
                    format!("session {:?} is of engine {}, not {name:?}", session.id(), session.engine());
                Err(Failure::invalid_field("engine", message))
            }
            _ => Ok(engine),
        }
    }

    /// A state for one request alone, no longer than it can need.
    fn ephemeral(&self, engine: &LoadedEngine, prompt: usize, new: Option<usize>) -> Result<Lease, Failure> {
        check_length(prompt, prompt + usize::from(new != Some(0)), engine.max_seq_len())?;
        let limit = engine.max_seq_len();
        // Who does not say how much it wants gets what there is.
        let unbounded = || engine.kv_cost().tokens_in(self.memory.total(), limit).max(prompt + 1);
        let wanted = new.map_or_else(unbounded, |new| prompt.saturating_add(new));
        let state = engine.new_state(wanted.min(limit), &self.memory);
        Ok(Lease::ephemeral(state.map_err(|error| failure::of_memory(&error))?))
    }
}

fn read_input(
    engine: &LoadedEngine,
    input: generate_request::Input,
    history: &[u32],
    conversation: &[ChatMessage],
    now: SystemTime,
) -> Result<Prompt, Failure> {
    let append = |new_tokens: Vec<u32>, field: &str| {
        if new_tokens.is_empty() && history.is_empty() {
            return Err(Failure::invalid_field(field, format!("{field} has no tokens")));
        }
        Ok(Prompt { keep: history.len(), new_tokens, messages: Vec::new() })
    };
    match input {
        generate_request::Input::Prompt(text) => {
            let tokens = engine.tokenizer().encode(&text, history.is_empty());
            append(tokens.map_err(|error| failure::of_text(&error))?, "prompt")
        }
        generate_request::Input::TokenIds(tokens) => {
            let vocab_size = engine.vocab_size();
            if let Some(token) = tokens.ids.iter().find(|&&token| token as usize >= vocab_size) {
                let message = format!("token {token} is not in the vocabulary of {vocab_size}");
                return Err(Failure::invalid_field("token_ids", message));
            }
            append(tokens.ids, "token_ids")
        }
        generate_request::Input::Messages(messages) => {
            let options =
                RenderOptions { add_generation_prompt: messages.add_generation_prompt.unwrap_or(true), now };
            let mut all = conversation.to_vec();
            all.extend(convert::messages(messages));
            let template = engine.template().map_err(|error| failure::of_text(&error))?;
            let continuation = continue_conversation(engine.tokenizer(), template, history, &all, &options)
                .map_err(|error| failure::of_text(&error))?;
            Ok(Prompt {
                keep: continuation.keep_prefix_len,
                new_tokens: continuation.new_tokens,
                messages: all,
            })
        }
    }
}

/// The most tokens that a prompt may find in the cache.
fn most_cached(prompt: &Prompt, is_scored: bool) -> usize {
    // The last token of the history is computed again where it predicts the first one to be scored. At least one token
    // must be computed, or there are no logits to choose the next one from. A cache that can keep nothing says so by its
    // length: the scheduler computes every token of the history that is not in the cache.
    let kept = prompt.keep.saturating_sub(usize::from(is_scored));
    kept.min((prompt.keep + prompt.new_tokens.len()).saturating_sub(1))
}

/// Checks that a prompt of `length` tokens, which `needed` places are needed for, fits.
fn check_length(length: usize, needed: usize, capacity: usize) -> Result<(), Failure> {
    if needed <= capacity {
        return Ok(());
    }
    let and = if needed > length { " and one new one" } else { "" };
    let message = format!("{length} tokens{and} do not fit the {capacity} tokens of the cache");
    Err(Failure::new(Code::InvalidArgument, reason::PROMPT_TOO_LONG, message)
        .with("prompt_tokens", length)
        .with("max_seq_len", capacity))
}

fn request_id(given: Option<String>) -> Result<String, Failure> {
    match given {
        None => Ok(Uuid::new_v4().simple().to_string()),
        Some(id) if id.is_empty() || id.len() > MAX_REQUEST_ID_BYTES => Err(Failure::invalid_field(
            "request_id",
            format!("request_id has {} bytes: expected 1 to {MAX_REQUEST_ID_BYTES}", id.len()),
        )),
        Some(id) => Ok(id),
    }
}

fn priority(given: Option<i32>) -> Result<i32, Failure> {
    match given.unwrap_or_default() {
        priority if priority.abs_diff(0) <= MAX_PRIORITY.abs_diff(0) => Ok(priority),
        priority => {
            let message = format!("priority is {priority}: expected {} to {MAX_PRIORITY}", -MAX_PRIORITY);
            Err(Failure::invalid_field("priority", message))
        }
    }
}

fn in_use(id: &str) -> Failure {
    let message = format!("another request {id:?} is running");
    Failure::new(Code::AlreadyExists, reason::REQUEST_ID_IN_USE, message).at_field("request_id")
}

fn top_logprobs(field: &str, count: Option<u32>) -> Result<Option<usize>, Failure> {
    match count {
        Some(count) if count as usize > MAX_TOP_LOGPROBS => {
            let name = field.rsplit('.').next().unwrap_or(field);
            let message = format!("{name} is {count}: expected at most {MAX_TOP_LOGPROBS}");
            Err(Failure::invalid_field(field, message))
        }
        count => Ok(count.map(|count| count as usize)),
    }
}

fn prompt_logprobs(options: &ResponseOptions, engine: &LoadedEngine) -> Result<Option<usize>, Failure> {
    const FIELD: &str = "response.prompt_logprobs";
    let count = top_logprobs(FIELD, options.prompt_logprobs)?;
    if count.is_some() && !engine.manifest().options.all_logits {
        let message = "prompt_logprobs needs an engine compiled with all_logits, which this one is not";
        return Err(Failure::invalid_field(FIELD, message));
    }
    Ok(count)
}

fn sampling_params(options: Option<&SamplingOptions>) -> SamplingParams {
    let options = options.copied().unwrap_or_default();
    SamplingParams {
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        repetition_penalty: options.repetition_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        seed: options.seed,
    }
}
