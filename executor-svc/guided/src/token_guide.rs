//! Follows one output through a grammar.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use llguidance::Matcher;
use toktrie::SimpleVob;

use crate::GuideError;
use crate::mask_pool::{Computed, MaskPool, reason};

/// Follows one output through a grammar, token by token.
pub struct TokenGuide {
    state: State,
    pool: Arc<MaskPool>,
}

enum State {
    /// Knows what may come next.
    Ready(Box<Matcher>, SimpleVob),
    /// The pool has the matcher.
    Computing(Receiver<Computed>),
    /// The output is whole and can have nothing more.
    Complete,
    /// There is no next token.
    Stuck(GuideError),
}

/// What an output is after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// More may come.
    Open,
    /// It is whole, and nothing more can come.
    Complete,
}

impl TokenGuide {
    /// At the beginning of an output; computes the first mask.
    pub(crate) fn new(mut matcher: Box<Matcher>, pool: Arc<MaskPool>) -> Result<Self, GuideError> {
        let mask = matcher
            .compute_mask()
            .map_err(|error| GuideError::Stuck { reason: reason(&error.to_string()) })?;
        Ok(Self { state: State::Ready(matcher, mask), pool })
    }

    /// Another output of the same grammar, at the place where this one is.
    ///
    /// # Errors
    /// [`GuideError::Stuck`] when this one is not in the middle of an output.
    pub fn fork(&mut self) -> Result<Self, GuideError> {
        self.wait();
        match &self.state {
            State::Ready(matcher, mask) => {
                // The matchers' caches are not shared: each is used by one thread at a time.
                let state = State::Ready(Box::new(matcher.deep_clone()), mask.clone());
                Ok(Self { state, pool: Arc::clone(&self.pool) })
            }
            State::Stuck(error) => Err(error.clone()),
            State::Computing(_) | State::Complete => Err(ended()),
        }
    }

    /// The tokens that may come next, end-of-sequence tokens where the output may end here: token `t` is bit `t % 32` of
    /// word `t / 32`. Waits for the mask where it is still being computed.
    ///
    /// # Errors
    /// [`GuideError::Stuck`].
    pub fn allowed(&mut self) -> Result<&[u32], GuideError> {
        self.wait();
        match &self.state {
            State::Ready(_, mask) => Ok(mask.as_slice()),
            State::Stuck(error) => Err(error.clone()),
            State::Computing(_) | State::Complete => Err(ended()),
        }
    }

    /// Whether the output may end here.
    #[must_use]
    pub fn may_end(&mut self) -> bool {
        self.wait();
        match &mut self.state {
            State::Ready(matcher, _) => matcher.is_accepting().unwrap_or(false),
            State::Complete => true,
            State::Computing(_) | State::Stuck(_) => false,
        }
    }

    /// Takes the next token of the output, and begins to compute what may come after it.
    ///
    /// # Errors
    /// [`GuideError::Stuck`], also for a token that was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<Accepted, GuideError> {
        self.wait();
        match std::mem::replace(&mut self.state, State::Complete) {
            State::Ready(mut matcher, _) => {
                if let Err(error) = matcher.consume_token(token) {
                    let error = GuideError::Stuck { reason: reason(&error.to_string()) };
                    self.state = State::Stuck(error.clone());
                    return Err(error);
                }
                if matcher.is_stopped() {
                    return Ok(Accepted::Complete);
                }
                self.state = State::Computing(self.pool.compute(matcher));
                Ok(Accepted::Open)
            }
            State::Stuck(error) => {
                self.state = State::Stuck(error.clone());
                Err(error)
            }
            State::Computing(_) | State::Complete => Err(ended()),
        }
    }

    fn wait(&mut self) {
        let State::Computing(computed) = &self.state else { return };
        self.state = match computed.recv() {
            Ok((matcher, Ok(mask))) => State::Ready(matcher, mask),
            Ok((_, Err(reason))) => State::Stuck(GuideError::Stuck { reason }),
            Err(_) => {
                State::Stuck(GuideError::Stuck { reason: "computing a mask ended abnormally".to_owned() })
            }
        };
    }
}

fn ended() -> GuideError {
    GuideError::Stuck { reason: "the output is complete".to_owned() }
}
