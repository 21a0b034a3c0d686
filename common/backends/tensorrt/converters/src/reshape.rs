//! How a reshape is told to TensorRT.

use roundhouse_graph::{Dim, Symbol};
use roundhouse_tensorrt_network::{DYNAMIC, Dims};

use crate::shapes::smallest;

/// The dimensions that a shuffle reshapes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Known when the network is built: constants, 0 to copy the input's dimension at the same axis, at most one −1 for
    /// what is left.
    Static(Dims),
    /// Two or more dimensions move or are made anew: a shape tensor.
    ShapeTensor,
}

/// The plan of a reshape between shapes of provably as many elements.
///
/// # Errors
/// Where a dimension may be zero and TensorRT would read that zero as a copy, or could not tell what is left.
pub(crate) fn plan(from: &[Dim], to: &[Dim], symbols: &[Symbol]) -> Result<Plan, String> {
    const COPY: i64 = 0;
    let mut dims = Dims::with_capacity(to.len());
    let mut open = 0;
    for (axis, dim) in to.iter().enumerate() {
        let copies = from.get(axis) == Some(dim);
        dims.push(match dim.as_constant() {
            Some(constant) if constant > 0 => constant,
            _ if copies => COPY,
            _ => {
                open += 1;
                DYNAMIC
            }
        });
    }
    let may_be_zero = to.iter().find(|dim| smallest(dim, symbols) <= 0);
    match (open, may_be_zero) {
        (0, _) | (1, None) => Ok(Plan::Static(dims)),
        (_, None) => Ok(Plan::ShapeTensor),
        (_, Some(dim)) => Err(format!(
            "it reshapes to a dimension of {}, which may be zero: to TensorRT a zero is a copy",
            dim.display(symbols)
        )),
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_graph::SymbolId;

    use super::*;

    fn symbols() -> Vec<Symbol> {
        let symbol = |name: &str, min, max| Symbol { name: name.to_owned(), min, max };
        vec![symbol("batch", 1, 4), symbol("seq", 1, 40), symbol("start", 0, 39)]
    }

    fn shape(text: &str) -> Vec<Dim> {
        let dims = text.split_whitespace().map(|dim| match dim {
            "B" => Dim::symbol(SymbolId(0)),
            "S" => Dim::symbol(SymbolId(1)),
            "P" => Dim::symbol(SymbolId(2)),
            "4S" => Dim::symbol(SymbolId(1)).times(4),
            "BS" => Dim::symbol(SymbolId(0)).times(3),
            number => Dim::constant(number.parse().unwrap()),
        });
        dims.collect()
    }

    #[test]
    fn dimensions_that_stay_are_copied_and_one_is_left() {
        for (from, to, expected) in [
            ("B S 32", "B S 4 8", vec![0, 0, 4, 8]),
            ("B S 4 8", "B S 32", vec![0, 0, 32]),
            ("B 4 S 8", "B 2 4S 8", vec![0, 2, -1, 8]),
            ("B S", "B S 1", vec![0, 0, 1]),
            ("S 6", "2 S 3", vec![2, -1, 3]),
            ("6 4", "8 3", vec![8, 3]),
            ("B P 4", "B P 2 2", vec![0, 0, 2, 2]),
            ("0 4", "0 2 2", vec![0, 2, 2]),
        ] {
            assert_eq!(
                plan(&shape(from), &shape(to), &symbols()),
                Ok(Plan::Static(expected)),
                "{from} to {to}"
            );
        }
    }

    #[test]
    fn dimensions_that_move_need_a_shape_tensor() {
        assert_eq!(plan(&shape("B S 4"), &shape("1 B S 4"), &symbols()), Ok(Plan::ShapeTensor));
        assert_eq!(plan(&shape("B S"), &shape("S B"), &symbols()), Ok(Plan::ShapeTensor));
    }

    #[test]
    fn what_may_be_zero_is_never_left_open() {
        for (from, to) in [("P 4", "4 P"), ("B P", "P B"), ("P S 4", "P 2 S 2"), ("4 0", "0 4")] {
            let reason = plan(&shape(from), &shape(to), &symbols()).unwrap_err();
            assert!(reason.contains("may be zero"), "{from} to {to}: {reason}");
        }
    }
}
