//! What an engine's generations do next: a pure decision from what they are, what memory there is and how long they have
//! waited. No clock, no memory and no model of its own.
//!
//! Every step mixes the next token of all running streams with chunks of prompts. A generation waits until there is a
//! place in the step and memory for its whole history; from then on it runs, and its memory grows a block at a time. When
//! there is no block, the caches of idle sessions go first, then those of generations that do not run at the moment, then
//! that of the youngest: it waits again, with its tokens, and its cache is rebuilt.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::fairness::{Fairness, TenantId};
use super::pace::{Pace, PaceLimits};
use crate::session::{KV_BLOCK_TOKENS, KvCost};

/// The bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Sequences in it, at least 1.
    pub max_sequences: usize,
    /// New tokens in it, over all sequences.
    pub max_tokens: usize,
    /// Of those, tokens of scored prompts, at least 1: each has a row of logits as long as the vocabulary.
    pub max_scored_tokens: usize,
}

/// What a policy keeps to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyLimits {
    /// The bounds of a step.
    pub step: StepLimits,
    /// How far prompts may slow running streams.
    pub pace: PaceLimits,
    /// The longest that a generation waits for its first step.
    pub queue_timeout: Duration,
    /// The age that weighs as much as one more of priority: nobody waits for ever behind what is more important.
    pub ageing: Duration,
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for its first step.
    Queued,
    /// It had steps, and its cache was taken for others: it waits to go on.
    Preempted,
    /// It takes part in steps.
    Running,
}

/// What the policy sees of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Larger for those that came later.
    pub id: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// Higher goes first.
    pub priority: i32,
    /// Since it came.
    pub age: Duration,
    /// How far it is.
    pub status: Status,
    /// Tokens in its cache.
    pub cached: usize,
    /// Tokens that are not in the cache yet: 1 while decoding, more while prefilling.
    pub pending: usize,
    /// Tokens that its cache can hold.
    pub capacity: usize,
    /// Bytes that its cache has reserved.
    pub held: u64,
    /// Whether it can take part: its client has room for another message.
    pub ready: bool,
    /// Whether all tokens of its next chunk have logits, for the prompt's log-probabilities.
    pub scored: bool,
}

/// The memory for keys and values, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Not in use.
    pub free: u64,
    /// In use by idle sessions, whose caches can be dropped.
    pub idle: u64,
    /// In all.
    pub total: u64,
}

/// A sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its place among the candidates.
    pub index: usize,
    /// How many of its pending tokens.
    pub tokens: usize,
    /// Tokens of the sequence whose memory is to be reserved before.
    pub reserve: usize,
}

/// Why a generation ends without having failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It waited for its first step longer than it may.
    QueueTimeout,
    /// It needs more memory than there is in all.
    TooLarge {
        /// Bytes that it needs.
        wanted: u64,
    },
}

/// What to do, in this order. Numbers are places among the candidates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Generations to end.
    pub refused: Vec<(usize, Refusal)>,
    /// Bytes of idle sessions' caches to drop.
    pub drop_idle: u64,
    /// Generations whose caches to drop; those that run wait again.
    pub dropped: Vec<usize>,
    /// The next step. Those in it that waited run from now on.
    pub shares: Vec<Share>,
}

/// The policy of one engine.
#[derive(Debug)]
pub struct Policy {
    limits: PolicyLimits,
    cost: Arc<KvCost>,
    pace: Pace,
    fairness: Fairness,
    /// The last one that had a place in a step that had too few.
    last_turn: u64,
}

/// A plan in the making.
struct Draft<'a> {
    candidates: &'a [Candidate],
    cost: &'a KvCost,
    /// Higher goes first.
    levels: Vec<i64>,
    free: u64,
    idle: u64,
    /// Bytes that those who begin leave to those that run.
    spared: u64,
    /// Refused, or without a cache from now on.
    gone: Vec<bool>,
    /// In the step.
    taken: Vec<bool>,
    plan: Plan,
}

impl Policy {
    /// Of an engine whose sequences cost so much.
    #[must_use]
    pub fn new(limits: PolicyLimits, cost: Arc<KvCost>) -> Self {
        Self { limits, cost, pace: Pace::new(limits.pace), fairness: Fairness::default(), last_turn: 0 }
    }

