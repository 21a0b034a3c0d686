//! What an output must be, by the flags of a command.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use roundhouse_proto::executor::generate_request::Guided;
use roundhouse_proto::executor::{Choice, JsonObject};

/// What the output must be; anything when nothing is given.
#[derive(Debug, Clone, Args)]
#[group(id = "guided", multiple = false)]
pub(crate) struct GuidedArgs {
    /// JSON that this JSON Schema describes.
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Any JSON object.
    #[arg(long)]
    json_object: bool,
    /// A text that this regular expression matches.
    #[arg(long)]
    regex: Option<String>,
    /// One of several texts: give the flag for each.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// A text of this Lark grammar.
    #[arg(long, value_name = "FILE")]
    lark: Option<PathBuf>,
}

impl GuidedArgs {
    /// As in a request.
    pub(crate) fn guided(&self) -> anyhow::Result<Option<Guided>> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok(if let Some(path) = &self.json_schema {
            Some(Guided::JsonSchema(read(path)?))
        } else if let Some(path) = &self.lark {
            Some(Guided::Lark(read(path)?))
        } else if let Some(pattern) = &self.regex {
            Some(Guided::Regex(pattern.clone()))
        } else if !self.choice.is_empty() {
            Some(Guided::Choice(Choice { texts: self.choice.clone() }))
        } else {
            self.json_object.then_some(Guided::JsonObject(JsonObject {}))
        })
    }
}
