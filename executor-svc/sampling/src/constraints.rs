//! What a request says of particular tokens: biases, words that are not to be written, n-grams that are not to come again.

use crate::SamplingError;

/// Tokens that one request may give a bias.
pub const MAX_LOGIT_BIASES: usize = 1024;

/// Token sequences that one request may forbid.
pub const MAX_BAD_WORDS: usize = 256;

/// The largest bias, of either sign.
const MAX_BIAS: f32 = 100.0;

/// What a request says of particular tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Constraints {
    /// Added to the logits of these tokens before anything else, from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Token sequences that the output does not contain: the last token of one is not chosen after its others.
    pub bad_words: Vec<Vec<u32>>,
}

impl Constraints {
    /// Checks them against a vocabulary.
    ///
    /// # Errors
    /// [`SamplingError::TooMany`], [`SamplingError::InvalidParameter`] and [`SamplingError::NotInVocabulary`] name the
    /// field.
    pub fn validate(&self, vocab_size: usize) -> Result<(), SamplingError> {
        let at_most = |field, found: usize, limit| match found > limit {
            true => Err(SamplingError::TooMany { field, found, limit }),
            false => Ok(()),
        };
        at_most("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIASES)?;
        at_most("bad_words", self.bad_words.len(), MAX_BAD_WORDS)?;
        for &(token, value) in &self.logit_bias {
            if token as usize >= vocab_size {
                return Err(SamplingError::NotInVocabulary { field: "logit_bias", token, vocab_size });
            }
            // Also false for NaN.
            if !(-MAX_BIAS..=MAX_BIAS).contains(&value) {
                let expected = "a number from -100 to 100";
                return Err(SamplingError::InvalidParameter { field: "logit_bias", value, expected });
            }
        }
        Ok(())
    }
}

/// The constraints of a sequence, and its tokens as far as they need them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Constrained {
    constraints: Constraints,
    /// The length of an n-gram that is not to come again; 0: any may.
    ngram: usize,
    /// Prompt and output; empty while nothing looks at them.
    history: Vec<u32>,
    /// Where the output begins in it.
    output: usize,
}

impl Constrained {
    pub(crate) fn new(ngram: usize) -> Self {
        Self { ngram, ..Self::default() }
    }

    pub(crate) fn set(&mut self, mut constraints: Constraints) {
        constraints.bad_words.retain(|word| !word.is_empty());
        self.constraints = constraints;
    }

    /// Whether they leave all logits as they are.
    pub(crate) fn is_empty(&self) -> bool {
        let Constraints { logit_bias, bad_words } = &self.constraints;
        self.ngram == 0 && logit_bias.is_empty() && bad_words.is_empty()
    }

    fn looks_back(&self) -> bool {
        self.ngram > 0 || self.constraints.bad_words.iter().any(|word| word.len() > 1)
    }

    pub(crate) fn push_prompt(&mut self, tokens: &[u32]) {
        if self.looks_back() {
            self.history.extend_from_slice(tokens);
            self.output = self.history.len();
        }
    }

    pub(crate) fn push_output(&mut self, token: u32) {
        if self.looks_back() {
            self.history.push(token);
        }
    }

    /// Adds the biases. Finite logits stay finite; tokens beyond the logits are left out.
    pub(crate) fn bias(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.constraints.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = (*logit + bias).clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Makes the tokens impossible that would end a bad word or repeat an n-gram.
    pub(crate) fn forbid(&self, logits: &mut [f32]) {
        let mut forbid = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        let output = &self.history[self.output..];
        for word in &self.constraints.bad_words {
            if let Some((&last, before)) = word.split_last()
                && output.ends_with(before)
            {
                forbid(last);
            }
        }
        if self.ngram > 0 && self.history.len() >= self.ngram {
            let (_, latest) = self.history.split_at(self.history.len() - (self.ngram - 1));
            for ngram in self.history.windows(self.ngram) {
                if let Some((&last, before)) = ngram.split_last()
                    && before == latest
                {
                    forbid(last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(constrained: &Constrained, vocab_size: usize) -> Vec<usize> {
        let mut logits = vec![0.0; vocab_size];
        constrained.forbid(&mut logits);
        (0..vocab_size).filter(|&token| logits[token] == f32::NEG_INFINITY).collect()
    }

    #[test]
    fn a_bad_word_is_cut_before_its_last_token_and_only_where_the_output_has_the_others() {
        let mut constrained = Constrained::new(0);
        let bad_words = vec![vec![7], vec![1, 2, 3], vec![], vec![2, 4], vec![99]];
        constrained.set(Constraints { bad_words, ..Constraints::default() });
        // The prompt's tokens are not the output's.
        constrained.push_prompt(&[1, 2]);
        assert_eq!(forbidden(&constrained, 10), [7]);
        constrained.push_output(1);
        assert_eq!(forbidden(&constrained, 10), [7]);
        constrained.push_output(2);
        assert_eq!(forbidden(&constrained, 10), [3, 4, 7]);
        constrained.push_output(5);
        assert_eq!(forbidden(&constrained, 10), [7]);
    }

    #[test]
    fn what_followed_the_latest_tokens_before_does_not_follow_again() {
        let mut constrained = Constrained::new(3);
        constrained.push_prompt(&[1, 2, 3, 1, 2, 4, 1]);
        assert!(forbidden(&constrained, 6).is_empty());
        constrained.push_output(2);
        assert_eq!(forbidden(&constrained, 6), [3, 4]);
        let mut single = Constrained::new(1);
        single.push_prompt(&[1, 4]);
        single.push_output(5);
        assert_eq!(forbidden(&single, 6), [1, 4, 5]);
        assert!(forbidden(&Constrained::new(2), 6).is_empty());
    }

    #[test]
    fn biases_are_added_and_leave_finite_logits() {
        let mut constrained = Constrained::new(0);
        let logit_bias = vec![(0, 2.5), (2, -100.0), (3, 100.0), (50, 1.0)];
        constrained.set(Constraints { logit_bias, ..Constraints::default() });
        let mut logits = [1.0, 1.0, f32::MIN, f32::MAX];
        constrained.bias(&mut logits);
        assert_eq!(logits, [3.5, 1.0, f32::MIN, f32::MAX]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let bias = |token, value| Constraints { logit_bias: vec![(token, value)], ..Constraints::default() };
        assert_eq!(bias(9, -100.0).validate(10), Ok(()));
        let out = SamplingError::NotInVocabulary { field: "logit_bias", token: 10, vocab_size: 10 };
        assert_eq!(bias(10, 1.0).validate(10), Err(out));
        for value in [100.5, -101.0, f32::NAN, f32::INFINITY] {
            let error = bias(0, value).validate(10).unwrap_err();
            assert!(matches!(error, SamplingError::InvalidParameter { field: "logit_bias", .. }), "{error}");
        }
        let many = Constraints { bad_words: vec![vec![1]; 257], ..Constraints::default() };
        let error = SamplingError::TooMany { field: "bad_words", found: 257, limit: MAX_BAD_WORDS };
        assert_eq!(many.validate(10), Err(error));
    }
}
