//! Drafts of the next tokens by prompt lookup: what followed the latest tokens when they were there before.

/// Looks for the latest tokens of a sequence earlier in it (Saxena 2023, Prompt Lookup Decoding).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLookup {
    /// The most tokens that are compared, at least 1; where so many are not found, fewer.
    pub max_ngram: usize,
    /// The most tokens of a draft.
    pub num_draft_tokens: usize,
}

impl PromptLookup {
    /// Appends to `draft` what followed the longest of the history's endings, up to `max_ngram` tokens, that was there
    /// before, and of several the latest: at most `limit` and `num_draft_tokens`. Where that reaches the history's end it
    /// goes on with the draft itself, as a loop does. One pass over the history.
    pub(super) fn draft(&self, history: &[u32], limit: usize, draft: &mut Vec<u32>) {
        let Some(found) = self.find(history) else { return };
        let first = draft.len();
        for place in found..found + limit.min(self.num_draft_tokens) {
            let drafted = place.checked_sub(history.len()).and_then(|after| draft.get(first + after));
            let token = history.get(place).or(drafted).copied();
            draft.extend(token);
        }
    }

    /// Where what followed begins.
    fn find(&self, history: &[u32]) -> Option<usize> {
        let (&last, before) = history.split_last()?;
        let (mut longest, mut found) = (0, None);
        for (place, _) in before.iter().enumerate().rev().filter(|&(_, &token)| token == last) {
            let pairs = before[..place].iter().rev().zip(before.iter().rev());
            let length = 1 + pairs.take(self.max_ngram.saturating_sub(1)).take_while(|(a, b)| a == b).count();
            if length > longest {
                (longest, found) = (length, Some(place + 1));
            }
            if length >= self.max_ngram {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKUP: PromptLookup = PromptLookup { max_ngram: 3, num_draft_tokens: 4 };

    fn draft(lookup: PromptLookup, history: &[u32], limit: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        lookup.draft(history, limit, &mut draft);
        draft
    }

    #[test]
    fn what_followed_the_longest_ending_is_drafted() {
        // 1 2 3 was followed by 4; the later 3 by 9.
        let history = [1, 2, 3, 4, 5, 6, 7, 8, 3, 9, 1, 2, 3];
        assert_eq!(draft(LOOKUP, &history, 10), [4, 5, 6, 7]);
        assert_eq!(draft(LOOKUP, &history, 2), [4, 5]);
        assert_eq!(draft(PromptLookup { max_ngram: 1, ..LOOKUP }, &history, 2), [9, 1]);
        // Of equals the latest.
        assert_eq!(draft(LOOKUP, &[3, 4, 3, 5, 3], 1), [5]);
        for nothing in [&[1, 2, 3][..], &[1], &[]] {
            assert!(draft(LOOKUP, nothing, 10).is_empty());
        }
        assert!(draft(LOOKUP, &[1, 1], 0).is_empty());
    }

    #[test]
    fn a_loop_goes_on() {
        assert_eq!(draft(LOOKUP, &[7, 7, 7, 7], 10), [7; 4]);
        assert_eq!(draft(LOOKUP, &[5, 1, 2, 1, 2], 10), [1, 2, 1, 2]);
    }

    #[test]
    fn a_draft_is_the_one_that_a_search_of_all_places_finds() {
        // A small linear congruential generator: any histories, the same ones in every run.
        let mut state = 1_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound) as usize
        };
        for _ in 0..20_000 {
            let history: Vec<u32> = (0..next(40)).map(|_| next(4) as u32).collect();
            let lookup = PromptLookup { max_ngram: 1 + next(5), num_draft_tokens: 1 + next(5) };
            let found = (1..=lookup.max_ngram.min(history.len())).rev().find_map(|length| {
                let ending = &history[history.len() - length..];
                let start =
                    (0..history.len() - length).rev().find(|&start| history[start..].starts_with(ending));
                start.map(|start| start + length)
            });
            let mut expected = Vec::new();
            let mut longer = history.clone();
            for place in found.map_or(0..0, |found| found..found + lookup.num_draft_tokens) {
                expected.push(longer[place]);
                longer.push(longer[place]);
            }
            assert_eq!(draft(lookup, &history, usize::MAX), expected, "{lookup:?} {history:?}");
        }
    }
}
