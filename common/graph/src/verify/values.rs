//! Values by themselves: names, shapes, index inputs, and weights with their recipes.

use std::collections::HashSet;

use super::Check;
use crate::infer::MAX_RANK;
use crate::{DType, GraphError, Origin, Value, WeightExpr};

/// The deepest nesting of a recipe.
const MAX_RECIPE_DEPTH: usize = 32;

impl Check<'_> {
    pub(super) fn values(&self) -> Result<(), GraphError> {
        let mut names = HashSet::new();
        for value in &self.graph.values {
            let name = &value.name;
            if name.is_empty() || !names.insert(name) {
                return Err(self.broken(format!("two values are named {name:?}, or it is empty")));
            }
            if value.shape.len() > MAX_RANK {
                let rank = value.shape.len();
                return Err(
                    self.broken(format!("{name:?} has {rank} dimensions, at most {MAX_RANK} are allowed"))
                );
            }
            for dim in &value.shape {
                self.dim(dim, &format!("the shape of {name:?}"))?;
                if self.largest(dim) < 0 {
                    let shape = self.shape(&value.shape);
                    return Err(self.broken(format!("{name:?} has a negative dimension: {shape}")));
                }
            }
            match &value.origin {
                Origin::Input { equals: Some(equals) } => {
                    self.dim(equals, &format!("what {name:?} equals"))?;
                    if value.dtype != DType::I64 || !value.shape.is_empty() {
                        let (dtype, shape) = (value.dtype, self.shape(&value.shape));
                        return Err(
                            self.broken(format!("index input {name:?} must be i64[], not {dtype}{shape}"))
                        );
                    }
                }
                Origin::Weight { expr } => self.weight(value, expr)?,
                Origin::Input { equals: None } | Origin::Node => {}
            }
        }
        Ok(())
    }

    fn weight(&self, value: &Value, expr: &WeightExpr) -> Result<(), GraphError> {
        let name = &value.name;
        if !value.dtype.is_float() && value.dtype != DType::U8 {
            let dtype = value.dtype;
            return Err(self.broken(format!("weight {name:?} is {dtype}; a float dtype or u8 was expected")));
        }
        let mut elements = 1_u64;
        for dim in &value.shape {
            let constant = dim.as_constant().and_then(|dim| u64::try_from(dim).ok()).filter(|&dim| dim > 0);
            elements = match constant.map(|dim| elements.checked_mul(dim)) {
                Some(Some(elements)) => elements,
                Some(None) => return Err(self.broken(format!("weight {name:?} has too many elements"))),
                None => {
                    let shape = self.shape(&value.shape);
                    return Err(self.broken(format!("weight {name:?} has no static shape: {shape}")));
                }
            };
        }
        if let WeightExpr::Literal { values } = expr
            && values.len() as u64 != elements
        {
            let (found, shape) = (values.len(), self.shape(&value.shape));
            return Err(self.broken(format!("weight {name:?} of shape {shape} is given {found} values")));
        }
        self.recipe(name, expr, 0)
    }

    fn recipe(&self, weight: &str, expr: &WeightExpr, depth: usize) -> Result<(), GraphError> {
        if depth > MAX_RECIPE_DEPTH {
            return Err(self.broken(format!("the recipe of {weight:?} is nested too deeply")));
        }
        match expr {
            WeightExpr::Tensor { name } | WeightExpr::Matrix { name } | WeightExpr::Flattened { name }
                if name.is_empty() =>
            {
                Err(self.broken(format!("the recipe of {weight:?} reads a tensor without a name")))
            }
            WeightExpr::Tensor { .. } | WeightExpr::Matrix { .. } | WeightExpr::Flattened { .. } => Ok(()),
            WeightExpr::Transpose { of } | WeightExpr::Quantized { of, .. } => {
                self.recipe(weight, of, depth + 1)
            }
            WeightExpr::Rows { of, start, end } if start < end => self.recipe(weight, of, depth + 1),
            WeightExpr::Rows { start, end, .. } => {
                Err(self.broken(format!("the recipe of {weight:?} cuts rows {start}..{end}")))
            }
            WeightExpr::Concat { parts } if parts.is_empty() => {
                Err(self.broken(format!("the recipe of {weight:?} joins nothing")))
            }
            WeightExpr::Concat { parts } => {
                parts.iter().try_for_each(|part| self.recipe(weight, part, depth + 1))
            }
            WeightExpr::Literal { values } => match values.iter().find(|value| !value.is_finite()) {
                Some(value) => Err(self.broken(format!("the recipe of {weight:?} holds {value}"))),
                None => Ok(()),
            },
        }
    }
}
