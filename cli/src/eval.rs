//! `eval`: how good a model's answers are, not how fast.

mod json_schema;
mod perplexity;
mod variant;
mod windows;

use clap::{Args, Subcommand};

/// `roundhouse eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    command: EvalCommand,
}

#[derive(Debug, Subcommand)]
enum EvalCommand {
    /// How well a model predicts a text: what precisions and quantised weights cost in quality.
    ///
    /// The text is cut into windows of CONTEXT tokens, one every STRIDE tokens, each a sequence of its own that begins
    /// with the tokens that the tokenizer puts before a text (a beginning-of-sequence token where the model has one).
    /// Every token of the text is counted once, in the first window that has it: of each window after the first the last
    /// STRIDE tokens. The first token of a sequence, which nothing predicts, is not counted. Perplexity is exp of the mean
    /// negative log-likelihood of all counted tokens, in natural logarithms.
    #[command(verbatim_doc_comment)]
    Perplexity(perplexity::PerplexityArgs),
    /// Whether outputs that are guided by JSON Schemas parse and validate, greedy and sampled.
    ///
    /// Ends with an error unless all do.
    JsonSchema(json_schema::JsonSchemaArgs),
}

pub(crate) async fn run(args: EvalArgs) -> anyhow::Result<()> {
    match args.command {
        EvalCommand::Perplexity(args) => perplexity::run(args).await,
        EvalCommand::JsonSchema(args) => json_schema::run(args).await,
    }
}
