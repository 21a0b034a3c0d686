//! A Generate call, from its message to a request in the scheduler.

use std::sync::Arc;
use std::time::SystemTime;

use roundhouse_guided::TokenGuide;
use roundhouse_proto::executor::{GenerateRequest, generate_request};
use roundhouse_rpc::{Failure, reason};
use roundhouse_text::{ChatMessage, Content, Continuation, Detokenizer, RenderOptions, conversation_tokens};
use tokio::sync::mpsc;
use tonic::Code;
use uuid::Uuid;

use super::caller::Caller;
use super::options::{Options, speculative};
use super::{ExecutorService, convert, failure};
use crate::engine::LoadedEngine;
use crate::images::{EncodedImage, SequenceImage, expand, first_difference};
use crate::prefix_cache::{BlockKey, SharedPrefix};
use crate::scheduler::{Cancellation, Delta, Echo, GenerateError, PromptLogprobs, Request};
use crate::session::{Lease, Session, SessionState, Turn};

/// Deltas on their way to a client: how far a generation runs ahead of a client that reads slowly.
const DELTA_BUFFER: usize = 64;
/// The longest request ID in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Priorities are from its negative to it: each one is worth a wait, and so nothing waits longer than all of them.
const MAX_PRIORITY: i32 = 10;
/// Tokens of the prompt that the detokenizer sees before the first output: enough for the longest character and for a
/// word's leading space.
const DETOKENIZER_CONTEXT: usize = 8;

/// Generations that have begun.
pub(super) struct Started {
    pub(super) request_id: String,
    /// What each output of the request tells, in the order of their indices.
    pub(super) outputs: Vec<mpsc::Receiver<Result<Delta, GenerateError>>>,
}

/// The tokens of a call's input, and how they go on from a history.
#[derive(Clone)]
struct Prompt {
    /// Tokens of the history that stay.
    keep: usize,
    /// What comes after them.
    new_tokens: Vec<u32>,
    /// The images of the whole sequence.
    images: Vec<SequenceImage>,
    /// The messages of this turn, where it came as messages.
    messages: Vec<ChatMessage>,
}

impl Prompt {
    /// Takes only the last `tokens` new tokens.
    fn truncate(&mut self, tokens: Option<u32>) -> Result<(), Failure> {
        match tokens.map(|tokens| tokens as usize) {
            None => Ok(()),
            Some(0) => {
                let message = "truncate_prompt_tokens is 0: expected at least 1";
                Err(Failure::invalid_field("truncate_prompt_tokens", message))
            }
            Some(tokens) => {
                self.new_tokens.drain(..self.new_tokens.len().saturating_sub(tokens));
                Ok(())
            }
        }
    }
}

/// What a call goes on from.
#[derive(Clone, Copy, Default)]
struct History<'a> {
    tokens: &'a [u32],
    images: &'a [SequenceImage],
    messages: &'a [ChatMessage],
}

impl<'a> History<'a> {
    fn of(state: &'a SessionState) -> Self {
        Self { tokens: &state.tokens, images: state.images(), messages: &state.messages }
    }
}

/// A prompt as its client gets it back.
fn echo(engine: &LoadedEngine, prompt: &Prompt, options: &Options) -> Result<Echo, Failure> {
    let tokens = prompt.new_tokens.clone();
    let text = engine.tokenizer().decode(&tokens, options.skip_special_tokens);
    Ok(Echo { text: text.map_err(|error| failure::of_text(&error))?, tokens })
}

