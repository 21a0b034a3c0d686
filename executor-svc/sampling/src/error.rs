//! What can go wrong between logits and a token.

/// An error of this crate, by what it means to the caller.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A parameter that cannot be.
    #[error("{field} is {value}: expected {expected}")]
    InvalidParameter {
        /// The parameter's name in [`crate::SamplingParams`].
        field: &'static str,
        /// What it was.
        value: f32,
        /// Its range.
        expected: &'static str,
    },
    /// More of something than a request may have.
    #[error("{field} has {found} entries: expected at most {limit}")]
    TooMany {
        /// The parameter's name.
        field: &'static str,
        /// How many.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A token that the model does not have.
    #[error("{field} names token {token}, which is not in the vocabulary of {vocab_size}")]
    NotInVocabulary {
        /// The parameter's name.
        field: &'static str,
        /// The token.
        token: u32,
        /// Tokens are below this.
        vocab_size: usize,
    },
    /// More log-probabilities asked for than are given.
    #[error("logprobs is {found}: expected at most {limit}")]
    TooManyLogprobs {
        /// How many.
        found: usize,
        /// [`crate::MAX_TOP_LOGPROBS`].
        limit: usize,
    },
    /// The model computed a logit that is NaN or infinite, so none of them means anything.
    #[error("the logit of token {token} is {value}")]
    LogitNotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// As [`SamplingError::LogitNotFinite`], of logits that only the device has seen.
    #[error("a logit is NaN or infinite")]
    LogitsNotFinite,
    /// No logits, or all of them suppressed.
    #[error("the request's restrictions leave no token to choose from")]
    NoCandidate,
}
