//! Requests that many tests make.

use std::path::Path;

use anyhow::Result;
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{self, CompileEngineRequest, CompileOptions};
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, GenerateRequest, StoppingOptions, TokenIds, generate_request,
};

use crate::golden::{self, Message};

/// Tokens that a sequence of an in-place SmolLM2 engine holds: the longest golden prompt, and room to go on for longer
/// than a test waits.
pub const SMOLLM2_MAX_SEQ_LEN: u32 = 2048;

/// The same of the other caches, which copy a whole cache in each step or compute the whole sequence: no longer than the
/// longest golden prompt and its output.
const SMOLLM2_MAX_SEQ_LEN_COPIED: u32 = 1280;

/// Options of a CPU engine.
#[must_use]
pub fn compile_options(precision: Precision, cache: CacheKind) -> CompileOptions {
    CompileOptions {
        precision: Some(precision_message(precision).into()),
        cache: Some(cache_message(cache).into()),
        backend: Some(compiler::Backend::Cpu.into()),
        ..CompileOptions::default()
    }
}

/// A precision as requests have it.
#[must_use]
pub fn precision_message(precision: Precision) -> compiler::Precision {
    match precision {
        Precision::Fp32 => compiler::Precision::Fp32,
        Precision::Fp16 => compiler::Precision::Fp16,
        Precision::Bf16 => compiler::Precision::Bf16,
    }
}

pub(crate) fn cache_message(cache: CacheKind) -> compiler::CacheKind {
    match cache {
        CacheKind::None => compiler::CacheKind::None,
        CacheKind::StaticV1 => compiler::CacheKind::StaticV1,
        CacheKind::StaticV2 => compiler::CacheKind::StaticV2,
        CacheKind::InPlace => compiler::CacheKind::InPlace,
    }
}

/// A compilation of a checkpoint on this machine.
#[must_use]
pub fn compile_request(checkpoint: &Path, options: CompileOptions) -> CompileEngineRequest {
    CompileEngineRequest {
        model: checkpoint.display().to_string(),
        options: Some(options),
        ..CompileEngineRequest::default()
    }
}

/// A compilation of SmolLM2-135M-Instruct.
///
/// # Errors
/// When the checkpoint has not been fetched.
pub fn smollm2_request(precision: Precision, cache: CacheKind) -> Result<CompileEngineRequest> {
    let max_seq_len = match cache {
        CacheKind::InPlace => SMOLLM2_MAX_SEQ_LEN,
        _ => SMOLLM2_MAX_SEQ_LEN_COPIED,
    };
    let options = CompileOptions { max_seq_len: Some(max_seq_len), ..compile_options(precision, cache) };
    Ok(compile_request(&golden::smollm2_checkpoint()?, options))
}

/// A compilation of a tiny Llama of the golden files.
#[must_use]
pub fn tiny_llama_request(name: &str, precision: Precision, cache: CacheKind) -> CompileEngineRequest {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    compile_request(&checkpoint, compile_options(precision, cache))
}

/// Greedy generation of exactly `max_tokens` tokens from a prompt of tokens, going on after the end of the sequence.
#[must_use]
pub fn tokens(token_ids: &[u32], max_tokens: u32) -> GenerateRequest {
    exactly(generate_request::Input::TokenIds(TokenIds { ids: token_ids.to_vec() }), max_tokens)
}

/// As [`tokens`], from text.
#[must_use]
pub fn prompt(text: &str, max_tokens: u32) -> GenerateRequest {
    exactly(generate_request::Input::Prompt(text.to_owned()), max_tokens)
}

/// As [`tokens`], from messages.
#[must_use]
pub fn chat(messages: &[Message], max_tokens: u32) -> GenerateRequest {
    let messages = messages
        .iter()
        .map(|message| ChatMessage {
            role: message.role.clone(),
            content: message.content.clone(),
            ..ChatMessage::default()
        })
        .collect();
    exactly(
        generate_request::Input::Messages(ChatMessages { messages, add_generation_prompt: None }),
        max_tokens,
    )
}

fn exactly(input: generate_request::Input, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(input),
        stopping: Some(StoppingOptions {
            max_tokens: Some(max_tokens),
            ignore_eos: Some(true),
            ..StoppingOptions::default()
        }),
        ..GenerateRequest::default()
    }
}
