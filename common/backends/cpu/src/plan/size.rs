//! Sizes that are known when the graph runs: dims, strides and offsets as polynomials over the graph's symbols.
//!
//! Each distinct size is kept once and has a number, so that equal numbers are equal sizes, whatever the symbols, and a
//! step evaluates each one once.

use std::collections::{BTreeMap, HashMap};

use roundhouse_graph::{Dim, SymbolId};

/// Which size of a [`SizeTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SizeId(u32);

/// Coefficients by the symbols they multiply, those sorted; none is zero.
type Polynomial = BTreeMap<Vec<SymbolId>, i64>;

/// All sizes of a plan.
#[derive(Debug)]
pub(crate) struct SizeTable {
    sizes: Vec<Polynomial>,
    ids: HashMap<Polynomial, SizeId>,
    /// Symbols that have a constant value.
    known: HashMap<SymbolId, i64>,
}

impl SizeTable {
    /// No sizes yet; `known` symbols count as constants.
    pub(crate) fn new(known: HashMap<SymbolId, i64>) -> Self {
        Self { sizes: Vec::new(), ids: HashMap::new(), known }
    }

    pub(crate) fn constant(&mut self, value: usize) -> SizeId {
        self.insert(BTreeMap::from([(Vec::new(), i64::try_from(value).unwrap_or(i64::MAX))]))
    }

    pub(crate) fn dim(&mut self, dim: &Dim) -> SizeId {
        let (constant, terms) = dim.parts();
        let mut polynomial = BTreeMap::from([(Vec::new(), constant)]);
        for (symbol, coefficient) in terms {
            let (symbols, value) = match self.known.get(symbol) {
                Some(value) => (Vec::new(), coefficient.saturating_mul(*value)),
                None => (vec![*symbol], *coefficient),
            };
            add_term(&mut polynomial, symbols, value);
        }
        self.insert(polynomial)
    }

    pub(crate) fn add(&mut self, a: SizeId, b: SizeId) -> SizeId {
        let mut sum = self.get(a).clone();
        for (symbols, coefficient) in self.get(b) {
            add_term(&mut sum, symbols.clone(), *coefficient);
        }
        self.insert(sum)
    }

    /// `a - b`: evaluates only where it is not negative, so making it is also a check.
    pub(crate) fn subtract(&mut self, a: SizeId, b: SizeId) -> SizeId {
        let mut difference = self.get(a).clone();
        for (symbols, coefficient) in self.get(b) {
            add_term(&mut difference, symbols.clone(), coefficient.saturating_neg());
        }
        self.insert(difference)
    }

    pub(crate) fn multiply(&mut self, a: SizeId, b: SizeId) -> SizeId {
        let mut product = Polynomial::new();
        for (left, first) in self.get(a) {
            for (right, second) in self.get(b) {
                let mut symbols = [&left[..], &right[..]].concat();
                symbols.sort_unstable();
                add_term(&mut product, symbols, first.saturating_mul(*second));
            }
        }
        self.insert(product)
    }

    pub(crate) fn product(&mut self, sizes: &[SizeId]) -> SizeId {
        let one = self.constant(1);
        sizes.iter().fold(one, |product, &size| self.multiply(product, size))
    }

    /// Its value if it is a constant.
    pub(crate) fn as_constant(&self, size: SizeId) -> Option<usize> {
        let polynomial = self.get(size);
        match polynomial.len() {
            0 => Some(0),
            1 => polynomial.get(&[][..]).and_then(|&value| usize::try_from(value).ok()),
            _ => None,
        }
    }

    pub(crate) fn is_one(&self, size: SizeId) -> bool {
        self.as_constant(size) == Some(1)
    }

    /// Whether `symbol` occurs in it.
    pub(crate) fn depends_on(&self, size: SizeId, symbol: SymbolId) -> bool {
        self.get(size).keys().any(|symbols| symbols.contains(&symbol))
    }

    /// Evaluates every size into `values`, where a [`SizeId`] finds its own by [`Sizes::get`].
    ///
    /// # Errors
    /// The first size that is negative or has a symbol without a value, in words.
    pub(crate) fn evaluate(
        &self,
        symbol: impl Fn(SymbolId) -> Option<i64>,
        values: &mut Sizes,
    ) -> Result<(), String> {
        values.0.clear();
        for polynomial in &self.sizes {
            let mut sum = 0_i64;
            for (symbols, coefficient) in polynomial {
                let mut term = *coefficient;
                for id in symbols {
                    let value = symbol(*id).ok_or_else(|| format!("symbol {} has no value", id.0))?;
                    term = term.saturating_mul(value);
                }
                sum = sum.saturating_add(term);
            }
            let value = usize::try_from(sum).map_err(|_| format!("a dimension is {sum}"))?;
            values.0.push(value);
        }
        Ok(())
    }

    fn get(&self, size: SizeId) -> &Polynomial {
        &self.sizes[size.0 as usize]
    }

    fn insert(&mut self, polynomial: Polynomial) -> SizeId {
        let polynomial: Polynomial =
            polynomial.into_iter().filter(|(_, coefficient)| *coefficient != 0).collect();
        if let Some(&id) = self.ids.get(&polynomial) {
            return id;
        }
        let id = SizeId(u32::try_from(self.sizes.len()).unwrap_or(u32::MAX));
        self.sizes.push(polynomial.clone());
        self.ids.insert(polynomial, id);
        id
    }
}

fn add_term(polynomial: &mut Polynomial, symbols: Vec<SymbolId>, coefficient: i64) {
    let sum = polynomial.entry(symbols).or_insert(0);
    *sum = sum.saturating_add(coefficient);
}

/// The values of all sizes in one step.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Vec<usize>);

impl Sizes {
    pub(crate) fn get(&self, size: SizeId) -> usize {
        self.0[size.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_products_have_equal_numbers() {
        let (batch, seq) = (SymbolId(0), SymbolId(1));
        let mut table = SizeTable::new(HashMap::from([(batch, 1)]));
        let seq_size = table.dim(&Dim::symbol(seq));
        let heads = table.constant(4);
        let left = table.product(&[heads, seq_size]);
        assert_eq!(left, table.dim(&Dim::symbol(seq).times(4)));
        let batch_size = table.dim(&Dim::symbol(batch));
        assert!(table.is_one(batch_size));
        let square = table.multiply(seq_size, seq_size);
        let none = table.subtract(square, square);
        assert_eq!(table.as_constant(none), Some(0));
    }

    #[test]
    fn a_negative_size_does_not_evaluate() {
        let seq = SymbolId(0);
        let mut table = SizeTable::new(HashMap::new());
        let seq_size = table.dim(&Dim::symbol(seq));
        let two = table.constant(2);
        let rest = table.subtract(seq_size, two);
        let mut sizes = Sizes::default();
        table.evaluate(|_| Some(5), &mut sizes).unwrap();
        assert_eq!(sizes.get(rest), 3);
        assert!(table.evaluate(|_| Some(1), &mut sizes).is_err());
        assert!(table.evaluate(|_| None, &mut sizes).is_err());
    }
}
