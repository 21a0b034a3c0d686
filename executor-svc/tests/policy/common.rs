//! Engines and generations for a policy.

use std::sync::Arc;
use std::time::Duration;

use roundhouse_backend::CacheGrowth;
use roundhouse_engine::MemoryPlan;
use roundhouse_executor::scheduler::{
    Candidate, Memory, PaceLimits, Plan, Policy, PolicyLimits, Status, StepLimits, TenantId,
};
use roundhouse_executor::session::{KV_BLOCK_TOKENS, KvCost};

/// Bytes of a token.
pub(crate) const TOKEN: u64 = 10;
/// Bytes of a block.
pub(crate) const BLOCK: u64 = TOKEN * KV_BLOCK_TOKENS as u64;
/// Tokens that a sequence can have.
pub(crate) const CAPACITY: usize = 4096;

pub(crate) const LIMITS: PolicyLimits = PolicyLimits {
    step: StepLimits { max_sequences: 4, max_tokens: 100, max_scored_tokens: 30 },
    pace: PaceLimits { of_one_token: 2.5, of_streams: 1.5, unnoticed: Duration::ZERO },
    queue_timeout: Duration::from_secs(60),
    ageing: Duration::from_secs(1),
};

/// Memory that nothing is short of.
pub(crate) const PLENTY: Memory = Memory { free: 1 << 40, idle: 0, total: 1 << 40 };

pub(crate) fn cost() -> Arc<KvCost> {
    let plan = MemoryPlan { kv_bytes_per_token: TOKEN, ..MemoryPlan::default() };
    Arc::new(KvCost::new(plan, CacheGrowth::ByToken))
}

pub(crate) fn policy(limits: PolicyLimits) -> Policy {
    Policy::new(limits, cost())
}

/// A new generation with a prompt of so many tokens.
pub(crate) fn queued(id: u64, pending: usize) -> Candidate {
    Candidate {
        id,
        tenant: TenantId::of(""),
        priority: 0,
        age: Duration::ZERO,
        status: Status::Queued,
        cached: 0,
        pending,
        capacity: CAPACITY,
        held: 0,
        ready: true,
        scored: false,
    }
}

/// A stream with so many tokens in its cache.
pub(crate) fn stream(id: u64, cached: usize) -> Candidate {
    let held = cost().bytes(cached, CAPACITY);
    Candidate { status: Status::Running, cached, held, ..queued(id, 1) }
}

/// A prompt that has begun: so many of its tokens are in its cache, and it has memory for all of them.
pub(crate) fn prompt(id: u64, cached: usize, pending: usize) -> Candidate {
    let held = cost().bytes(cached + pending + 1, CAPACITY);
    Candidate { pending, held, ..stream(id, cached) }
}

/// Each one's tokens in the step, by its place.
pub(crate) fn tokens(plan: &Plan) -> Vec<(usize, usize)> {
    let mut tokens: Vec<_> = plan.shares.iter().map(|share| (share.index, share.tokens)).collect();
    tokens.sort_unstable();
    tokens
}
