//! Which sequences take part in the next step, and with how many tokens: a pure function.

/// What the policy sees of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Tokens that are not in the cache yet: 1 while decoding, more while prefilling.
    pub pending: usize,
    /// Whether it can take part: its client has room for another message.
    pub ready: bool,
    /// Whether all tokens of its next chunk have logits, for the prompt's log-probabilities.
    pub scored: bool,
}

/// The bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Sequences in it.
    pub max_sequences: usize,
    /// New tokens in it, over all sequences.
    pub max_tokens: usize,
    /// Of those, tokens of scored prompts, at least 1: each has a row of logits as long as the vocabulary.
    pub max_scored_tokens: usize,
}

/// A sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its place among the candidates.
    pub index: usize,
    /// How many of its pending tokens.
    pub tokens: usize,
}

/// Plans a step. Sequences are taken round robin from `first` on, up to the limit. Decoding ones get their one token
/// before any prompt gets a chunk, so a long prompt does not hold up running streams; prompts share what is left of
/// the token budget equally, what one does not need going to the next, and scored prompts share theirs likewise. Every
/// sequence that is taken gets at least one token; `max_tokens` is exceeded only if more sequences than that decode.
#[must_use]
pub fn plan(candidates: &[Candidate], first: usize, limits: StepLimits) -> Vec<Share> {
    let count = candidates.len();
    let mut taken: Vec<usize> = (0..count)
        .map(|offset| (first + offset) % count)
        .filter(|&index| candidates[index].ready && candidates[index].pending > 0)
        .take(limits.max_sequences)
        .collect();
    let decoding = taken.iter().filter(|&&index| candidates[index].pending == 1).count();
    let mut budget = limits.max_tokens.saturating_sub(decoding);
    // Short prompts first: what they leave of their share goes to the longer ones.
    taken.sort_by_key(|&index| candidates[index].pending);
    let mut prompts = taken.len() - decoding;
    let is_scored_prompt = |&&index: &&usize| candidates[index].scored && candidates[index].pending > 1;
    let mut scored_prompts = taken.iter().filter(is_scored_prompt).count();
    let mut scored_budget = limits.max_scored_tokens;
    let mut shares = Vec::with_capacity(taken.len());
    for index in taken {
        let pending = candidates[index].pending;
        let tokens = if pending == 1 {
            1
        } else {
            let share = budget / prompts;
            prompts -= 1;
            let mut tokens = pending.min(share);
            if candidates[index].scored {
                tokens = tokens.min(scored_budget / scored_prompts);
                scored_prompts -= 1;
                scored_budget -= tokens;
            }
            if tokens == 0 {
                continue;
            }
            budget -= tokens;
            tokens
        };
        shares.push(Share { index, tokens });
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StepLimits = StepLimits { max_sequences: 4, max_tokens: 10, max_scored_tokens: 6 };

    fn ready(pending: usize) -> Candidate {
        Candidate { pending, ready: true, scored: false }
    }

    fn scored(pending: usize) -> Candidate {
        Candidate { scored: true, ..ready(pending) }
    }

    fn tokens(candidates: &[Candidate], first: usize) -> Vec<(usize, usize)> {
        let mut shares: Vec<_> =
            plan(candidates, first, LIMITS).into_iter().map(|share| (share.index, share.tokens)).collect();
        shares.sort_unstable();
        shares
    }

    #[test]
    fn decoding_goes_first_and_a_prompt_gets_the_rest() {
        assert_eq!(tokens(&[ready(100), ready(1), ready(1)], 0), [(0, 8), (1, 1), (2, 1)]);
    }

    #[test]
    fn prompts_share_and_the_short_one_leaves_its_rest_to_the_long_one() {
        assert_eq!(tokens(&[ready(100), ready(2)], 0), [(0, 8), (1, 2)]);
        assert_eq!(tokens(&[ready(100), ready(100)], 0), [(0, 5), (1, 5)]);
    }

    #[test]
    fn sequences_beyond_the_limit_take_turns() {
        let six = [ready(1); 6];
        assert_eq!(tokens(&six, 0).iter().map(|share| share.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(tokens(&six, 4).iter().map(|share| share.0).collect::<Vec<_>>(), [0, 1, 4, 5]);
    }

    #[test]
    fn one_whose_client_has_no_room_is_left_out() {
        assert_eq!(tokens(&[Candidate { ready: false, ..ready(1) }, ready(1)], 0), [(1, 1)]);
        assert!(plan(&[], 0, LIMITS).is_empty());
    }

    #[test]
    fn scored_prompts_share_fewer_tokens_and_leave_the_rest_to_others() {
        assert_eq!(tokens(&[scored(100)], 0), [(0, 6)]);
        assert_eq!(tokens(&[scored(100), scored(2)], 0), [(0, 4), (1, 2)]);
        assert_eq!(tokens(&[scored(100), scored(100), ready(100)], 0), [(0, 3), (1, 3), (2, 4)]);
        let one_row = StepLimits { max_scored_tokens: 1, ..LIMITS };
        let shares = plan(&[scored(50), scored(40), ready(1)], 0, one_row);
        assert_eq!(shares.iter().map(|share| share.tokens).sum::<usize>(), 2, "{shares:?}");
    }

    #[test]
    fn more_prompts_than_tokens_still_makes_progress() {
        let limits = StepLimits { max_sequences: 8, max_tokens: 3, max_scored_tokens: 3 };
        let shares = plan(&[ready(50); 8], 0, limits);
        assert_eq!(shares.iter().map(|share| share.tokens).sum::<usize>(), 3);
    }

    #[test]
    fn every_plan_keeps_its_bounds() {
        // A small linear congruential generator: any states, the same ones in every run.
        let mut state = 1_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound) as usize
        };
        for _ in 0..20_000 {
            let candidates: Vec<_> = (0..next(12))
                .map(|_| Candidate {
                    pending: if next(2) == 0 { 1 } else { next(700) },
                    ready: next(4) > 0,
                    scored: next(3) == 0,
                })
                .collect();
            let limits = StepLimits {
                max_sequences: 1 + next(8),
                max_tokens: 1 + next(600),
                max_scored_tokens: 1 + next(100),
            };
            let first = next(16);
            let shares = plan(&candidates, first, limits);
            assert!(shares.len() <= limits.max_sequences);
            let total: usize = shares.iter().map(|share| share.tokens).sum();
            assert!(total <= limits.max_tokens.max(shares.len()), "{candidates:?} {limits:?} {shares:?}");
            for share in &shares {
                let candidate = candidates[share.index];
                assert!(candidate.ready && share.tokens >= 1 && share.tokens <= candidate.pending);
            }
            let scored = shares.iter().filter(|share| candidates[share.index].scored && share.tokens > 1);
            assert!(scored.map(|share| share.tokens).sum::<usize>() <= limits.max_scored_tokens);
            let could = candidates.iter().any(|candidate| candidate.ready && candidate.pending > 0);
            assert_eq!(could, !shares.is_empty(), "a step with something to do does something");
        }
    }
}