impl ExecutorService {
    /// Checks a call and hands it to its engine's scheduler. Everything that the caller can have got wrong is found
    /// here, before the stream begins.
    pub(super) fn start(
        &self,
        message: GenerateRequest,
        images: &[EncodedImage],
        caller: Caller,
        session: Option<Arc<Session>>,
    ) -> Result<Started, Failure> {
        let engine = self.engine_of(message.engine.as_deref(), session.as_deref())?;
        let mut options =
            Options::read(&engine, message.sampling, message.stopping, message.response, message.guided)?;
        options.speculative = speculative(&engine, message.speculative)?;
        if options.outputs > 1 && session.is_some() {
            let message = "n is more than 1: a session goes on with one output";
            return Err(Failure::invalid_field("sampling.n", message));
        }
        let request_id = request_id(message.request_id)?;
        let priority = priority(message.priority)?;
        let cancellation = Cancellation::default();
        let claim = self
            .requests
            .claim(&caller.tenant, &request_id, cancellation.clone(), message.session_id)
            .ok_or_else(|| in_use(&request_id))?;
        let claim = Arc::new(claim);

        let leased = session.as_ref().map(Session::lease).transpose();
        let mut lease = leased.map_err(|error| failure::of_session(&error))?;
        let state = lease.as_mut().and_then(|lease| lease.state());
        let history = state.map_or(History::default(), |state| History::of(state));
        let input = message.input.ok_or_else(|| {
            Failure::invalid_field("input", "the request has none of prompt, token_ids and messages")
        })?;
        // A session's templates print the same time wherever and whenever it goes on.
        let now = session.as_ref().map_or(engine.template_time(), |session| session.created());
        let mut prompt = read_input(&engine, input, images, history, now)?;
        prompt.truncate(message.truncate_prompt_tokens)?;
        let length = prompt.keep + prompt.new_tokens.len();
        // The next token needs a place too, where there is one.
        let needed = length + usize::from(options.max_tokens != Some(0));
        let mut leases = Vec::with_capacity(options.outputs as usize);
        leases.extend(lease);
        while leases.len() < options.outputs as usize {
            leases.push(self.ephemeral(&engine, length, options.max_tokens)?);
        }
        let mut outputs = Vec::with_capacity(leases.len());
        let mut requests = Vec::with_capacity(leases.len());
        for (index, mut lease) in (0..).zip(leases) {
            let state = lease
                .state()
                .ok_or_else(|| Failure::new(Code::Internal, reason::INTERNAL, "the lease is empty"))?;
            check_length(length, needed, state.cache.capacity())?;
            // The prompt is echoed and scored once.
            let is_first = index == 0;
            let scored = options.prompt_logprobs.filter(|_| is_first);
            let echo = (options.echo && is_first).then(|| echo(&engine, &prompt, &options)).transpose()?;
            let prompt_logprobs = scored.map(|top| PromptLogprobs { first: prompt.keep, top });
            let most_cached = most_cached(&prompt, scored.is_some());
            let Prompt { keep, new_tokens, images, messages } = prompt.clone();
            state.begin_turn(Turn { keep, new_tokens, images, messages, cached: most_cached });
            if !message.bypass_prefix_cache.unwrap_or(false) {
                let limit = scored.is_some().then_some(most_cached);
                let root = root(&engine, &caller, message.cache_salt.as_deref());
                let images = state.images().to_vec();
                let shared = SharedPrefix::new(Arc::clone(&self.prefixes), root, images, limit);
                shared.prefetch(&state.tokens);
                state.shared = Some(shared);
            }
            let mut sampler = options.sampler(index)?;
            sampler.push_prompt(&state.tokens);
            let mut detokenizer = Detokenizer::new(options.skip_special_tokens);
            for &token in &state.tokens[length.saturating_sub(DETOKENIZER_CONTEXT)..] {
                detokenizer.push(engine.tokenizer(), token).map_err(|error| failure::of_text(&error))?;
            }
            let guide = options.guide.as_mut().map(TokenGuide::fork).transpose();
            let (sender, deltas) = mpsc::channel(DELTA_BUFFER);
            if echo.is_some() {
                // The channel is empty.
                drop(sender.try_send(Ok(Delta { echo, ..Delta::default() })));
            }
            let request = Request {
                id: request_id.clone(),
                tenant: caller.tenant.clone(),
                priority,
                // A prompt that is only scored has no answer that would join the conversation.
                is_chat: !state.messages.is_empty() && options.max_tokens != Some(0),
                lease,
                sampler,
                logprobs: options.logprobs,
                prompt_logprobs,
                detokenizer,
                stop_strings: options.stop_strings.clone(),
                guide: guide.map_err(|error| failure::of_guide(&error))?,
                speculative: options.speculative,
                limits: options.limits.clone(),
                deadline: caller.deadline,
                cancellation: cancellation.clone(),
                prompt_blocks: None,
                forks: Vec::new(),
                guard: Box::new(Arc::clone(&claim)),
                deltas: sender,
            };
            requests.push(request);
            outputs.push(deltas);
        }
        let mut requests = requests.into_iter();
        if let Some(first) = requests.next() {
            let request = Request { forks: requests.collect(), ..first };
            engine.scheduler().submit(request).map_err(|error| failure::of_submit(&error))?;
        }
        Ok(Started { request_id, outputs })
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

/// With whom the generations of a caller share.
fn root(engine: &LoadedEngine, caller: &Caller, salt: Option<&str>) -> BlockKey {
    BlockKey::root(&engine.manifest().key, &caller.tenant, salt.unwrap_or_default())
}

fn read_input(
    engine: &LoadedEngine,
    input: generate_request::Input,
    images: &[EncodedImage],
    history: History<'_>,
    now: SystemTime,
) -> Result<Prompt, Failure> {
    let append = |new_tokens: Vec<u32>, field: &str| {
        if new_tokens.is_empty() && history.tokens.is_empty() {
            return Err(Failure::invalid_field(field, format!("{field} has no tokens")));
        }
        let (keep, images) = (history.tokens.len(), history.images.to_vec());
        Ok(Prompt { keep, new_tokens, images, messages: Vec::new() })
    };
    match input {
        generate_request::Input::Prompt(text) => {
            let tokens = engine.tokenizer().encode(&text, history.tokens.is_empty());
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
            let mut all = history.messages.to_vec();
            all.extend(convert::messages(messages)?);
            let render = || conversation_tokens(engine.tokenizer(), engine.template()?, &all, &options);
            let tokens = render().map_err(|error| failure::of_text(&error))?;
            let (tokens, placed) = place_images(engine, tokens, images, history)?;
            let most = first_difference(history.images, &placed);
            let continuation = Continuation::of(history.tokens, tokens, most);
            let continuation = continuation.map_err(|error| failure::of_text(&error))?;
            Ok(Prompt {
                keep: continuation.keep_prefix_len,
                new_tokens: continuation.new_tokens,
                images: placed,
                messages: all,
            })
        }
    }
}

/// A rendered conversation with the tokens of its images: those of its earlier messages, which its history has, and the new
/// ones.
fn place_images(
    engine: &LoadedEngine,
    tokens: Vec<u32>,
    new: &[EncodedImage],
    history: History<'_>,
) -> Result<(Vec<u32>, Vec<SequenceImage>), Failure> {
    let Ok(input) = engine.images() else { return Ok((tokens, Vec::new())) };
    let earlier = history.messages.iter().map(|message| Content::images(&message.content)).sum();
    let earlier = history.images.iter().take(earlier).map(|placed| placed.image.clone());
    let images: Vec<_> = earlier.chain(new.iter().cloned()).collect();
    expand(&tokens, input.token(), &images).map_err(|error| failure::of_placeholders(&error))
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
