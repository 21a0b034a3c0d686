//! Stop strings: where in a stream of text a generation ends.

use crate::TextError;

/// Stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;

/// Bytes of one stop string.
pub const MAX_STOP_STRING_BYTES: usize = 256;

/// Finds the first stop string in a stream of text, and holds back what could be its beginning.
///
/// The text ends before the stop string that is complete first, however the stream is cut into pieces; where two are
/// complete at the same byte, before the longer one. The work for a byte of text does not depend on what came before.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
    /// Whether the stop string is part of the text.
    included: bool,
}

/// One stop string, searched as by Knuth, Morris and Pratt.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: the length of the longest proper prefix that the first `n + 1` bytes end with.
    fallback: Vec<usize>,
    /// How many bytes the stream so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher of these strings, at the beginning of a stream.
    ///
    /// # Errors
    /// [`TextError::TooManyStopStrings`], [`TextError::StopStringTooLong`], [`TextError::EmptyStopString`].
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Result<Self, TextError> {
        if strings.len() > MAX_STOP_STRINGS {
            return Err(TextError::TooManyStopStrings { found: strings.len(), limit: MAX_STOP_STRINGS });
        }
        let patterns = strings.iter().enumerate().map(|(index, string)| Pattern::new(index, string.as_ref()));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()?, held: String::new(), included: false })
    }

    /// The same, but the text ends after the stop string instead of before it. Nothing is held back then.
    #[must_use]
    pub fn including_stop(self, included: bool) -> Self {
        Self { included, ..self }
    }

    /// Takes new text. Returns the text that may be shown, and whether a stop string ends the stream there.
    ///
    /// With `may_stop` false the text passes as it is and is forgotten: a stop string that begins in it is not found.
    pub fn push(&mut self, text: &str, may_stop: bool) -> (String, bool) {
        let searched = self.held.len();
        self.held.push_str(text);
        if !may_stop {
            return (self.finish(), false);
        }
        for (index, &byte) in self.held.as_bytes().iter().enumerate().skip(searched) {
            let longest_match = self.patterns.iter_mut().filter_map(|pattern| pattern.advance(byte)).max();
            if let Some(length) = longest_match {
                self.held.truncate(if self.included { index + 1 } else { index + 1 - length });
                return (self.finish(), true);
            }
        }
        if self.included {
            return (std::mem::take(&mut self.held), false);
        }
        // A stop string is valid UTF-8, so what could be its beginning begins at a character's first byte.
        let open = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - open);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the stream: what was held back is no stop string.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(index: usize, string: &str) -> Result<Self, TextError> {
        let bytes = string.as_bytes().to_vec();
        if bytes.is_empty() {
            return Err(TextError::EmptyStopString { index });
        }
        if bytes.len() > MAX_STOP_STRING_BYTES {
            return Err(TextError::StopStringTooLong {
                index,
                bytes: bytes.len(),
                limit: MAX_STOP_STRING_BYTES,
            });
        }
        let mut fallback = vec![0; bytes.len()];
        let mut length = 0;
        for position in 1..bytes.len() {
            while length > 0 && bytes[position] != bytes[length] {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[position] == bytes[length]);
            fallback[position] = length;
        }
        Ok(Self { bytes, fallback, matched: 0 })
    }

    /// Takes the stream's next byte. Returns the pattern's length when it is complete.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        if self.matched < self.bytes.len() {
            return None;
        }
        self.matched = self.fallback[self.matched - 1];
        Some(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text before the stop string that is complete first, the slow way.
    fn reference<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        for end in text.char_indices().map(|(index, character)| index + character.len_utf8()) {
            let found =
                stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
            if let Some(length) = found {
                return (&text[..end - length], true);
            }
        }
        (text, false)
    }

    fn run(pieces: &[String], stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let mut shown = String::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece, true);
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push_str(&matcher.finish());
        (shown, false)
    }

    proptest! {
        #[test]
        fn text_ends_before_the_first_stop_string_wherever_the_pieces_end(
            pieces in proptest::collection::vec("[abé😀]{0,5}", 0..12),
            stops in proptest::collection::vec("[abé😀]{1,5}", 0..5),
        ) {
            let text = pieces.concat();
            let (expected, stopped) = reference(&text, &stops);
            prop_assert_eq!(run(&pieces, &stops), (expected.to_owned(), stopped));
        }

        #[test]
        fn no_beginning_of_a_stop_string_is_shown_before_it_is_known_to_be_none(
            pieces in proptest::collection::vec("[ab]{1,3}", 1..10),
            stop in "[ab]{2,6}",
        ) {
            let mut matcher = StopMatcher::new(&[&stop]).unwrap();
            let mut seen = String::new();
            let mut shown = String::new();
            for piece in &pieces {
                seen.push_str(piece);
                let (text, stopped) = matcher.push(piece, true);
                shown.push_str(&text);
                if stopped { break; }
                let open = (0..stop.len()).rev().find(|&length| seen.ends_with(&stop[..length])).unwrap_or(0);
                prop_assert_eq!(&shown, &seen[..seen.len() - open]);
            }
        }
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_cut_out_whole() {
        let mut matcher = StopMatcher::new(&["\nUser:", "END"]).unwrap();
        assert_eq!(matcher.push("Hi\nUs", true), ("Hi".to_owned(), false));
        assert_eq!(matcher.push("ual. E", true), ("\nUsual. ".to_owned(), false));
        assert_eq!(matcher.push("N", true), (String::new(), false));
        assert_eq!(matcher.push("D of", true), (String::new(), true));
    }

    #[test]
    fn an_included_stop_string_is_the_end_of_the_text_and_holds_nothing_back() {
        let mut matcher = StopMatcher::new(&["</a>", "a>"]).unwrap().including_stop(true);
        assert_eq!(matcher.push("x <", true), ("x <".to_owned(), false));
        assert_eq!(matcher.push("/", true), ("/".to_owned(), false));
        assert_eq!(matcher.push("a> y", true), ("a>".to_owned(), true));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn text_passes_while_stopping_is_not_allowed() {
        let mut matcher = StopMatcher::new(&["stop"]).unwrap();
        assert_eq!(matcher.push("a stop st", false), ("a stop st".to_owned(), false));
        assert_eq!(matcher.push("op, stop", true), ("op, ".to_owned(), true));
    }

    #[test]
    fn limits_are_named_in_the_error() {
        let many = vec!["x"; MAX_STOP_STRINGS + 1];
        assert!(matches!(
            StopMatcher::new(&many),
            Err(TextError::TooManyStopStrings { found: 17, limit: 16 })
        ));
        assert!(matches!(StopMatcher::new(&["a", ""]), Err(TextError::EmptyStopString { index: 1 })));
        let long = "é".repeat(129);
        assert!(matches!(
            StopMatcher::new(&[long]),
            Err(TextError::StopStringTooLong { index: 0, bytes: 258, .. })
        ));
        assert!(StopMatcher::new(&["é".repeat(128)]).is_ok());
    }
}
