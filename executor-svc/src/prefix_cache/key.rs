//! Names of blocks.

use std::fmt;

use roundhouse_engine::EngineKey;
use sha2::{Digest as _, Sha256};

use super::BLOCK_TOKENS;

/// The name of a block: a SHA-256 of its tokens, the name of the block before it and, in the first one, of who may share
/// it. Equal names mean equal sequences up to the block's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// What the first blocks of sequences follow that may share: those of one engine, tenant and salt.
    #[must_use]
    pub fn root(engine: &EngineKey, tenant: &str, salt: &str) -> Self {
        let mut hasher = Sha256::new();
        for part in [engine.as_str(), tenant, salt] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The block of these tokens after this one.
    #[must_use]
    pub fn child(self, tokens: &[u32]) -> Self {
        let mut hasher = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The names of the whole blocks of a sequence's first tokens, in order.
    #[must_use]
    pub fn path(self, tokens: &[u32]) -> Vec<Self> {
        let blocks = tokens.chunks_exact(BLOCK_TOKENS);
        blocks
            .scan(self, |last, block| {
                *last = last.child(block);
                Some(*last)
            })
            .collect()
    }
}

/// As hex digits.
impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(digit: &str) -> EngineKey {
        EngineKey::parse(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn names_tell_engines_tenants_salts_and_histories_apart() {
        let tokens: Vec<u32> = (0..(3 * BLOCK_TOKENS + 5) as u32).collect();
        let of = |engine: &EngineKey, tenant, salt| BlockKey::root(engine, tenant, salt).path(&tokens);
        let all = [
            of(&engine("a"), "", ""),
            of(&engine("b"), "", ""),
            of(&engine("a"), "t", ""),
            of(&engine("a"), "", "t"),
            of(&engine("a"), "ts", ""),
            of(&engine("a"), "t", "s"),
        ];
        assert!(all.iter().all(|path| path.len() == 3));
        let distinct: std::collections::BTreeSet<_> = all.iter().flatten().collect();
        assert_eq!(distinct.len(), 18);

        let root = BlockKey::root(&engine("a"), "", "");
        let mut other = tokens.clone();
        other[BLOCK_TOKENS + 2] += 1;
        let other = root.path(&other);
        assert_eq!(other[0], all[0][0]);
        assert!(
            other[1] != all[0][1] && other[2] != all[0][2],
            "a token changes all names from its block on"
        );
        assert_eq!(root.path(&tokens[..2 * BLOCK_TOKENS]), all[0][..2]);
        assert!(root.path(&tokens[..BLOCK_TOKENS - 1]).is_empty());
    }
}
