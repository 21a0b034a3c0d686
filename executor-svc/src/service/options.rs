//! The options of a Generate call, checked and in the executor's own types.

use std::collections::HashMap;

use roundhouse_engine::CacheKind;
use roundhouse_guided::{Guide, TokenGuide};
use roundhouse_proto::executor::generate_request::Guided;
use roundhouse_proto::executor::speculative::Method;
use roundhouse_proto::executor::{ResponseOptions, SamplingOptions, Speculative, StoppingOptions};
use roundhouse_rpc::Failure;
use roundhouse_sampling::{Constraints, MAX_BAD_WORDS, MAX_TOP_LOGPROBS, Sampler, SamplingParams};
use roundhouse_text::{StopMatcher, Tokenizer};

use super::failure;
use crate::engine::LoadedEngine;
use crate::scheduler::{Limits, PromptLookup};

/// Outputs of one request.
const MAX_OUTPUTS: u32 = 16;
/// Texts that an output is not to contain; each is two token sequences.
const MAX_BAD_WORD_TEXTS: usize = MAX_BAD_WORDS / 2;
/// Bytes of one of them.
const MAX_BAD_WORD_BYTES: usize = 256;

/// Tokens that are guessed at a time, and those that are looked for.
const MAX_DRAFT_TOKENS: u32 = 16;
const DEFAULT_NGRAM: u32 = 3;
const DEFAULT_DRAFT_TOKENS: u32 = 5;

/// What a call asks for beside its input.
pub(super) struct Options {
    params: SamplingParams,
    constraints: Constraints,
    /// How many outputs.
    pub(super) outputs: u32,
    /// Log-probabilities of so many tokens beside each output token's.
    pub(super) logprobs: Option<usize>,
    /// The same of the prompt's tokens.
    pub(super) prompt_logprobs: Option<usize>,
    /// Whether special tokens are left out of the text.
    pub(super) skip_special_tokens: bool,
    /// Whether the client wants its prompt back.
    pub(super) echo: bool,
    /// Finds stop strings.
    pub(super) stop_strings: StopMatcher,
    /// The most new tokens, if it says.
    pub(super) max_tokens: Option<usize>,
    /// When to stop.
    pub(super) limits: Limits,
    /// How tokens are guessed.
    pub(super) speculative: Option<PromptLookup>,
    /// What the output must be.
    pub(super) guide: Option<TokenGuide>,
}

impl Options {
    /// Checks the options of a call to an engine.
    pub(super) fn read(
        engine: &LoadedEngine,
        sampling: Option<SamplingOptions>,
        stopping: Option<StoppingOptions>,
        response: Option<ResponseOptions>,
        guided: Option<Guided>,
    ) -> Result<Self, Failure> {
        let sampling = sampling.unwrap_or_default();
        let response = response.unwrap_or_default();
        let stopping = stopping.unwrap_or_default();
        let params = sampling_params(&sampling);
        params.validate().map_err(|error| failure::of_sampling(&error))?;
        let constraints = constraints(engine, sampling.logit_bias, &sampling.bad_words)?;
        let outputs = sampling.n.unwrap_or(1);
        if outputs == 0 || outputs > MAX_OUTPUTS {
            return Err(Failure::invalid_field(
                "sampling.n",
                format!("n is {outputs}: expected 1 to {MAX_OUTPUTS}"),
            ));
        }
        let logprobs = top_logprobs("response.logprobs", response.logprobs)?;
        let prompt_logprobs = prompt_logprobs(&response, engine)?;
        let max_tokens = stopping.max_tokens.map(|tokens| tokens as usize);
        if max_tokens == Some(0) && (prompt_logprobs.is_none() || outputs > 1) {
            return Err(Failure::invalid_field(
                "stopping.max_tokens",
                "max_tokens is 0: expected at least 1 without prompt_logprobs or with several outputs",
            ));
        }
        let stop_strings = StopMatcher::new(&stopping.stop).map_err(|error| failure::of_text(&error))?;
        let include_stop = stopping.include_stop_in_output.unwrap_or(false);
        let ignore_eos = stopping.ignore_eos.unwrap_or(false);
        let mut stop_tokens = stopping.stop_token_ids;
        if !ignore_eos {
            stop_tokens.extend(&engine.manifest().info.eos_token_ids);
        }
        if guided.is_some() && ignore_eos {
            return Err(Failure::invalid_field(
                "stopping.ignore_eos",
                "ignore_eos is set: an output that is guided ends with an end-of-sequence token",
            ));
        }
        Ok(Self {
            params,
            constraints,
            outputs,
            logprobs,
            prompt_logprobs,
            skip_special_tokens: response.skip_special_tokens.unwrap_or(true),
            echo: response.echo.unwrap_or(false),
            stop_strings: stop_strings.including_stop(include_stop),
            max_tokens,
            limits: Limits {
                max_tokens: max_tokens.unwrap_or(usize::MAX),
                min_tokens: stopping.min_tokens.unwrap_or(0) as usize,
                stop_tokens,
                include_stop,
            },
            speculative: None,
            guide: guided.map(|guided| guide(engine, guided)).transpose()?,
        })
    }

