//! Between the messages of the interface and the types of the executor.

use std::time::Duration;

use roundhouse_proto::executor as proto;
use roundhouse_rpc::Failure;
use roundhouse_sampling::{Sampled, TokenScore};
use roundhouse_text::{ChatMessage, Content, ContentPart};

use crate::backends::Found;
use crate::engine::LoadedEngine;
use crate::scheduler::{Delta, Finish, FinishReason};
use crate::session::SessionInfo;

pub(super) fn loaded_engine(engine: &LoadedEngine) -> proto::LoadedEngine {
    let manifest = engine.manifest();
    let plan = engine.memory_plan();
    proto::LoadedEngine {
        engine_key: manifest.key.to_string(),
        model: manifest.model.clone(),
        backend: manifest.options.backend.to_string(),
        precision: manifest.options.precision.to_string(),
        cache: manifest.options.cache.to_string(),
        max_seq_len: manifest.options.max_seq_len,
        max_batch_size: manifest.options.max_batch_size,
        weight_bytes: plan.weight_bytes,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        workspace_bytes: plan.workspace_bytes,
        vocab_size: count(engine.vocab_size()),
        eos_token_ids: manifest.info.eos_token_ids.clone(),
        kv_rings: plan
            .kv_rings
            .iter()
            .map(|ring| proto::KvRing { tokens: ring.tokens, bytes_per_token: ring.bytes_per_token })
            .collect(),
        quantization: manifest.options.quantization.to_string(),
    }
}

/// A backend, unless it cannot run on this machine.
pub(super) fn runtime(found: &Found) -> Option<proto::Runtime> {
    let capabilities = found.runs_on.as_ref().ok()?;
    Some(proto::Runtime { backend: found.backend.to_string(), compute_capabilities: capabilities.names() })
}

pub(super) fn session(info: &SessionInfo) -> proto::Session {
    proto::Session {
        id: info.id.clone(),
        engine_key: info.engine.to_string(),
        num_tokens: count(info.num_tokens),
        max_seq_len: count(info.capacity),
        kv_bytes: info.kv_bytes,
        busy: info.busy,
        create_time: Some(info.created.into()),
        expire_time: Some(info.expires.into()),
    }
}

pub(super) fn messages(messages: proto::ChatMessages) -> Result<Vec<ChatMessage>, Failure> {
    let messages = messages.messages.into_iter().enumerate();
    messages
        .map(|(index, message)| {
            Ok(ChatMessage { content: content(index, message.content, message.parts)?, role: message.role })
        })
        .collect()
}

/// What a message says. Parts without an image among them are one text, which every template takes.
fn content(index: usize, text: String, parts: Vec<proto::ContentPart>) -> Result<Content, Failure> {
    let field = format!("messages.messages[{index}]");
    if parts.is_empty() {
        return Ok(Content::Text(text));
    }
    if !text.is_empty() {
        return Err(Failure::invalid_field(
            field,
            "the message has both content and parts: expected one of them",
        ));
    }
    let part = |(place, part): (usize, proto::ContentPart)| match part.part {
        Some(proto::content_part::Part::Text(text)) => Ok(ContentPart::Text { text }),
        Some(proto::content_part::Part::Image(_)) => Ok(ContentPart::Image),
        None => {
            let message = "the part is neither text nor an image";
            Err(Failure::invalid_field(format!("{field}.parts[{place}]"), message))
        }
    };
    let content = Content::Parts(parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?);
    Ok(content.simplified())
}

pub(super) fn response(request_id: &str, index: u32, delta: Delta) -> proto::GenerateResponse {
    proto::GenerateResponse {
        request_id: request_id.to_owned(),
        text: delta.text,
        token_ids: delta.tokens,
        logprobs: delta.logprobs.iter().map(token_logprobs).collect(),
        finish_reason: delta.finish.as_ref().map(|finish| finish_reason(finish.reason).into()),
        usage: delta.finish.as_ref().map(usage),
        timings: delta.finish.as_ref().map(timings),
        prompt_logprobs: delta.prompt_logprobs.iter().map(token_score).collect(),
        index,
        echo: delta.echo.map(|echo| proto::Echo { text: echo.text, token_ids: echo.tokens }),
    }
}

fn token_logprobs(sampled: &Sampled) -> proto::TokenLogprobs {
    proto::TokenLogprobs {
        logprob: sampled.logprob.unwrap_or_default(),
        top: top_logprobs(&sampled.top_logprobs),
    }
}

fn token_score(score: &TokenScore) -> proto::TokenLogprobs {
    proto::TokenLogprobs { logprob: score.logprob, top: top_logprobs(&score.top_logprobs) }
}

fn top_logprobs(top: &[(u32, f32)]) -> Vec<proto::TokenLogprob> {
    top.iter().map(|&(token_id, logprob)| proto::TokenLogprob { token_id, logprob }).collect()
}

const fn finish_reason(reason: FinishReason) -> proto::FinishReason {
    match reason {
        FinishReason::StopToken => proto::FinishReason::StopToken,
        FinishReason::StopString => proto::FinishReason::StopString,
        FinishReason::MaxTokens => proto::FinishReason::MaxTokens,
        FinishReason::CacheFull => proto::FinishReason::CacheFull,
        FinishReason::Cancelled => proto::FinishReason::Cancelled,
        FinishReason::GrammarComplete => proto::FinishReason::GrammarComplete,
    }
}

fn usage(finish: &Finish) -> proto::Usage {
    proto::Usage {
        prompt_tokens: count(finish.prompt_tokens),
        cached_tokens: count(finish.cached_tokens),
        output_tokens: count(finish.output_tokens),
        draft_tokens: count(finish.draft_tokens),
        accepted_draft_tokens: count(finish.accepted_draft_tokens),
    }
}

fn timings(finish: &Finish) -> proto::Timings {
    proto::Timings {
        queue_us: micros(finish.queue),
        prefill_us: micros(finish.prefill),
        decode_us: micros(finish.decode),
    }
}

/// A number of tokens: bounded by the cache, far below the limit of its field.
pub(super) fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