    /// Learns how long a step of so many tokens took.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        self.pace.observe(tokens, took);
    }

    /// Learns that a tenant got tokens beside those of a plan.
    pub fn serve(&mut self, tenant: TenantId, tokens: usize) {
        self.fairness.serve(tenant, tokens);
    }

    /// Decides what is done next. With a candidate that can go on the plan has something to do, unless all memory is held
    /// by others than the candidates and idle sessions.
    ///
    /// Streams that run get their one token before any prompt gets a chunk; there are at most `max_sequences` sequences
    /// in a step, and at most `max_tokens` tokens unless more streams run, when a prompt still gets one.
    pub fn plan(&mut self, candidates: &[Candidate], memory: Memory) -> Plan {
        self.fairness.present(candidates.iter().map(|candidate| candidate.tenant));
        let ageing = self.limits.ageing.as_nanos().max(1);
        let level = |candidate: &Candidate| {
            let older = i64::try_from(candidate.age.as_nanos() / ageing).unwrap_or(i64::MAX);
            i64::from(candidate.priority).saturating_add(older)
        };
        let cost = Arc::clone(&self.cost);
        let mut draft = Draft {
            candidates,
            cost: &cost,
            levels: candidates.iter().map(level).collect(),
            free: memory.free,
            idle: memory.idle,
            spared: 0,
            gone: vec![false; candidates.len()],
            taken: vec![false; candidates.len()],
            plan: Plan::default(),
        };
        draft.refuse(memory.total, self.limits.queue_timeout);

        let turns = self.turns(&draft);
        let mut streams: Vec<usize> =
            turns.iter().copied().filter(|&index| candidates[index].pending == 1).collect();
        streams.sort_by_key(|&index| draft.rank(index));
        for index in streams {
            draft.add_stream(index);
        }
        let streams = draft.plan.shares.len();
        let prompts = turns.into_iter().filter(|&index| candidates[index].pending > 1).collect();
        self.add_prompts(&mut draft, prompts, streams);
        for share in &draft.plan.shares {
            self.fairness.serve(candidates[share.index].tenant, share.tokens);
        }
        draft.plan
    }

    /// Those that run and have a place in the step: all of them, unless clients that had no room for a while have it
    /// again. Then they take turns.
    fn turns(&mut self, draft: &Draft<'_>) -> Vec<usize> {
        let mut running: Vec<usize> = (0..draft.candidates.len())
            .filter(|&index| draft.candidates[index].status == Status::Running && draft.can_go_on(index))
            .collect();
        let places = self.limits.step.max_sequences.max(1);
        if running.len() > places {
            let id = |index: &usize| draft.candidates[*index].id;
            running.sort_unstable_by_key(|index| (id(index) <= self.last_turn, id(index)));
            running.truncate(places);
            self.last_turn = running.last().map_or(0, id);
        }
        running
    }

    /// Gives what is left of the step to prompts: those that run and those that wait, in the order of what is due to
    /// them. Who waits and finds no memory holds up those behind: else a long prompt would never find any.
    fn add_prompts(&self, draft: &mut Draft<'_>, running: Vec<usize>, streams: usize) {
        let step = self.limits.step;
        let (busy, spared) = draft.running();
        draft.spared = spared;
        let mut places = step.max_sequences.max(1).saturating_sub(busy);
        let most = step.max_tokens.saturating_sub(streams).max(1);
        let mut budget = self.pace.prompt_tokens(streams, most);
        let mut scored_budget = step.max_scored_tokens.max(1);
        let waiting = (0..draft.candidates.len())
            .filter(|&index| draft.candidates[index].status != Status::Running && draft.can_go_on(index));
        let mut prompts: Vec<usize> = running.into_iter().chain(waiting).collect();
        prompts.sort_by_cached_key(|&index| {
            let candidate = &draft.candidates[index];
            (
                Reverse(draft.levels[index]),
                candidate.status != Status::Preempted,
                self.fairness.served(candidate.tenant),
                candidate.pending,
                candidate.id,
            )
        });
        let mut admits = draft.plan.dropped.is_empty();
        for index in prompts {
            let candidate = &draft.candidates[index];
            // Bounded by what scored prompts may have, and a prompt without a token is none.
            let most = if candidate.scored && candidate.pending > 1 { scored_budget } else { usize::MAX };
            let tokens = candidate.pending.min(budget).min(most);
            if tokens == 0 || draft.gone[index] {
                continue;
            }
            if candidate.status == Status::Running {
                if !draft.add_prompt(index, tokens) {
                    continue;
                }
            } else {
                admits = admits && places > 0 && draft.admit(index, tokens);
                if !admits {
                    continue;
                }
                places -= 1;
            }
            budget -= tokens;
            if candidate.scored && candidate.pending > 1 {
                scored_budget -= tokens;
            }
        }
    }
}