    /// The sampler of one of the outputs.
    pub(super) fn sampler(&self, index: u32) -> Result<Sampler, Failure> {
        let seed = self.params.seed.map(|seed| seed.wrapping_add(index.into()));
        let sampler = Sampler::new(SamplingParams { seed, ..self.params });
        let sampler = sampler.map_err(|error| failure::of_sampling(&error))?;
        Ok(sampler.with_constraints(self.constraints.clone()))
    }
}

fn sampling_params(options: &SamplingOptions) -> SamplingParams {
    SamplingParams {
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        typical_p: options.typical_p,
        no_repeat_ngram_size: options.no_repeat_ngram_size,
        repetition_penalty: options.repetition_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        seed: options.seed,
    }
}

fn constraints(
    engine: &LoadedEngine,
    logit_bias: HashMap<u32, f32>,
    bad_words: &[String],
) -> Result<Constraints, Failure> {
    const FIELD: &str = "sampling.bad_words";
    if bad_words.len() > MAX_BAD_WORD_TEXTS {
        let message = format!("{} bad_words: expected at most {MAX_BAD_WORD_TEXTS}", bad_words.len());
        return Err(Failure::invalid_field(FIELD, message));
    }
    let mut sequences = Vec::new();
    for (index, text) in bad_words.iter().enumerate() {
        if text.is_empty() || text.len() > MAX_BAD_WORD_BYTES {
            let message =
                format!("bad_words[{index}] has {} bytes: expected 1 to {MAX_BAD_WORD_BYTES}", text.len());
            return Err(Failure::invalid_field(FIELD, message));
        }
        sequences.extend(spellings(engine.tokenizer(), text)?);
    }
    let constraints = Constraints { logit_bias: logit_bias.into_iter().collect(), bad_words: sequences };
    constraints.validate(engine.vocab_size()).map_err(|error| failure::of_sampling(&error))?;
    Ok(constraints)
}

/// How the tokenizer writes a text at the beginning of a word and within one.
fn spellings(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Vec<u32>>, Failure> {
    let encode = |text: &str| {
        let tokens = tokenizer.encode(text, false);
        tokens.map_err(|error| Failure::invalid_field("sampling.bad_words", error.to_string()))
    };
    let (within, after_space) = (encode(text)?, encode(&format!(" {text}"))?);
    Ok(if within == after_space { vec![within] } else { vec![within, after_space] })
}

fn guide(engine: &LoadedEngine, guided: Guided) -> Result<TokenGuide, Failure> {
    let guide = match guided {
        Guided::JsonSchema(schema) => Guide::JsonSchema(schema),
        Guided::JsonObject(_) => Guide::JsonObject,
        Guided::Regex(pattern) => Guide::Regex(pattern),
        Guided::Choice(choice) => Guide::Choice(choice.texts),
        Guided::Lark(grammar) => Guide::Lark(grammar),
    };
    let compiled = engine.grammars().and_then(|grammars| grammars.compile(&guide));
    compiled.map_err(|error| failure::of_guide(&error).at_field(guide.kind()))
}

/// How a call wants tokens to be guessed, which its engine must be able to verify.
pub(super) fn speculative(
    engine: &LoadedEngine,
    speculative: Option<Speculative>,
) -> Result<Option<PromptLookup>, Failure> {
    let Some(Method::PromptLookup(lookup)) = speculative.and_then(|speculative| speculative.method) else {
        return Ok(None);
    };
    let options = &engine.manifest().options;
    if options.cache != CacheKind::InPlace && !options.all_logits {
        let message =
            "speculative needs an engine with an in_place cache or all_logits, which this one is not";
        return Err(Failure::invalid_field("speculative", message));
    }
    let bounded = |name: &str, value: u32| {
        if (1..=MAX_DRAFT_TOKENS).contains(&value) {
            return Ok(value as usize);
        }
        let message = format!("{name} is {value}: expected 1 to {MAX_DRAFT_TOKENS}");
        Err(Failure::invalid_field(format!("speculative.prompt_lookup.{name}"), message))
    };
    Ok(Some(PromptLookup {
        max_ngram: bounded("max_ngram", lookup.max_ngram.unwrap_or(DEFAULT_NGRAM))?,
        num_draft_tokens: bounded(
            "num_draft_tokens",
            lookup.num_draft_tokens.unwrap_or(DEFAULT_DRAFT_TOKENS),
        )?,
    }))
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
