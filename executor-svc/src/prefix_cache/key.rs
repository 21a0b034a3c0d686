//! Names of blocks.

use std::fmt;

use roundhouse_engine::EngineKey;
use sha2::{Digest as _, Sha256};

use super::BLOCK_TOKENS;
use crate::images::SequenceImage;

/// The name of a block: a SHA-256 of its tokens, of the images that begin among them and where, of the name of the block
/// before it and, in the first one, of who may share it. Equal names mean equal sequences up to the block's end.
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

    /// The block of these tokens after this one, which begins at `first` of a sequence with these images.
    #[must_use]
    pub fn child_with(self, first: usize, tokens: &[u32], images: &[SequenceImage]) -> Self {
        let own = first..first + tokens.len();
        let mut hasher = Sha256::new_with_prefix(self.child(tokens).0);
        let mut has_images = false;
        for image in images.iter().filter(|image| own.contains(&image.first)) {
            hasher.update(((image.first - first) as u64).to_le_bytes());
            hasher.update(image.image.digest.as_bytes());
            has_images = true;
        }
        if has_images { Self(hasher.finalize().into()) } else { self.child(tokens) }
    }

    /// The names of the whole blocks of a sequence's first tokens, in order.
    #[must_use]
    pub fn path(self, tokens: &[u32], images: &[SequenceImage]) -> Vec<Self> {
        let blocks = (0..).step_by(BLOCK_TOKENS).zip(tokens.chunks_exact(BLOCK_TOKENS));
        blocks
            .scan(self, |last, (first, block)| {
                *last = last.child_with(first, block, images);
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
    use crate::images::test_support::image;

    fn engine(digit: &str) -> EngineKey {
        EngineKey::parse(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn names_tell_engines_tenants_salts_and_histories_apart() {
        let tokens: Vec<u32> = (0..(3 * BLOCK_TOKENS + 5) as u32).collect();
        let of = |engine: &EngineKey, tenant, salt| BlockKey::root(engine, tenant, salt).path(&tokens, &[]);
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
        let other = root.path(&other, &[]);
        assert_eq!(other[0], all[0][0]);
        assert!(
            other[1] != all[0][1] && other[2] != all[0][2],
            "a token changes all names from its block on"
        );
        assert_eq!(root.path(&tokens[..2 * BLOCK_TOKENS], &[]), all[0][..2]);
        assert!(root.path(&tokens[..BLOCK_TOKENS - 1], &[]).is_empty());
    }

    #[test]
    fn an_image_changes_all_names_from_the_block_on_that_it_begins_in() {
        let root = BlockKey::root(&engine("a"), "", "");
        let tokens = vec![7; 4 * BLOCK_TOKENS];
        let with = |images: &[(usize, u32)]| {
            let images: Vec<_> = images
                .iter()
                .map(|&(first, side)| SequenceImage { first, image: image(side, 2 * BLOCK_TOKENS as u32) })
                .collect();
            root.path(&tokens, &images)
        };
        let inside = BLOCK_TOKENS + 3;
        let paths = [
            with(&[]),
            with(&[(inside, 1)]),
            with(&[(inside, 2)]),
            with(&[(inside + 1, 1)]),
            with(&[(inside, 1), (inside + 2 * BLOCK_TOKENS, 2)]),
        ];
        assert!(paths.iter().all(|path| path[0] == paths[0][0]));
        assert_eq!(paths[1][..3], paths[4][..3]);
        assert_ne!(paths[1][3], paths[4][3]);
        let distinct: std::collections::BTreeSet<_> = paths[..4].iter().flat_map(|path| &path[1..]).collect();
        assert_eq!(distinct.len(), 12);
    }
}
