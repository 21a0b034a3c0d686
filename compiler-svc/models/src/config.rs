//! Reading config.json: every error names the field, what was found and what is allowed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Longest rendering of a found value in a message.
const MAX_FOUND_CHARS: usize = 80;

/// A field of config.json that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A required field is not there.
    #[error("config.json has no {field}: expected {expected}")]
    Missing {
        /// The field, with the sections it is in: `rope_scaling.factor`.
        field: String,
        /// What belongs there.
        expected: String,
    },
    /// A field holds something else than it may.
    #[error("config.json: {field} is {found}: expected {expected}")]
    Invalid {
        /// The field.
        field: String,
        /// What it holds, as JSON.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// A field asks for a computation that the family does not do.
    #[error("config.json: {field} is {found}, which is not supported: expected {supported}")]
    Unsupported {
        /// The field.
        field: String,
        /// What it holds, as JSON.
        found: String,
        /// What is supported.
        supported: String,
    },
}

/// An object of config.json, or one inside it. It remembers which fields were asked for, so that the rest can be
/// reported.
#[derive(Debug)]
pub struct Config<'a> {
    object: &'a Map<String, Value>,
    /// The names of the sections around it, joined by dots.
    path: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Config<'a> {
    /// The whole config.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is no object.
    pub fn new(value: &'a Value) -> Result<Self, ConfigError> {
        Self::at(value, String::new())
    }

    fn at(value: &'a Value, path: String) -> Result<Self, ConfigError> {
        match value {
            Value::Object(object) => Ok(Self { object, path, read: RefCell::default() }),
            other => {
                let field = if path.is_empty() { "the document".to_owned() } else { path };
                Err(ConfigError::Invalid { field, found: render(other), expected: "an object".to_owned() })
            }
        }
    }

    /// The full name of a field here.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The fields that are set (not null) and that nothing has asked for, in the document's order.
    #[must_use]
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let unread = self.object.iter().filter(|(name, value)| !value.is_null() && !read.contains(*name));
        unread.map(|(name, _)| name.clone()).collect()
    }

    /// The value of a field; `None` if it is absent or null.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name.to_owned());
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is written down, be it as null.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// A section: an object inside this one; `None` if it is absent, null or empty.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when it is no object.
    pub fn section(&self, name: &str) -> Result<Option<Self>, ConfigError> {
        let section = self.get(name).map(|value| Self::at(value, self.field(name))).transpose()?;
        Ok(section.filter(|section| !section.object.is_empty()))
    }

    /// A positive integer.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn positive(&self, name: &str) -> Result<u32, ConfigError> {
        self.optional_positive(name)?.ok_or_else(|| self.missing(name, POSITIVE))
    }

    /// A positive integer; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_positive(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let parse = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
        self.optional(name, POSITIVE, parse)
    }

    /// A positive integer; `default` if it is absent, and `None` if it is written down as null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn positive_unless_null(&self, name: &str, default: Option<u32>) -> Result<Option<u32>, ConfigError> {
        let found = self.optional_positive(name)?;
        Ok(if self.contains(name) { found } else { default })
    }

    /// An integer of zero or more; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_unsigned(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let parse = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        self.optional(name, "an integer of zero or more, below 2^32", parse)
    }

    /// A list of `length` numbers above zero.
    ///
    /// # Errors
    /// When it is missing, of another length or something else.
    pub fn positive_numbers(&self, name: &str, length: usize) -> Result<Vec<f64>, ConfigError> {
        let expected = format!("a list of {length} numbers above zero");
        let number = |value: &Value| value.as_f64().filter(|&n| n.is_finite() && n > 0.0);
        let parse = |value: &Value| {
            let list = value.as_array().filter(|list| list.len() == length)?;
            list.iter().map(number).collect::<Option<Vec<f64>>>()
        };
        self.optional(name, &expected, parse)?.ok_or_else(|| self.missing(name, &expected))
    }

    /// A list; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_list(&self, name: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.invalid(name, other, "a list")),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn number(&self, name: &str) -> Result<f64, ConfigError> {
        self.optional_number(name)?.ok_or_else(|| self.missing(name, "a number"))
    }

    /// A finite number; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.optional(name, "a number", |value| value.as_f64().filter(|n| n.is_finite()))
    }

    /// A number above zero; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_positive_number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let parse = |value: &Value| value.as_f64().filter(|&n| n.is_finite() && n > 0.0);
        self.optional(name, POSITIVE_NUMBER, parse)
    }

    /// A number above zero.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn positive_number(&self, name: &str) -> Result<f64, ConfigError> {
        self.optional_positive_number(name)?.ok_or_else(|| self.missing(name, POSITIVE_NUMBER))
    }

    /// A boolean, `default` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn boolean(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string; `None` if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn optional_string(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid(name, other, "a string")),
        }
    }

    /// A token ID, or a list of them, as `eos_token_id` may be; empty if it is absent or null.
    ///
    /// # Errors
    /// When it is something else.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>, ConfigError> {
        let token = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let parse = |value: &Value| match value {
            Value::Array(list) => list.iter().map(token).collect::<Option<Vec<u32>>>(),
            one => token(one).map(|id| vec![id]),
        };
        Ok(self.optional(name, "a token ID or a list of token IDs", parse)?.unwrap_or_default())
    }

    /// Refuses a field that is set to anything but one of `neutral`, for which it changes nothing. Numbers are
    /// compared as numbers.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`].
    pub fn refuse_unless(&self, name: &str, neutral: &[Value]) -> Result<(), ConfigError> {
        let equal = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        match self.get(name) {
            Some(found) if !neutral.iter().any(|value| equal(value, found)) => {
                let values: Vec<String> = neutral.iter().map(render).collect();
                let supported = match &values[..] {
                    [] => "no such field".to_owned(),
                    values => format!("{} or no such field", values.join(", ")),
                };
                Err(self.unsupported(name, found, &supported))
            }
            _ => Ok(()),
        }
    }

    /// Refuses fields that nothing has asked for.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] names the first.
    pub fn refuse_unread(&self) -> Result<(), ConfigError> {
        match self.unread().first() {
            Some(name) => Err(self.unsupported(name, &self.object[name], "no such field")),
            None => Ok(()),
        }
    }

    /// The error of a field that is not there.
    #[must_use]
    pub fn missing(&self, name: &str, expected: &str) -> ConfigError {
        ConfigError::Missing { field: self.field(name), expected: expected.to_owned() }
    }

    /// The error of a field that holds what it may not.
    #[must_use]
    pub fn invalid(&self, name: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Invalid { field: self.field(name), found: render(found), expected: expected.to_owned() }
    }

    /// The error of a field that asks for what is not supported.
    #[must_use]
    pub fn unsupported(&self, name: &str, found: &Value, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            field: self.field(name),
            found: render(found),
            supported: supported.to_owned(),
        }
    }

    fn optional<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => parse(value).map(Some).ok_or_else(|| self.invalid(name, value, expected)),
        }
    }
}

