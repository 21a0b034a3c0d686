//! Log-probabilities of a prompt's tokens, made as its chunks are computed: no more logits are kept than one chunk's.

use std::ops::Range;

use roundhouse_sampling::{SamplingError, Scorer, TokenScore};

/// What a request wants to know of its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// The first token that gets a log-probability, by its place in the history.
    pub first: usize,
    /// Log-probabilities of the n most probable tokens beside the token's own.
    pub top: usize,
}

/// Scores the tokens of one prompt. A row of logits at a position is of the token after it, so the rows that matter end
/// one before the prompt does and begin one before its first token to be scored.
pub(super) struct PromptScores {
    /// The tokens that are still to be scored, by their places in the history.
    scored: Range<usize>,
    top: usize,
    scorer: Scorer,
}

impl PromptScores {
    /// Of a prompt that ends before `end`.
    pub(super) fn new(asked: PromptLogprobs, end: usize) -> Self {
        // Nothing comes before the first token of a sequence that it could be predicted from.
        Self { scored: asked.first.max(1)..end, top: asked.top, scorer: Scorer::default() }
    }

    /// Whether a step that computes these positions gives logits that a token is scored by.
    pub(super) fn needs(&self, step: &Range<usize>) -> bool {
        let next = step.start + 1..step.end + 1;
        next.start.max(self.scored.start) < next.end.min(self.scored.end)
    }

    /// The scores of the tokens after these positions that are to be scored, in order. `logits` are those of all of the
    /// step's positions, `[step, vocab_size]`; `history` is the whole sequence. Each is scored once, even where positions
    /// are computed again because the cache was dropped.
    pub(super) fn score(
        &mut self,
        step: &Range<usize>,
        logits: &[f32],
        history: &[u32],
    ) -> Result<Vec<TokenScore>, SamplingError> {
        let vocab_size = logits.len().checked_div(step.len()).unwrap_or(0).max(1);
        let mut scores = Vec::new();
        for (next, row) in (step.start + 1..).zip(logits.chunks_exact(vocab_size)) {
            if let Some(&token) = history.get(next).filter(|_| self.scored.contains(&next)) {
                scores.push(self.scorer.score(row, token, self.top)?);
            }
        }
        self.scored.start = self.scored.start.max(step.end + 1).min(self.scored.end);
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB_SIZE: usize = 5;

    /// Logits of a step: the token that position `p` makes most probable is `p` modulo the vocabulary.
    fn logits(step: &Range<usize>) -> Vec<f32> {
        let row = |position| {
            (0..VOCAB_SIZE).map(move |token| f32::from(u8::from(token == position % VOCAB_SIZE)) * 4.0)
        };
        step.clone().flat_map(row).collect()
    }

    /// The scores of a prompt that is computed in steps of `chunk` from `cached` on.
    fn scores(scores: &mut PromptScores, history: &[u32], cached: usize, chunk: usize) -> Vec<TokenScore> {
        let mut all = Vec::new();
        let mut start = cached;
        while start < history.len() {
            let step = start..history.len().min(start + chunk);
            let needed = scores.needs(&step);
            let of_step = match needed {
                true => scores.score(&step, &logits(&step), history).unwrap(),
                false => Vec::new(),
            };
            assert_eq!(needed, !of_step.is_empty(), "{step:?}");
            all.extend(of_step);
            start = step.end;
        }
        all
    }

    #[test]
    fn every_chunk_size_gives_each_token_but_the_first_its_score_once() {
        // Each token is the one that the position before it makes most probable, but the last is not.
        let mut history: Vec<u32> = (0..11).map(|place| (place + 4) % 5).collect();
        history.push(3);
        let asked = PromptLogprobs { first: 0, top: 2 };
        let whole = scores(&mut PromptScores::new(asked, history.len()), &history, 0, history.len());
        assert_eq!(whole.len(), history.len() - 1);
        let likely = 4.0 - (4_f64.exp() + 4.0).ln();
        for (place, score) in whole.iter().enumerate() {
            let expected = if place == 10 { likely - 4.0 } else { likely };
            assert!((f64::from(score.logprob) - expected).abs() < 1e-6, "{place}: {score:?}");
            assert_eq!(score.top_logprobs[0].0 as usize, place % VOCAB_SIZE);
        }
        for chunk in 1..history.len() {
            let chunked = scores(&mut PromptScores::new(asked, history.len()), &history, 0, chunk);
            assert_eq!(chunked, whole, "chunks of {chunk}");
        }
    }

    #[test]
    fn a_later_turn_scores_its_own_tokens_whether_the_history_is_cached_or_not() {
        let history: Vec<u32> = (0..12).map(|place| place % 5).collect();
        let asked = PromptLogprobs { first: 7, top: 0 };
        let cached = scores(&mut PromptScores::new(asked, 12), &history, 6, 12);
        assert_eq!(cached.len(), 5);
        for chunk in 1..12 {
            assert_eq!(scores(&mut PromptScores::new(asked, 12), &history, 0, chunk), cached);
        }
    }

    #[test]
    fn what_is_computed_again_is_not_scored_again() {
        let history: Vec<u32> = (0..12).map(|place| place % 5).collect();
        let asked = PromptLogprobs { first: 0, top: 0 };
        let whole = scores(&mut PromptScores::new(asked, 12), &history, 0, 12);
        let mut interrupted = PromptScores::new(asked, 12);
        let mut found = interrupted.score(&(0..5), &logits(&(0..5)), &history).unwrap();
        found.extend(scores(&mut interrupted, &history, 0, 12));
        assert_eq!(found, whole);
    }

    #[test]
    fn rows_of_the_history_before_and_of_the_output_are_not_needed() {
        let turn = PromptScores::new(PromptLogprobs { first: 7, top: 0 }, 12);
        assert!(!turn.needs(&(0..6)) && turn.needs(&(6..7)) && turn.needs(&(0..7)));
        assert!(turn.needs(&(10..11)) && !turn.needs(&(11..12)) && !turn.needs(&(12..13)));
        let nothing = PromptScores::new(PromptLogprobs { first: 0, top: 0 }, 1);
        assert!(!nothing.needs(&(0..1)));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error() {
        let mut scores = PromptScores::new(PromptLogprobs { first: 0, top: 0 }, 3);
        let broken = [0.0, f32::NAN];
        assert!(scores.score(&(0..1), &broken, &[0, 1, 0]).is_err());
    }
}
