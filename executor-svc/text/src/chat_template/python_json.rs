//! `tojson` as Transformers has it: Python's `json.dumps`, without the escapes for HTML that Jinja's own adds.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Levels of nesting. Real tool schemas have a dozen.
const MAX_DEPTH: usize = 64;

/// The filter, with the arguments of `json.dumps` that Transformers passes on: `ensure_ascii` (false unless given),
/// `indent`, `separators`, `sort_keys`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent = arguments.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let indent = indent.map(|width| match width.as_usize() {
        Some(spaces) => " ".repeat(spaces.min(16)),
        None => width.to_string(),
    });
    let (item_separator, key_separator) = match arguments.get::<Option<Vec<String>>>("separators")?.as_deref()
    {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are two strings")),
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        state,
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        text: String::new(),
    };
    arguments.assert_all_used()?;
    writer.value(value, 0)?;
    // The template's author decided that this is no HTML.
    Ok(Value::from_safe_string(writer.text))
}

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    text: String,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: nested too deeply"));
        }
        // Paid before the work, so that a value that names itself many times over runs out of fuel, not of memory.
        self.state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            // What is a list in Python may be computed on the way here, e.g. the sum of two lists.
            ValueKind::Seq | ValueKind::Iterable => {
                self.items('[', ']', value.try_iter()?, depth, |writer, item| {
                    writer.value(&item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.collect::<Vec<_>>();
                if self.sort_keys {
                    keys.sort();
                }
                self.items('{', '}', keys.into_iter(), depth, |writer, key| {
                    writer.key(&key)?;
                    writer.text.push_str(&writer.key_separator);
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(&format!("tojson: a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        let mut empty = true;
        for item in items {
            if !std::mem::take(&mut empty) {
                self.text.push_str(&self.item_separator);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            for _ in 0..depth {
                self.text.push_str(indent);
            }
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.text.push('"');
                self.value(key, 0)?;
                self.text.push('"');
            }
            kind => {
                return Err(invalid(&format!(
                    "tojson: keys must be strings, numbers, booleans or none, not {kind}"
                )));
            }
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        match (value.is_integer(), f64::try_from(value.clone())) {
            (false, Ok(number)) => self.float(number),
            _ => self.text.push_str(&value.to_string()),
        }
    }

    /// As Python's `float.__repr__`: the shortest digits that read back the same, with an exponent of at least two
    /// digits below 1e-4 and from 1e16 on.
    fn float(&mut self, number: f64) {
        if number.is_nan() {
            self.text.push_str("NaN");
        } else if number.is_infinite() {
            self.text.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
        } else {
            let digits = format!("{number:?}");
            match digits.split_once('e') {
                None => self.text.push_str(&digits),
                Some((mantissa, exponent)) => {
                    let (sign, exponent) =
                        exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                    let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa);
                    // Writing to a String does not fail.
                    let _ = write!(self.text, "{mantissa}e{sign}{exponent:0>2}");
                }
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                control if control < ' ' => self.escape(control),
                other if self.ensure_ascii && !matches!(other, ' '..='~') => self.escape(other),
                other => self.text.push(other),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _ = write!(self.text, "\\u{unit:04x}");
        }
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}
