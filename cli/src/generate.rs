//! One generation on an executor, gathered or passed on as it comes.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    FinishReason, GenerateRequest, GenerateResponse, SamplingOptions, Timings, Usage,
};
use tonic::Streaming;
use tonic::transport::Channel;

/// How tokens are chosen; greedy when nothing is given.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 is greedy.
    #[arg(long)]
    temperature: Option<f32>,
    /// Only the k most probable tokens.
    #[arg(long)]
    top_k: Option<u32>,
    /// Only the most probable tokens that sum to p.
    #[arg(long)]
    top_p: Option<f32>,
    /// Only tokens at least this times as probable as the most probable one.
    #[arg(long)]
    min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens seen.
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens in the output.
    #[arg(long)]
    presence_penalty: Option<f32>,
    /// Subtracted for each occurrence in the output.
    #[arg(long)]
    frequency_penalty: Option<f32>,
    /// Only the tokens whose surprise is nearest to the expected one and that sum to p.
    #[arg(long)]
    typical_p: Option<f32>,
    /// No sequence of so many tokens comes again.
    #[arg(long)]
    no_repeat_ngram_size: Option<u32>,
    /// Added to a token's logit; give the flag for each.
    #[arg(long, value_name = "TOKEN:BIAS", value_parser = logit_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// A text that is not written; give the flag for each.
    #[arg(long, value_name = "TEXT")]
    bad_word: Vec<String>,
    /// Makes sampling repeatable.
    #[arg(long)]
    seed: Option<u64>,
}

/// `17:-2.5`.
fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed =
        text.split_once(':').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?}: expected a token and its bias, such as 17:-2.5"))
}

impl SamplingArgs {
    /// As in a request.
    pub(crate) fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            typical_p: self.typical_p,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            logit_bias: self.logit_bias.iter().copied().collect(),
            bad_words: self.bad_word.clone(),
            seed: self.seed,
            n: None,
        }
    }
}

/// A whole generation.
#[derive(Debug, Default)]
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    /// From the call to the first token, as the client sees it.
    pub(crate) time_to_first_token: Duration,
}

impl Generated {
    /// Mean time between two tokens.
    pub(crate) fn time_per_output_token(&self) -> Option<Duration> {
        let steps = u32::try_from(self.token_ids.len().checked_sub(1)?).ok().filter(|&steps| steps > 0)?;
        Some(Duration::from_micros(self.timings.decode_us) / steps)
    }
}

/// Runs a generation; `show` gets each piece of text as it comes.
pub(crate) async fn generate(
    executor: &mut ExecutorClient<Channel>,
    request: GenerateRequest,
    show: impl FnMut(&str),
) -> anyhow::Result<Generated> {
    let start = Instant::now();
    let stream = executor.generate(request).await?.into_inner();
    gather(stream, start, show).await
}

/// Reads the stream of a call that was made at `start`; `show` gets each piece of text as it comes.
pub(crate) async fn gather(
    mut stream: Streaming<GenerateResponse>,
    start: Instant,
    mut show: impl FnMut(&str),
) -> anyhow::Result<Generated> {
    let mut generated = Generated::default();
    while let Some(response) = stream.message().await? {
        if generated.token_ids.is_empty() && !response.token_ids.is_empty() {
            generated.time_to_first_token = start.elapsed();
        }
        show(&response.text);
        generated.text.push_str(&response.text);
        generated.token_ids.extend(&response.token_ids);
        if response.finish_reason.is_some() {
            generated.finish_reason = response.finish_reason();
            generated.usage = response.usage.context("the last message has no usage")?;
            generated.timings = response.timings.unwrap_or_default();
        }
    }
    Ok(generated)
}

/// The name of a finish reason, as programs read it.
pub(crate) fn finish_reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Unspecified => "unspecified",
        FinishReason::StopToken => "stop_token",
        FinishReason::StopString => "stop_string",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::CacheFull => "cache_full",
        FinishReason::Cancelled => "cancelled",
        FinishReason::GrammarComplete => "grammar_complete",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_a_token_and_a_number() {
        assert_eq!(logit_bias("17:-2.5"), Ok((17, -2.5)));
        assert_eq!(logit_bias("0:100"), Ok((0, 100.0)));
        for text in ["17", ":1", "a:1", "1:", "-1:1", "1:2:3"] {
            assert!(logit_bias(text).unwrap_err().contains(text), "{text}");
        }
    }
}
