//! The memory of keys and values, for people. Layers of sliding windows keep only their latest tokens, so that a figure a
//! token says too much of them.

use roundhouse_engine::{KvRing, MemoryPlan};
use roundhouse_proto::{compiler, executor};

use crate::output;

/// The plan of a compiler.
pub(crate) fn planned(plan: &compiler::MemoryPlan) -> MemoryPlan {
    let ring =
        |ring: &compiler::KvRing| KvRing { tokens: ring.tokens, bytes_per_token: ring.bytes_per_token };
    MemoryPlan {
        weight_bytes: plan.weight_bytes,
        kv_bytes_per_token: plan.kv_bytes_per_token,
        kv_rings: plan.kv_rings.iter().map(ring).collect(),
        workspace_bytes: plan.workspace_bytes,
    }
}

/// The plan of an executor that has the engine.
pub(crate) fn loaded(engine: &executor::LoadedEngine) -> MemoryPlan {
    let ring =
        |ring: &executor::KvRing| KvRing { tokens: ring.tokens, bytes_per_token: ring.bytes_per_token };
    MemoryPlan {
        weight_bytes: engine.weight_bytes,
        kv_bytes_per_token: engine.kv_bytes_per_token,
        kv_rings: engine.kv_rings.iter().map(ring).collect(),
        workspace_bytes: engine.workspace_bytes,
    }
}

/// What grows with a sequence, what stops, and what the longest takes: `4.00 KiB a token and 7.50 MiB of the last 512 (15.50
/// MiB for 2048)`.
pub(crate) fn describe(plan: &MemoryPlan, max_seq_len: u32) -> String {
    let of_rings = plan.kv_rings.iter().fold(0_u64, |sum, ring| sum.saturating_add(ring.bytes_per_token));
    let growing = format!("{} a token", output::bytes(plan.kv_bytes_per_token.saturating_sub(of_rings)));
    let kept = plan.kv_rings.iter().map(|ring| {
        let bytes = ring.tokens.saturating_mul(ring.bytes_per_token);
        format!(" and {} of the last {}", output::bytes(bytes), ring.tokens)
    });
    let longest = format!(" ({} for {max_seq_len})", output::bytes(plan.kv_bytes(max_seq_len.into())));
    std::iter::once(growing).chain(kept).chain([longest]).collect()
}

/// The rings for JSON.
pub(crate) fn rings_json(plan: &MemoryPlan) -> serde_json::Value {
    let rings = plan.kv_rings.iter();
    rings
        .map(|ring| serde_json::json!({"tokens": ring.tokens, "bytes_per_token": ring.bytes_per_token}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_growing_is_told_from_what_grows() {
        let plan = |kv_bytes_per_token, rings: &[(u64, u64)]| {
            let ring = |&(tokens, bytes_per_token): &(u64, u64)| compiler::KvRing { tokens, bytes_per_token };
            let kv_rings = rings.iter().map(ring).collect();
            planned(&compiler::MemoryPlan { kv_bytes_per_token, kv_rings, ..Default::default() })
        };
        assert_eq!(describe(&plan(2048, &[]), 1024), "2.00 KiB a token (2.00 MiB for 1024)");
        assert_eq!(
            describe(&plan(2048, &[(512, 1024)]), 1024),
            "1.00 KiB a token and 512.00 KiB of the last 512 (1.50 MiB for 1024)"
        );
        // A sequence that is shorter than a ring does not fill it.
        assert_eq!(
            describe(&plan(1024, &[(512, 1024)]), 256),
            "0 B a token and 512.00 KiB of the last 512 (256.00 KiB for 256)"
        );
    }
}
