//! A text as windows of tokens.

use std::ops::Range;

use anyhow::ensure;

/// A part of a text that is a sequence of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Its tokens, by their places in the text.
    pub(super) tokens: Range<usize>,
    /// How many of its last tokens are counted: those that no window before it has, and that something comes before.
    pub(super) counted: usize,
}

/// Cuts a text of so many tokens into windows of `context` tokens, one every `stride` tokens. The first `prefix` tokens of
/// each window are none of the text's.
pub(super) fn windows(
    text_tokens: usize,
    prefix: usize,
    context: usize,
    stride: usize,
) -> anyhow::Result<Vec<Window>> {
    // Without a prefix the first token of a window has nothing before it: the window before must have counted it.
    let longest = context.saturating_sub(prefix.max(1));
    ensure!(longest > 0, "--context {context} has no place for a token to predict");
    ensure!(
        (1..=longest).contains(&stride),
        "--stride is {stride}: expected 1 to {longest} with --context {context}"
    );
    let mut windows = Vec::new();
    let (mut begin, mut seen) = (0, 0);
    while seen < text_tokens {
        let end = (begin + context - prefix).min(text_tokens);
        let predicted = begin + usize::from(prefix == 0);
        windows.push(Window { tokens: begin..end, counted: end - seen.max(predicted) });
        begin += stride;
        seen = end;
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_after_the_first_count_their_last_stride_of_tokens() {
        let expected = [(0..8, 7), (3..11, 3), (6..14, 3), (9..15, 1)];
        let expected = expected.map(|(tokens, counted)| Window { tokens, counted });
        assert_eq!(windows(15, 0, 8, 3).unwrap(), expected);
    }

    #[test]
    fn a_token_before_the_text_takes_a_place_and_predicts_its_first() {
        let expected = [(0..7, 7), (7..14, 7), (14..15, 1)];
        let expected = expected.map(|(tokens, counted)| Window { tokens, counted });
        assert_eq!(windows(15, 1, 8, 7).unwrap(), expected);
    }

    #[test]
    fn every_token_that_something_comes_before_is_counted_once() {
        for (prefix, context) in [(0, 2), (0, 5), (1, 2), (1, 6), (2, 7)] {
            for stride in 1..=context - prefix.max(1) {
                for text_tokens in 1..40 {
                    let windows = windows(text_tokens, prefix, context, stride).unwrap();
                    let counted: Vec<usize> = windows
                        .iter()
                        .flat_map(|window| window.tokens.end - window.counted..window.tokens.end)
                        .collect();
                    let first = usize::from(prefix == 0);
                    assert_eq!(counted, (first..text_tokens).collect::<Vec<_>>());
                    assert!(windows.iter().all(|window| prefix + window.tokens.len() <= context));
                    let predicted = |window: &Window| prefix + window.tokens.len() > window.counted;
                    assert!(windows.iter().all(predicted));
                }
            }
        }
    }

    #[test]
    fn strides_that_would_leave_tokens_out_are_refused() {
        for (prefix, context, stride) in [(0, 8, 8), (0, 8, 0), (1, 8, 8), (0, 1, 1), (1, 1, 1), (3, 2, 1)] {
            assert!(windows(100, prefix, context, stride).is_err(), "{prefix} {context} {stride}");
        }
    }
}
