//! From a step's logits to tokens, text and messages: for many sequences by several threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::GenerateError;
use super::generation::{Generation, Progress};

/// Logits of a step for which another thread is worth its start.
const LOGITS_A_THREAD: usize = 1 << 19;

/// What a step gave to a sequence.
pub(super) struct Output<'a> {
    pub(super) generation: &'a mut Generation,
    pub(super) logits: &'a mut [f32],
    /// How many of its tokens were computed.
    pub(super) tokens: usize,
    /// Whether it is over, from then on.
    pub(super) has_ended: &'a mut bool,
}

/// Takes every sequence on by what the step gave.
pub(super) fn advance(mut outputs: Vec<Output<'_>>, threads: usize, now: Instant) {
    let logits: usize = outputs.iter().map(|output| output.logits.len()).sum();
    let threads = logits.div_ceil(LOGITS_A_THREAD).min(threads).max(1);
    let part = outputs.len().div_ceil(threads).max(1);
    let mut parts = outputs.chunks_mut(part);
    let Some(own) = parts.next() else { return };
    std::thread::scope(|scope| {
        for part in parts {
            scope.spawn(move || part.iter_mut().for_each(|output| output.advance(now)));
        }
        own.iter_mut().for_each(|output| output.advance(now));
    });
}

/// What a generation is told whose own part of a step panicked.
pub(super) fn abnormal_end() -> GenerateError {
    GenerateError::Text("choosing the next token ended abnormally".to_owned())
}

impl Output<'_> {
    fn advance(&mut self, now: Instant) {
        let advanced = AssertUnwindSafe(|| {
            let progress = self.generation.advance(self.logits, self.tokens, now);
            // After the client has its token.
            self.generation.share();
            progress
        });
        // A fault in one generation's options ends it, and no other.
        let progress = catch_unwind(advanced).unwrap_or_else(|_| self.generation.fail(abnormal_end()));
        *self.has_ended = matches!(progress, Progress::Ended);
    }
}