impl Draft<'_> {
    /// Older and more important ones have a smaller rank.
    fn rank(&self, index: usize) -> (Reverse<i64>, u64) {
        (Reverse(self.levels[index]), self.candidates[index].id)
    }

    fn can_go_on(&self, index: usize) -> bool {
        let candidate = &self.candidates[index];
        candidate.ready && candidate.pending > 0 && !self.gone[index]
    }

    /// How many have a place, which are those that run but for those whose clients have no room; and the bytes of one
    /// more block for each of them.
    fn running(&self) -> (usize, u64) {
        let candidates = self.candidates.iter().zip(&self.gone).enumerate();
        let running = candidates.filter(|(_, (candidate, gone))| {
            candidate.status == Status::Running && candidate.ready && !**gone
        });
        running.fold((0, 0_u64), |(count, blocks), (index, _)| {
            (count + 1, blocks.saturating_add(self.next_block(index)))
        })
    }

    /// Bytes beyond what it holds that a candidate needs for so many tokens.
    fn lacks(&self, index: usize, tokens: usize) -> u64 {
        let candidate = &self.candidates[index];
        self.cost.bytes(tokens, candidate.capacity).saturating_sub(candidate.held)
    }

    /// Tokens of a candidate with everything that is pending, and the one that follows.
    fn history(&self, index: usize) -> usize {
        let candidate = &self.candidates[index];
        (candidate.cached + candidate.pending + 1).min(candidate.capacity)
    }

    /// Ends what waited too long or can never go on.
    fn refuse(&mut self, total: u64, queue_timeout: Duration) {
        for (index, candidate) in self.candidates.iter().enumerate() {
            let wanted = self.cost.bytes(candidate.cached + candidate.pending, candidate.capacity);
            let refusal = if wanted > total {
                Refusal::TooLarge { wanted }
            } else if candidate.status == Status::Queued && candidate.age >= queue_timeout {
                Refusal::QueueTimeout
            } else {
                continue;
            };
            self.plan.refused.push((index, refusal));
            self.gone[index] = true;
            self.free += candidate.held;
        }
    }

    /// Takes memory that is free or that idle sessions hold.
    fn take(&mut self, bytes: u64) -> bool {
        if bytes > self.free.saturating_add(self.idle) {
            return false;
        }
        let of_idle = bytes.saturating_sub(self.free);
        self.idle -= of_idle;
        self.plan.drop_idle += of_idle;
        self.free = (self.free + of_idle) - bytes;
        true
    }

    fn share(&mut self, share: Share) {
        self.taken[share.index] = true;
        self.plan.shares.push(share);
    }

    fn drop_cache(&mut self, index: usize) {
        self.free += self.candidates[index].held;
        self.gone[index] = true;
        self.plan.dropped.push(index);
    }

    /// Who can give its memory to `index`: those that wait, those whose clients have no room, and to a stream also those
    /// that run, of a lower rank. Who is first of those that wait can have the memory of all others, or they would wait for
    /// each other. The first of these kinds goes first, and of a kind the youngest.
    fn victims(&self, index: usize) -> impl Iterator<Item = (u8, usize)> + '_ {
        let is_stream = self.candidates[index].status == Status::Running;
        let gives = move |other: usize| {
            let has_memory = self.candidates[other].held > 0;
            has_memory && other != index && !self.gone[other] && !self.taken[other]
        };
        let others = (0..self.candidates.len()).filter(move |&other| gives(other));
        others.filter_map(move |other| {
            let is_lower = self.rank(other) > self.rank(index);
            match self.candidates[other] {
                Candidate { status: Status::Queued | Status::Preempted, .. } => Some((2, other)),
                Candidate { ready: false, .. } => Some((1, other)),
                _ => (is_stream && is_lower).then_some((0, other)),
            }
        })
    }

    /// Drops the cache of who goes first for `index`; false where nobody can.
    fn drop_victim(&mut self, index: usize) -> bool {
        let first = self.victims(index).max_by_key(|&(kind, other)| (kind, self.rank(other)));
        first.map(|(_, victim)| self.drop_cache(victim)).is_some()
    }

    /// Gives a stream its next token, and if need be the memory of others. It gives its own where nobody has any for it.
    fn add_stream(&mut self, index: usize) {
        if self.gone[index] {
            return;
        }
        let reserve = self.candidates[index].cached + 1;
        let bytes = self.lacks(index, reserve);
        while !self.take(bytes) {
            if !self.drop_victim(index) {
                return self.drop_cache(index);
            }
        }
        self.share(Share { index, tokens: 1, reserve });
    }

    /// Gives a prompt that runs its next chunk. Its memory was reserved when it began; false where it was not.
    fn add_prompt(&mut self, index: usize, tokens: usize) -> bool {
        let reserve = self.candidates[index].cached + tokens;
        let bytes = self.lacks(index, reserve);
        let has_memory = self.take(bytes);
        match has_memory {
            true => self.share(Share { index, tokens, reserve }),
            false => self.drop_cache(index),
        }
        has_memory
    }

    /// Lets one that waits begin with so many tokens, if there is memory for its whole history, and beside it for what
    /// is spared: a block more for each of those that run, so that they do not have to stop for it at once.
    fn admit(&mut self, index: usize, tokens: usize) -> bool {
        let reserve = self.history(index);
        let bytes = self.lacks(index, reserve);
        let wanted = bytes.saturating_add(self.spared);
        let can_be_had = self.victims(index).map(|(_, other)| self.candidates[other].held);
        if wanted > can_be_had.fold(self.free.saturating_add(self.idle), u64::saturating_add) {
            return false;
        }
        while wanted > self.free.saturating_add(self.idle) {
            if !self.drop_victim(index) {
                return false;
            }
        }
        let has_memory = self.take(bytes);
        if has_memory {
            self.spared = self.spared.saturating_add(self.next_block(index));
            self.share(Share { index, tokens, reserve });
        }
        has_memory
    }

    /// Bytes of the block after a candidate's history.
    fn next_block(&self, index: usize) -> u64 {
        let Candidate { capacity, held, .. } = self.candidates[index];
        let history = self.history(index);
        let reserved = self.cost.bytes(history, capacity).max(held);
        self.cost.bytes(history.saturating_add(KV_BLOCK_TOKENS), capacity).saturating_sub(reserved)
    }
}
