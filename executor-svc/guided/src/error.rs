//! What can go wrong between a guide and a mask.

/// An error of this crate, by what it means to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    /// More than a grammar may have.
    #[error("{kind} has {found} {unit}: expected 1 to {limit}")]
    Size {
        /// What kind of guide.
        kind: &'static str,
        /// How many.
        found: usize,
        /// Of what.
        unit: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Not a grammar, or one that this library does not know, or one that takes more work than a grammar may.
    #[error("{kind} cannot be used: {reason}")]
    Invalid {
        /// What kind of guide.
        kind: &'static str,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// No grammar can guide this tokenizer.
    #[error("the model's tokenizer cannot be guided: {reason}")]
    Tokenizer {
        /// Why not.
        reason: String,
    },
    /// A grammar that takes more work at one token than is allowed, or that the vocabulary cannot write.
    #[error("the grammar cannot be followed further: {reason}")]
    Stuck {
        /// What happened.
        reason: String,
    },
}
