//! Transformers' `clean_up_tokenization`: removes the spaces that old tokenizers put before punctuation.

/// What is replaced by what, in this order, each throughout the text before the next.
const REPLACEMENTS: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The cleaned text.
pub(crate) fn clean_up(text: &str) -> String {
    REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The same over a stream of text.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamingCleanup {
    held: String,
}

impl StreamingCleanup {
    /// Takes new text and returns the cleaned text that can no longer change.
    ///
    /// Every replacement starts at a space and removes only spaces. So none spans a place whose left neighbour is
    /// neither a space nor a character that stands inside one of the searched strings before its end, and the text may
    /// be cut there: both sides are cleaned alone as they are together.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let settled = self.held.trim_end_matches([' ', 'n', '\'', 'v', 'r']).len();
        let rest = self.held.split_off(settled);
        clean_up(&std::mem::replace(&mut self.held, rest))
    }

    /// The rest.
    pub(crate) fn finish(&mut self) -> String {
        clean_up(&std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stream_is_cleaned_as_the_whole_text_is(pieces in proptest::collection::vec("[ .,?!'nmtsverx]{0,4}", 0..24)) {
            let mut cleanup = StreamingCleanup::default();
            let mut streamed: String = pieces.iter().map(|piece| cleanup.push(piece)).collect();
            streamed.push_str(&cleanup.finish());
            prop_assert_eq!(streamed, clean_up(&pieces.concat()));
        }
    }

    #[test]
    fn text_that_nothing_can_change_is_not_held() {
        let mut cleanup = StreamingCleanup::default();
        assert_eq!(cleanup.push("do n"), "do");
        assert_eq!(cleanup.push("'t go"), "n't go");
        assert_eq!(cleanup.finish(), "");
    }
}
