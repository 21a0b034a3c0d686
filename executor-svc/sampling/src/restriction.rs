//! The tokens that may be chosen at one step.

/// The tokens that may be chosen at one step, beside what the sampler's own parameters forbid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restriction<'a> {
    /// Not these: end-of-sequence and stop tokens while there are fewer than the least number of tokens.
    pub suppressed: &'a [u32],
    /// Only these, where there is a grammar: token `t` is bit `t % 32` of word `t / 32`, and no token beyond the words.
    pub allowed: Option<&'a [u32]>,
}

impl<'a> Restriction<'a> {
    /// All tokens but these.
    #[must_use]
    pub const fn without(suppressed: &'a [u32]) -> Self {
        Self { suppressed, allowed: None }
    }

    /// Makes all other tokens impossible.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for &token in self.suppressed {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let Some(allowed) = self.allowed else { return };
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
            if word != u32::MAX {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_and_not_suppressed_is_left() {
        let allowed = [u32::MAX, 0b101];
        let mut logits = vec![0.5; 70];
        Restriction { suppressed: &[3, 34, 900], allowed: Some(&allowed) }.apply(&mut logits);
        let left: Vec<usize> = (0..70).filter(|&token| logits[token] == 0.5).collect();
        let expected: Vec<usize> = (0..32).filter(|&token| token != 3).chain([32]).collect();
        assert_eq!(left, expected);
        assert!(logits.iter().all(|&logit| logit == 0.5 || logit == f32::NEG_INFINITY));
    }
}
