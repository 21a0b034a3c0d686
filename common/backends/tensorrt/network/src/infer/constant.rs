//! `IConstantLayer`. TensorRT takes `kBOOL` constants, though its documentation says that it does not.

use super::{Inferred, length, volume};
use crate::{Constant, RotaryTable, Values};

/// Angles are fp32 products of positions, which are whole numbers in fp32 up to here.
const MAX_POSITIONS: u32 = 1 << 24;

pub(super) fn constant(constant: &Constant) -> Inferred {
    let Constant { dtype, dims, values } = constant;
    let elements = volume(dims)
        .filter(|_| dims.iter().all(|&dim| dim >= 0))
        .ok_or_else(|| format!("a constant of dimensions {dims:?}: they must be static and countable"))?;
    let float = dtype.is_float();
    match values {
        Values::Weight { .. } if float => {}
        Values::Weight { name } => return Err(format!("the weight {name:?} as {dtype}: weights are floats")),
        Values::Floats { values } => {
            if !float {
                return Err(format!("floats in a constant of {dtype}"));
            }
            count(elements, values.len())?;
        }
        Values::Integers { values } => {
            if float {
                return Err(format!("integers in a constant of {dtype}"));
            }
            count(elements, values.len())?;
        }
        Values::RotaryCos(table) | Values::RotarySin(table) => {
            if !float {
                return Err(format!("a rotary table in a constant of {dtype}"));
            }
            rotary(dims, table)?;
        }
    }
    Ok((*dtype, dims.clone()))
}

fn count(elements: i64, values: usize) -> Result<(), String> {
    if elements == length(values) {
        return Ok(());
    }
    Err(format!("{values} values for {elements} elements"))
}

fn rotary(dims: &[i64], table: &RotaryTable) -> Result<(), String> {
    let pairs = length(table.inv_freq.len());
    if dims != [i64::from(table.positions), pairs] {
        return Err(format!("a rotary table of {} positions and {pairs} pairs as {dims:?}", table.positions));
    }
    if table.positions > MAX_POSITIONS {
        return Err(format!(
            "a rotary table of {} positions: at most {MAX_POSITIONS} are exact",
            table.positions
        ));
    }
    Ok(())
}
