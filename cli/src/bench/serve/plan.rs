//! What one stream of a load test will ask for and how its client will behave: the same from the same seed.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

/// How the client of a stream behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// Reads all of it.
    Read,
    /// Reads all of it, with a pause after each message, over a connection that holds little.
    ReadSlowly(Duration),
    /// Calls Cancel.
    Cancel(Moment),
    /// Drops the stream.
    Drop(Moment),
    /// Closes the connection.
    Disconnect(Moment),
    /// Deletes the session that it runs in.
    DeleteSession(Moment),
    /// Gives the call so long.
    Deadline(Duration),
}

/// When a client leaves its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// As soon as the call has begun.
    AtOnce,
    /// So long after that: while the prompt, a long one, waits or is read.
    After(Duration),
    /// After so many messages.
    AfterMessages(u32),
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamPlan {
    pub(super) request_id: String,
    pub(super) prompt: Vec<u32>,
    pub(super) max_tokens: u32,
    /// Seed of the sampling; `None` is greedy.
    pub(super) sampling_seed: Option<u64>,
    /// Whether it is the second turn of a session.
    pub(super) in_session: bool,
    pub(super) behaviour: Behaviour,
}

/// What plans are drawn from.
#[derive(Debug, Clone)]
pub(super) struct Ranges {
    pub(super) seed: u64,
    pub(super) vocab_size: u32,
    pub(super) prompt_tokens: RangeInclusive<u32>,
    pub(super) new_tokens: RangeInclusive<u32>,
    /// Whether every client leaves its stream.
    pub(super) only_leaving: bool,
}

impl Behaviour {
    /// As in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadSlowly(_) => "read slowly",
            Self::Cancel(_) => "cancel",
            Self::Drop(_) => "drop",
            Self::Disconnect(_) => "disconnect",
            Self::DeleteSession(_) => "delete session",
            Self::Deadline(_) => "deadline",
        }
    }

    /// When the client leaves, if it does.
    pub(super) fn leaves(self) -> Option<Moment> {
        match self {
            Self::Cancel(moment)
            | Self::Drop(moment)
            | Self::Disconnect(moment)
            | Self::DeleteSession(moment) => Some(moment),
            Self::Read | Self::ReadSlowly(_) | Self::Deadline(_) => None,
        }
    }
}

impl Ranges {
    /// The plan of stream number `index`, whatever ran before it.
    pub(super) fn plan(&self, index: u64) -> StreamPlan {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        let mut rng = ChaCha12Rng::from_seed(key);
        let in_session = rng.random_range(0..4) == 0;
        let behaviour = behaviour(&mut rng, in_session, self.only_leaving);
        let prompt_tokens = match behaviour.leaves() {
            // Its prompt should still be read when it leaves.
            Some(Moment::After(_)) => *self.prompt_tokens.end(),
            _ => rng.random_range(self.prompt_tokens.clone()),
        };
        StreamPlan {
            request_id: format!("load-{}-{index}", self.seed),
            prompt: (0..prompt_tokens).map(|_| rng.random_range(0..self.vocab_size.max(1))).collect(),
            max_tokens: rng.random_range(self.new_tokens.clone()),
            sampling_seed: rng.random_bool(0.5).then(|| rng.random()),
            in_session,
            behaviour,
        }
    }
}

fn behaviour(rng: &mut ChaCha12Rng, in_session: bool, only_leaving: bool) -> Behaviour {
    let moment = |rng: &mut ChaCha12Rng| match rng.random_range(0..3) {
        0 => Moment::AtOnce,
        1 => Moment::After(Duration::from_millis(rng.random_range(1..=100))),
        _ => Moment::AfterMessages(rng.random_range(1..=20)),
    };
    let kind = if only_leaving {
        rng.random_range(53..if in_session { 90 } else { 85 })
    } else {
        rng.random_range(0..100)
    };
    match kind {
        0..45 => Behaviour::Read,
        45..53 => Behaviour::ReadSlowly(Duration::from_millis(rng.random_range(1..=50))),
        53..69 => Behaviour::Cancel(moment(rng)),
        69..79 => Behaviour::Drop(moment(rng)),
        79..85 => Behaviour::Disconnect(moment(rng)),
        85..90 if in_session => Behaviour::DeleteSession(moment(rng)),
        _ => Behaviour::Deadline(Duration::from_millis(rng.random_range(1..=2000))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ranges(seed: u64) -> Ranges {
        Ranges { seed, vocab_size: 100, prompt_tokens: 1..=40, new_tokens: 1..=9, only_leaving: false }
    }

    #[test]
    fn a_seed_makes_the_same_streams_again_and_another_one_others() {
        let plans = |seed| (0..50).map(|index| ranges(seed).plan(index)).collect::<Vec<_>>();
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1)[0].prompt, plans(2)[0].prompt);
    }

    #[test]
    fn streams_are_in_their_ranges_and_behave_in_every_way() {
        let mut seen = BTreeSet::new();
        for index in 0..2000 {
            let plan = ranges(3).plan(index);
            assert!((1..=40).contains(&plan.prompt.len()) && (1..=9).contains(&plan.max_tokens));
            assert!(plan.prompt.iter().all(|&token| token < 100));
            assert!(plan.in_session || !matches!(plan.behaviour, Behaviour::DeleteSession(_)));
            seen.insert(plan.behaviour.name());
        }
        assert_eq!(seen.len(), 7, "{seen:?}");
    }

    #[test]
    fn all_clients_leave_where_that_is_asked_for() {
        let ranges = Ranges { only_leaving: true, ..ranges(4) };
        let seen: BTreeSet<_> = (0..500)
            .map(|index| ranges.plan(index).behaviour)
            .inspect(|behaviour| assert!(behaviour.leaves().is_some()))
            .map(Behaviour::name)
            .collect();
        assert_eq!(seen.len(), 4, "{seen:?}");
    }
}
