//! Symbolic dimensions: linear expressions over named symbols.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which symbol of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SymbolId(pub u32);

/// A size that is known only when the graph runs, e.g. `batch` or `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Its name in dumps.
    pub name: String,
    /// The smallest value it takes.
    pub min: i64,
    /// The largest value it takes.
    pub max: i64,
}

/// A dimension: a constant plus whole multiples of symbols. `start + seq` is one, so a verifier can see that
/// `cat(cache[..start], new, cache[start + seq..])` is as long as the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dim {
    constant: i64,
    /// Never holds a zero coefficient.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    terms: BTreeMap<SymbolId, i64>,
}

/// The dimensions of a value, outermost first.
pub type Shape = Vec<Dim>;

impl Dim {
    /// A constant.
    #[must_use]
    pub const fn constant(value: i64) -> Self {
        Self { constant: value, terms: BTreeMap::new() }
    }

    /// A symbol by itself.
    #[must_use]
    pub fn symbol(symbol: SymbolId) -> Self {
        Self { constant: 0, terms: BTreeMap::from([(symbol, 1)]) }
    }

    /// Its value if it holds no symbol.
    #[must_use]
    pub fn as_constant(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The symbol if it is one by itself.
    #[must_use]
    pub fn as_symbol(&self) -> Option<SymbolId> {
        match self.terms.iter().next() {
            Some((symbol, 1)) if self.constant == 0 && self.terms.len() == 1 => Some(*symbol),
            _ => None,
        }
    }

    /// The constant part and the symbols with their coefficients.
    #[must_use]
    pub fn parts(&self) -> (i64, &BTreeMap<SymbolId, i64>) {
        (self.constant, &self.terms)
    }

    /// This times a constant.
    #[must_use]
    pub fn times(&self, factor: i64) -> Self {
        if factor == 0 {
            return Self::constant(0);
        }
        Self {
            constant: self.constant * factor,
            terms: self.terms.iter().map(|(symbol, coefficient)| (*symbol, coefficient * factor)).collect(),
        }
    }

    /// Its value where `symbols` gives each symbol's; `None` if one is missing.
    pub fn evaluate(&self, symbols: impl Fn(SymbolId) -> Option<i64>) -> Option<i64> {
        self.terms.iter().try_fold(self.constant, |sum, (symbol, coefficient)| {
            Some(sum + coefficient * symbols(*symbol)?)
        })
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self::constant(value)
    }
}

impl From<usize> for Dim {
    /// # Panics
    /// Never for sizes that a machine can address: they fit in `i64`.
    fn from(value: usize) -> Self {
        Self::constant(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl std::ops::Add for Dim {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.constant += other.constant;
        for (symbol, coefficient) in other.terms {
            let sum = self.terms.entry(symbol).or_insert(0);
            *sum += coefficient;
            if *sum == 0 {
                self.terms.remove(&symbol);
            }
        }
        self
    }
}

impl std::ops::Sub for Dim {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other.times(-1)
    }
}
