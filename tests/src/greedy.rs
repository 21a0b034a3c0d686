//! Greedy decoding compared with a reference that was computed in another precision.
//!
//! Where the reference's two largest logits are close, rounding alone may swap them, and from there on the two
//! continuations have nothing to do with each other. So a swap is allowed only at such a step, and the comparison then
//! goes on from the *reference's* tokens (teacher forcing), so that every step is checked.

use anyhow::{Result, bail, ensure};

/// Whether a greedy token has to be the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// No error within the bound can change the choice.
    Required,
    /// An error within the bound may have changed it.
    NotRequired,
}

/// The rule: tokens must be equal wherever the reference's margin exceeds what the precision's error can undo.
///
/// `reference_margin` is the reference's largest logit minus its second largest. `error_bound` is the largest error that the
/// precision under test may have in any one logit: the largest can fall by it while another rises by it, so the choice
/// is safe above twice the bound.
pub fn margin_rule(reference_margin: f32, error_bound: f32) -> Agreement {
    if reference_margin > 2.0 * error_bound { Agreement::Required } else { Agreement::NotRequired }
}

/// What a finished [`GreedyCheck`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GreedyReport {
    /// Steps compared: all of the reference's.
    pub steps: usize,
    /// Steps at which [`margin_rule`] required the reference's token. A test should ask for enough of them.
    pub required: usize,
    /// Steps at which another token was found, all allowed.
    pub divergences: Vec<usize>,
}

/// Compares greedy generation with a reference, going on from the reference's tokens after an allowed divergence.
///
/// ```
/// # use roundhouse_tests::greedy::GreedyCheck;
/// # fn generate(prompt: &[u32], tokens: usize) -> anyhow::Result<Vec<u32>> { Ok(vec![prompt[0] + 4; tokens]) }
/// let mut check = GreedyCheck::new(&[1, 2], &[5, 5, 5], &[0.9, 0.8, 0.7], 0.01)?;
/// while let Some((prompt, tokens)) = check.next_run() {
///     check.observe(&generate(&prompt, tokens)?)?;
/// }
/// assert!(check.report().divergences.is_empty());
/// # anyhow::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct GreedyCheck<'a> {
    prompt: &'a [u32],
    reference: &'a [u32],
    margins: &'a [f32],
    error_bound: f32,
    compared: usize,
    divergences: Vec<usize>,
}

impl<'a> GreedyCheck<'a> {
    /// A comparison with `reference`, the greedy continuation of `prompt`, whose `margins` are those of each step.
    ///
    /// # Errors
    /// When there is not one margin a token.
    pub fn new(
        prompt: &'a [u32],
        reference: &'a [u32],
        margins: &'a [f32],
        error_bound: f32,
    ) -> Result<Self> {
        ensure!(
            reference.len() == margins.len(),
            "{} tokens, but {} margins",
            reference.len(),
            margins.len()
        );
        Ok(Self { prompt, reference, margins, error_bound, compared: 0, divergences: Vec::new() })
    }

    /// The prompt to generate from and how many tokens, not stopping at end-of-sequence; `None` when all steps are
    /// compared.
    pub fn next_run(&self) -> Option<(Vec<u32>, usize)> {
        let (fed, left) = self.reference.split_at(self.compared);
        (!left.is_empty()).then(|| ([self.prompt, fed].concat(), left.len()))
    }

    /// Takes what was generated for [`next_run`](Self::next_run).
    ///
    /// # Errors
    /// When another number of tokens was generated than asked for, or a token differs where [`margin_rule`] requires
    /// the reference's.
    pub fn observe(&mut self, generated: &[u32]) -> Result<()> {
        let left = self.reference.len() - self.compared;
        ensure!(generated.len() == left, "asked for {left} tokens, found {}", generated.len());
        for &found in generated {
            let step = self.compared;
            let (expected, margin) = (self.reference[step], self.margins[step]);
            self.compared += 1;
            if found == expected {
                continue;
            }
            if margin_rule(margin, self.error_bound) == Agreement::Required {
                bail!(
                    "step {step}: expected token {expected}, found {found}; the reference's margin is {margin}, the \
                     bound on a logit's error {}",
                    self.error_bound
                );
            }
            self.divergences.push(step);
            return Ok(());
        }
        Ok(())
    }

    /// What was seen so far.
    pub fn report(&self) -> GreedyReport {
        let required = |margin: &&f32| margin_rule(**margin, self.error_bound) == Agreement::Required;
        GreedyReport {
            steps: self.compared,
            required: self.margins[..self.compared].iter().filter(required).count(),
            divergences: self.divergences.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: [u32; 2] = [1, 2];
    const REFERENCE: [u32; 4] = [10, 11, 12, 13];
    const MARGINS: [f32; 4] = [1.0, 0.1, 1.0, 1.0];

    fn check() -> GreedyCheck<'static> {
        GreedyCheck::new(&PROMPT, &REFERENCE, &MARGINS, 0.06).unwrap()
    }

    #[test]
    fn agreement_is_required_above_twice_the_bound() {
        assert_eq!(margin_rule(0.25, 0.125), Agreement::NotRequired);
        assert_eq!(margin_rule(0.26, 0.125), Agreement::Required);
        assert_eq!(margin_rule(0.0, 0.0), Agreement::NotRequired);
    }

    #[test]
    fn equal_tokens_end_the_check_in_one_run() {
        let mut check = check();
        assert_eq!(check.next_run(), Some((PROMPT.to_vec(), 4)));
        check.observe(&REFERENCE).unwrap();
        assert_eq!(check.next_run(), None);
        assert_eq!(check.report(), GreedyReport { steps: 4, required: 3, divergences: vec![] });
    }

    #[test]
    fn after_an_allowed_divergence_the_reference_is_fed() {
        let mut check = check();
        check.observe(&[10, 99, 98, 97]).unwrap();
        assert_eq!(check.next_run(), Some((vec![1, 2, 10, 11], 2)));
        check.observe(&[12, 13]).unwrap();
        assert_eq!(check.next_run(), None);
        assert_eq!(check.report(), GreedyReport { steps: 4, required: 3, divergences: vec![1] });
    }

    #[test]
    fn a_divergence_at_a_wide_margin_is_an_error() {
        let error = check().observe(&[10, 11, 99, 13]).unwrap_err();
        assert!(error.to_string().starts_with("step 2: expected token 12, found 99"), "{error}");
    }

    #[test]
    fn a_wrong_number_of_tokens_is_an_error() {
        assert!(check().observe(&REFERENCE[..3]).is_err());
        assert!(GreedyCheck::new(&PROMPT, &REFERENCE, &MARGINS[..3], 0.0).is_err());
    }
}
