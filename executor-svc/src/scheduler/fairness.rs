//! What each tenant has had, so that who had the least comes first: the counters of Sheng et al. 2024, "Fairness in
//! Serving Large Language Models".

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

/// A tenant among others, by a hash of its name. Two of one hash would share one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(u64);

impl TenantId {
    /// Of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(BuildHasherDefault::<DefaultHasher>::default().hash_one(name))
    }
}

/// Tokens that each tenant has had while it had something to do. Who comes anew begins with as many as the one that has
/// had the least: nobody saves up by staying away.
#[derive(Debug, Clone, Default)]
pub(super) struct Fairness {
    served: BTreeMap<TenantId, Served>,
}

#[derive(Debug, Clone, Copy)]
struct Served {
    tokens: u64,
    is_here: bool,
}

impl Fairness {
    /// Says who has something to do now; forgets everyone else.
    pub(super) fn present(&mut self, tenants: impl Iterator<Item = TenantId> + Clone) {
        for served in self.served.values_mut() {
            served.is_here = false;
        }
        for tenant in tenants.clone() {
            if let Some(served) = self.served.get_mut(&tenant) {
                served.is_here = true;
            }
        }
        self.served.retain(|_, served| served.is_here);
        let tokens = self.served.values().map(|served| served.tokens).min().unwrap_or(0);
        for tenant in tenants {
            self.served.entry(tenant).or_insert(Served { tokens, is_here: true });
        }
    }

    /// Tokens that a tenant has had.
    pub(super) fn served(&self, tenant: TenantId) -> u64 {
        self.served.get(&tenant).map_or(0, |served| served.tokens)
    }

    /// Notes that it gets more.
    pub(super) fn serve(&mut self, tenant: TenantId, tokens: usize) {
        if let Some(served) = self.served.get_mut(&tenant) {
            served.tokens = served.tokens.saturating_add(tokens as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_anew_begins_with_the_least() {
        let [a, b, c] = ["a", "b", "c"].map(TenantId::of);
        let mut fairness = Fairness::default();
        fairness.present([a, b, a].into_iter());
        fairness.serve(a, 10);
        fairness.serve(b, 30);
        fairness.present([a, b, c].into_iter());
        assert_eq!([a, b, c].map(|tenant| fairness.served(tenant)), [10, 30, 10]);
        // Who leaves is forgotten, and comes back as anyone.
        fairness.present([b].into_iter());
        fairness.present([a, b].into_iter());
        assert_eq!([a, b].map(|tenant| fairness.served(tenant)), [30, 30]);
        fairness.present(std::iter::empty());
        assert!(fairness.served.is_empty());
    }
}
