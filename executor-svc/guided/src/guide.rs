//! What an output must be.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::GuideError;

/// Bytes of a guide.
pub const MAX_GUIDE_BYTES: usize = 64 * 1024;

/// Texts of a choice.
pub const MAX_CHOICES: usize = 1024;

/// Whitespace between the tokens of JSON, where a schema does not say: none, a space, or a line break with indentation.
/// More would never be needed, and a model that repeats itself would write it to the end.
const JSON_WHITESPACE: &str = r"\x20|\n\x20{0,32}";

/// Brackets inside brackets.
const MAX_NESTING: usize = 100;

/// What an output must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guide {
    /// JSON that a JSON Schema describes: the schema's text.
    JsonSchema(String),
    /// A JSON object.
    JsonObject,
    /// A text that a regular expression (the syntax of Rust's crate `regex`) matches from end to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in llguidance's dialect of Lark.
    Lark(String),
}

impl Guide {
    /// Its name in errors.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "json_schema",
            Self::JsonObject => "json_object",
            Self::Regex(_) => "regex",
            Self::Choice(_) => "choice",
            Self::Lark(_) => "lark",
        }
    }

    /// The library's grammar.
    pub(crate) fn grammar(&self) -> Result<TopLevelGrammar, GuideError> {
        let kind = self.kind();
        let size = |found, unit, limit| match found == 0 || found > limit {
            true => Err(GuideError::Size { kind, found, unit, limit }),
            false => Ok(()),
        };
        match self {
            Self::JsonSchema(text) => {
                size(text.len(), "bytes", MAX_GUIDE_BYTES)?;
                let schema = serde_json::from_str(text)
                    .map_err(|error| GuideError::Invalid { kind, reason: format!("not JSON: {error}") })?;
                json_grammar(schema)
            }
            Self::JsonObject => json_grammar(json!({ "type": "object" })),
            Self::Regex(pattern) => {
                size(pattern.len(), "bytes", MAX_GUIDE_BYTES)?;
                check_nesting(kind, pattern)?;
                Ok(TopLevelGrammar::from_regex(pattern))
            }
            Self::Choice(texts) => {
                size(texts.len(), "texts", MAX_CHOICES)?;
                size(texts.iter().map(String::len).sum(), "bytes", MAX_GUIDE_BYTES)?;
                let alternatives: Vec<String> = texts.iter().map(|text| escape(text)).collect();
                Ok(TopLevelGrammar::from_regex(&alternatives.join("|")))
            }
            Self::Lark(grammar) => {
                size(grammar.len(), "bytes", MAX_GUIDE_BYTES)?;
                check_nesting(kind, grammar)?;
                Ok(TopLevelGrammar::from_lark(grammar.clone()))
            }
        }
    }
}

/// The grammar of a schema, with bounded whitespace unless the schema says itself.
fn json_grammar(mut schema: Value) -> Result<TopLevelGrammar, GuideError> {
    let invalid = |reason: &str| GuideError::Invalid { kind: "json_schema", reason: reason.to_owned() };
    // The schema of anything and the one of nothing are written so too.
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    let object = schema.as_object_mut().ok_or_else(|| invalid("not an object"))?;
    object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_WHITESPACE }));
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// A regular expression that matches a text only.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            pattern.push(character);
        } else {
            pattern.push_str(&format!("\\x{{{:X}}}", u32::from(character)));
        }
    }
    pattern
}

/// The library's parsers call themselves for each bracket.
fn check_nesting(kind: &'static str, source: &str) -> Result<(), GuideError> {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_NESTING {
        let reason = format!("{deepest} brackets are open at once: expected at most {MAX_NESTING}");
        return Err(GuideError::Invalid { kind, reason });
    }
    Ok(())
}
