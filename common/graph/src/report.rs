//! What a pass says of its work.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one pass changed, as counts by name (`attention_nodes`, `removed_nodes`, …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassReport {
    /// The pass's name, e.g. `static_cache_v2`.
    pub pass: String,
    /// What it counted.
    pub counts: BTreeMap<String, u64>,
}

impl PassReport {
    /// A report of `pass` with these counts.
    pub fn new<'a>(pass: &str, counts: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        Self {
            pass: pass.to_owned(),
            counts: counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }
}
