//! Cache tensors that only sliding windows read hold no more than the windows can still see.

use super::signature::{CacheShape, Signature};
use super::{PlannedStep, Step};
use crate::limits::StepLimits;

/// Where the positions of such a tensor lie: position `p` in row `p % rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ring {
    /// A token sees so many positions at most, its own and those before it.
    pub(crate) window: usize,
    pub(crate) rows: usize,
}

impl Ring {
    /// The ring for steps of at most `chunk` new tokens of a sequence. All of them are written before the first one is
    /// attended from, which sees `window - 1` positions before its own.
    pub(crate) fn new(window: usize, chunk: usize) -> Self {
        Self { window, rows: window.saturating_add(chunk).saturating_sub(1).max(1) }
    }

    /// Whether a sequence of `len` tokens can go on, of which the ring held up to `written` since it was empty: whether
    /// no position before the next token's that it sees has been written over.
    pub(crate) fn holds(self, len: usize, written: usize) -> bool {
        let first_seen = (len + 1).saturating_sub(self.window);
        let first_held = written.saturating_sub(self.rows);
        first_held <= first_seen || first_seen >= len
    }
}

/// Makes rings of the tensors that nothing but attention with a window reads.
pub(super) fn assign_rings(signature: &mut Signature, steps: &[PlannedStep], limits: StepLimits) {
    for (tensor, shape) in signature.cache.iter_mut().enumerate() {
        let readers = steps.iter().filter_map(|planned| match &planned.step {
            Step::CachedAttention { key, value, attention, .. } if [*key, *value].contains(&tensor) => {
                Some(attention)
            }
            _ => None,
        });
        // The widest window counts; a reader without one sees everything.
        let windows = readers.map(|attention| attention.window.filter(|_| attention.causal));
        let widest = windows.reduce(|widest, window| Some(widest?.max(window?))).flatten();
        shape.ring =
            widest.map(|window| Ring::new(window, limits.chunk)).filter(|ring| ring.rows < shape.length);
    }
}

impl CacheShape {
    /// Rows of a tensor for sequences of at most `length` tokens.
    pub(crate) fn rows(&self, length: usize) -> usize {
        self.ring.map_or(length, |ring| ring.rows.min(length))
    }

    /// Bytes of a row, all heads together.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dtype.size() * self.heads * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_backend_conformance::Rng;

    use super::*;

    /// A ring whose rows say which position they hold, and whether that position was written by tokens that are still
    /// in the sequence.
    struct Simulated {
        ring: Ring,
        rows: Vec<Option<(usize, u64)>>,
        /// By position, the write that its token came with.
        tokens: Vec<u64>,
        writes: u64,
        written: usize,
    }

    impl Simulated {
        fn new(ring: Ring) -> Self {
            Self { ring, rows: vec![None; ring.rows], tokens: Vec::new(), writes: 0, written: 0 }
        }

        fn append(&mut self, tokens: usize) {
            let first = self.tokens.len();
            for position in first..first + tokens {
                self.writes += 1;
                self.tokens.push(self.writes);
                self.rows[position % self.ring.rows] = Some((position, self.writes));
            }
            self.written = self.written.max(self.tokens.len());
        }

        /// Whether a query at `position` finds all that it sees.
        fn sees_all(&self, position: usize) -> bool {
            let first = (position + 1).saturating_sub(self.ring.window);
            (first..(position + 1).min(self.tokens.len()))
                .all(|key| self.rows[key % self.ring.rows] == Some((key, self.tokens[key])))
        }
    }

    #[test]
    fn a_ring_holds_what_is_seen_through_any_steps_and_cuts() {
        let mut rng = Rng::new(21);
        let mut number = |bound: usize| rng.below(bound);
        let (mut kept, mut lost) = (0, 0);
        for _ in 0..400 {
            let (window, chunk) = (1 + number(12), 1 + number(9));
            let mut sequence = Simulated::new(Ring::new(window, chunk));
            assert_eq!(sequence.ring.rows, window + chunk - 1);
            for _ in 0..60 {
                let first = sequence.tokens.len();
                sequence.append(1 + number(chunk));
                // Every new token attends after all of them are written.
                for position in first..sequence.tokens.len() {
                    assert!(sequence.sees_all(position), "window {window} chunk {chunk} position {position}");
                }
                if number(3) == 0 {
                    let len = number(sequence.tokens.len() + 1);
                    sequence.tokens.truncate(len);
                    let holds = sequence.ring.holds(len, sequence.written);
                    assert_eq!(holds, sequence.sees_all(len), "window {window} chunk {chunk} cut to {len}");
                    (kept, lost) = (kept + usize::from(holds), lost + usize::from(!holds));
                    if !holds || len == 0 {
                        sequence.tokens.clear();
                        sequence.written = 0;
                    }
                }
            }
        }
        assert!(kept > 100 && lost > 100, "{kept} cuts held and {lost} did not");
    }

    #[test]
    fn after_one_token_a_step_a_cut_by_a_whole_step_is_held() {
        let ring = Ring::new(512, 64);
        for written in [100, 575, 576, 5000] {
            assert!(ring.holds(written, written));
            assert!(ring.holds(written - 64, written));
        }
        assert!(!ring.holds(5000 - 65, 5000));
        assert!(ring.holds(1, 575) && !ring.holds(1, 576));
        assert!(ring.holds(0, 576), "nothing comes before the first token");
    }
}
