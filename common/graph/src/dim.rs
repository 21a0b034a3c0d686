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
/// Arithmetic saturates, so a hostile graph overflows nothing; the verifier refuses dimensions anywhere near that size.
/// Serialised as a number if it is a constant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Serialised", into = "Serialised")]
pub struct Dim {
    constant: i64,
    /// Never holds a zero coefficient.
    terms: BTreeMap<SymbolId, i64>,
}

/// Terms are pairs and not a map: a map's integer keys do not survive serde's buffering of tagged enums.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Serialised {
    Constant(i64),
    Linear { constant: i64, terms: Vec<(SymbolId, i64)> },
}

impl From<Dim> for Serialised {
    fn from(dim: Dim) -> Self {
        if dim.terms.is_empty() {
            Self::Constant(dim.constant)
        } else {
            Self::Linear { constant: dim.constant, terms: dim.terms.into_iter().collect() }
        }
    }
}

impl From<Serialised> for Dim {
    fn from(serialised: Serialised) -> Self {
        match serialised {
            Serialised::Constant(constant) => Self::constant(constant),
            Serialised::Linear { constant, terms } => {
                terms.into_iter().fold(Self::constant(constant), |sum, (symbol, coefficient)| {
                    sum + Self::symbol(symbol).times(coefficient)
                })
            }
        }
    }
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
            constant: self.constant.saturating_mul(factor),
            terms: self
                .terms
                .iter()
                .map(|(symbol, coefficient)| (*symbol, coefficient.saturating_mul(factor)))
                .collect(),
        }
    }

    /// The largest constant that divides it and what is left: `8·batch` is 8 and `batch`. Zero is 0 and 1.
    #[must_use]
    pub(crate) fn split_factor(&self) -> (i64, Self) {
        let factor = self.terms.values().fold(self.constant.unsigned_abs(), |a, b| gcd(a, b.unsigned_abs()));
        match i64::try_from(factor) {
            Ok(0) => (0, Self::constant(1)),
            Ok(factor) => {
                let terms = self.terms.iter().map(|(symbol, coefficient)| (*symbol, coefficient / factor));
                (factor, Self { constant: self.constant / factor, terms: terms.collect() })
            }
            Err(_) => (1, self.clone()),
        }
    }

    /// As in dumps, with the symbols' names: `start + seq`.
    #[must_use]
    pub fn display(&self, symbols: &[Symbol]) -> String {
        self.format(|id| match symbols.get(id.0 as usize) {
            Some(symbol) => symbol.name.clone(),
            None => format!("s{}", id.0),
        })
    }

    fn format(&self, name: impl Fn(SymbolId) -> String) -> String {
        let mut text = String::new();
        let parts = self.terms.iter().map(|(symbol, coefficient)| (*coefficient, Some(*symbol)));
        let constant = (self.constant != 0 || self.terms.is_empty()).then_some((self.constant, None));
        for (number, symbol) in parts.chain(constant) {
            text.push_str(match (text.is_empty(), number < 0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            });
            match (number.unsigned_abs(), symbol) {
                (1, Some(symbol)) => text.push_str(&name(symbol)),
                (number, Some(symbol)) => text.push_str(&format!("{number}*{}", name(symbol))),
                (number, None) => text.push_str(&number.to_string()),
            }
        }
        text
    }

    /// Its value where `symbols` gives each symbol's; `None` if one is missing.
    pub fn evaluate(&self, symbols: impl Fn(SymbolId) -> Option<i64>) -> Option<i64> {
        self.terms.iter().try_fold(self.constant, |sum, (symbol, coefficient)| {
            Some(sum.saturating_add(coefficient.saturating_mul(symbols(*symbol)?)))
        })
    }
}

impl std::fmt::Display for Dim {
    /// Symbols as `s0`, `s1`, …: their names belong to the graph, see [`Dim::display`].
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.format(|id| format!("s{}", id.0)))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
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
        self.constant = self.constant.saturating_add(other.constant);
        for (symbol, coefficient) in other.terms {
            let sum = self.terms.entry(symbol).or_insert(0);
            *sum = sum.saturating_add(coefficient);
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
