//! The checkpoint's chat template: messages to the text that the model was trained on.

mod budget;
mod generation_tag;
mod message;
mod python_json;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use chrono::{DateTime, Local};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use self::budget::Budget;
pub use self::message::{ChatMessage, Content, ContentPart};
use crate::TextError;

/// Bytes of a chat template. The longest of known models, with tools, are a tenth of this.
pub const MAX_TEMPLATE_BYTES: usize = 256 * 1024;

const TEMPLATE_NAME: &str = "chat_template";

/// What is rendered besides the messages.
#[derive(Debug, Clone, Copy)]
pub struct RenderOptions {
    /// Begin the assistant's answer.
    pub add_generation_prompt: bool,
    /// The time that `strftime_now` prints, in the machine's time zone.
    pub now: SystemTime,
}

/// A compiled chat template, rendered as Transformers' `apply_chat_template` does.
///
/// The template sees `messages`, `add_generation_prompt`, `tools` and `documents` (none), the special tokens by name,
/// and Transformers' own functions: `raise_exception`, `strftime_now`, and `tojson` with Python's output.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

/// The words of a template that refuses its input.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Compiles a template. The special tokens are [`crate::TokenizerConfig::special_tokens`].
    ///
    /// # Errors
    /// [`TextError::TemplateTooLong`] and [`TextError::TemplateSyntax`].
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TextError::TemplateTooLong { bytes: source.len(), limit: MAX_TEMPLATE_BYTES });
        }
        let syntax_error = |error: Error| TextError::TemplateSyntax { message: error.to_string() };
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(syntax_error)?,
        );
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", python_json::tojson);
        environment
            .add_template_owned(TEMPLATE_NAME, generation_tag::replace(source).into_owned())
            .map_err(syntax_error)?;
        Ok(Self { environment, special_tokens })
    }

    /// The text of a conversation. It is to be tokenised without the tokenizer's own special tokens: the template
    /// writes them.
    ///
    /// # Errors
    /// [`TextError::EmptyConversation`]; [`TextError::RefusedByTemplate`], e.g. for roles in an order that the template
    /// does not take; [`TextError::TemplateBudget`]; [`TextError::Template`].
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<String, TextError> {
        if messages.is_empty() {
            return Err(TextError::EmptyConversation);
        }
        let now = DateTime::<Local>::from(options.now);
        let variables = context! {
            messages => messages.iter().map(message_value).collect::<Vec<_>>(),
            add_generation_prompt => options.add_generation_prompt,
            tools => (),
            documents => (),
            strftime_now => Value::from_function(move |format: &str| strftime(now, format)),
            ..Value::from(self.special_tokens.clone())
        };
        let budget = Budget::of(messages);
        // Compiled templates are shared between clones; the fuel is not.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(budget.fuel()));
        budget.run(|| {
            let template = environment.get_template(TEMPLATE_NAME).map_err(|error| render_error(&error))?;
            template.render(variables).map_err(|error| render_error(&error))
        })
    }
}

fn message_value(message: &ChatMessage) -> Value {
    let content = match &message.content {
        Content::Text(text) => Value::from(text.as_str()),
        Content::Parts(parts) => parts.iter().map(part_value).collect(),
    };
    Value::from_pairs([("role", Value::from(message.role.as_str())), ("content", content)])
}

fn part_value(part: &ContentPart) -> Value {
    match part {
        ContentPart::Text { text } => Value::from_pairs([("type", "text"), ("text", text.as_str())]),
        ContentPart::Image => Value::from_pairs([("type", "image")]),
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

fn strftime(now: DateTime<Local>, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know the format {format:?}"))
    })?;
    Ok(text)
}

fn render_error(error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TextError::RefusedByTemplate { message: message.clone() };
        }
        if current.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TextError::TemplateBudget;
        }
        cause = current.source();
    }
    TextError::Template { message: error.to_string() }
}