const POSITIVE: &str = "a positive integer below 2^32";
const POSITIVE_NUMBER: &str = "a number above zero";

/// A value as JSON, cut where it is long.
fn render(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_FOUND_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_field_is_named_with_what_belongs_there() {
        let value = json!({"rope_scaling": {"rope_type": "linear"}});
        let config = Config::new(&value).unwrap();
        let error = config.positive("hidden_size").unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json has no hidden_size: expected a positive integer below 2^32"
        );
        let rope = config.section("rope_scaling").unwrap().unwrap();
        let error = rope.number("factor").unwrap_err();
        assert_eq!(error.to_string(), "config.json has no rope_scaling.factor: expected a number");
    }

    #[test]
    fn a_malformed_field_is_shown_as_it_is() {
        let value = json!({
            "hidden_size": -4, "vocab_size": 5_000_000_000_u64, "layers": 1.5, "tie": "yes", "eps": "small",
            "eos_token_id": [1, "two"], "act": 3, "rope": [1], "theta": 0,
        });
        let config = Config::new(&value).unwrap();
        let texts = [
            config.positive("hidden_size").unwrap_err().to_string(),
            config.positive("vocab_size").unwrap_err().to_string(),
            config.positive("layers").unwrap_err().to_string(),
            config.boolean("tie", false).unwrap_err().to_string(),
            config.number("eps").unwrap_err().to_string(),
            config.token_ids("eos_token_id").unwrap_err().to_string(),
            config.optional_string("act").unwrap_err().to_string(),
            config.section("rope").unwrap_err().to_string(),
            config.positive_number("theta").unwrap_err().to_string(),
        ];
        assert_eq!(
            texts,
            [
                "config.json: hidden_size is -4: expected a positive integer below 2^32",
                "config.json: vocab_size is 5000000000: expected a positive integer below 2^32",
                "config.json: layers is 1.5: expected a positive integer below 2^32",
                "config.json: tie is \"yes\": expected true or false",
                "config.json: eps is \"small\": expected a number",
                "config.json: eos_token_id is [1,\"two\"]: expected a token ID or a list of token IDs",
                "config.json: act is 3: expected a string",
                "config.json: rope is [1]: expected an object",
                "config.json: theta is 0: expected a number above zero",
            ]
        );
    }

    #[test]
    fn null_is_absent() {
        let value = json!({"head_dim": null, "eos_token_id": null, "rope_scaling": null, "bias": null});
        let config = Config::new(&value).unwrap();
        assert_eq!(config.optional_positive("head_dim").unwrap(), None);
        assert_eq!(config.token_ids("eos_token_id").unwrap(), Vec::<u32>::new());
        assert!(config.section("rope_scaling").unwrap().is_none());
        assert!(config.boolean("bias", true).unwrap());
        assert!(config.positive("head_dim").is_err());
    }

    #[test]
    fn null_is_not_absent_where_the_difference_counts() {
        let value = json!({"sliding_window": null, "num_key_value_heads": 2});
        let config = Config::new(&value).unwrap();
        assert_eq!(config.positive_unless_null("sliding_window", Some(4096)).unwrap(), None);
        assert_eq!(config.positive_unless_null("window", Some(4096)).unwrap(), Some(4096));
        assert_eq!(config.positive_unless_null("num_key_value_heads", Some(8)).unwrap(), Some(2));
    }

    #[test]
    fn lists_have_their_length_and_numbers() {
        let value = json!({"short_factor": [1, 1.5], "long_factor": [1.0, 0.0], "layer_types": "full"});
        let config = Config::new(&value).unwrap();
        assert_eq!(config.positive_numbers("short_factor", 2).unwrap(), [1.0, 1.5]);
        let texts = [
            config.positive_numbers("short_factor", 3).unwrap_err().to_string(),
            config.positive_numbers("long_factor", 2).unwrap_err().to_string(),
            config.positive_numbers("factor", 2).unwrap_err().to_string(),
            config.optional_list("layer_types").unwrap_err().to_string(),
        ];
        assert_eq!(
            texts,
            [
                "config.json: short_factor is [1,1.5]: expected a list of 3 numbers above zero",
                "config.json: long_factor is [1.0,0.0]: expected a list of 2 numbers above zero",
                "config.json has no factor: expected a list of 2 numbers above zero",
                "config.json: layer_types is \"full\": expected a list",
            ]
        );
    }

    #[test]
    fn a_neutral_value_passes_and_another_is_refused() {
        let value = json!({"pretraining_tp": 1, "scale": 1, "clip_qkv": null, "window": 4096});
        let config = Config::new(&value).unwrap();
        config.refuse_unless("pretraining_tp", &[json!(1)]).unwrap();
        config.refuse_unless("scale", &[json!(1.0)]).unwrap();
        config.refuse_unless("clip_qkv", &[]).unwrap();
        config.refuse_unless("absent", &[]).unwrap();
        let error = config.refuse_unless("window", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: window is 4096, which is not supported: expected no such field"
        );
        let error = config.refuse_unless("pretraining_tp", &[json!(2), json!(4)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: pretraining_tp is 1, which is not supported: expected 2, 4 or no such field"
        );
    }

    #[test]
    fn unread_fields_are_listed_in_order() {
        let value = json!({"b": 1, "a": 2, "c": null, "d": 3});
        let config = Config::new(&value).unwrap();
        let _ = config.get("a");
        assert_eq!(config.unread(), ["b", "d"]);
        assert!(config.refuse_unread().unwrap_err().to_string().starts_with("config.json: b is 1"));
    }

    #[test]
    fn a_long_value_is_cut() {
        let value = json!({"list": vec![1; 1000]});
        let config = Config::new(&value).unwrap();
        let text = config.optional_string("list").unwrap_err().to_string();
        assert!(text.len() < 200, "{text}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let value = json!([1, 2]);
        let error = Config::new(&value).unwrap_err();
        assert_eq!(error.to_string(), "config.json: the document is [1,2]: expected an object");
    }
}
