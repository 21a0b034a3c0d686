//! The inputs of a run: whether they are the network's, and whether a profile allows them.

use std::collections::HashMap;

use roundhouse_backend_conformance::{Rounding, Tensor};
use roundhouse_tensorrt_network::{DYNAMIC, InputRange, Network, Profile, TensorId};

use crate::InterpreterError;
use crate::elements::{store, volume};

/// The tensors of a network, by ID, as they become known.
pub(crate) type TensorValues = HashMap<TensorId, Tensor>;

/// The inputs given by name, if they are those of the network and a profile allows them.
pub(crate) fn bind<'n>(
    network: &Network,
    given: impl IntoIterator<Item = (&'n str, Tensor)>,
    rounding: Rounding,
) -> Result<TensorValues, InterpreterError> {
    let mut values = TensorValues::new();
    for (name, mut tensor) in given {
        let wrong = |what: String| InterpreterError::Input { name: name.to_owned(), what };
        let id = network.inputs().iter().copied().find(|&id| network.tensor(id).name == name);
        let id = id.ok_or_else(|| wrong("there is no such input".to_owned()))?;
        let declared = network.tensor(id);
        if !matches(&declared.dims, &tensor.shape) {
            return Err(wrong(format!("shape {:?}: it must be {:?}", tensor.shape, declared.dims)));
        }
        let count = volume(&tensor.shape).map_err(wrong)?;
        if tensor.len() != count {
            return Err(wrong(format!("{} elements for the shape {:?}", tensor.len(), tensor.shape)));
        }
        store(declared.dtype, &mut tensor.data, rounding).map_err(wrong)?;
        if values.insert(id, tensor).is_some() {
            return Err(wrong("it is given twice".to_owned()));
        }
    }
    let missing = network.inputs().iter().find(|id| !values.contains_key(id));
    if let Some(&id) = missing {
        let name = network.tensor(id).name.clone();
        return Err(InterpreterError::Input { name, what: "it is not given".to_owned() });
    }
    check_profiles(network, &values)?;
    Ok(values)
}

/// Whether a shape has these dimensions, as far as they are known.
pub(crate) fn matches(dims: &[i64], shape: &[usize]) -> bool {
    let fits = |(&dim, &size): (&i64, &usize)| dim == DYNAMIC || i64::try_from(size) == Ok(dim);
    dims.len() == shape.len() && dims.iter().zip(shape).all(fits)
}

/// One profile must allow all inputs: an execution context uses one at a time.
fn check_profiles(network: &Network, values: &TensorValues) -> Result<(), InterpreterError> {
    let mut reasons = Vec::new();
    for (index, profile) in network.profiles.iter().enumerate() {
        match misfit(network, profile, values) {
            None => return Ok(()),
            Some(reason) => reasons.push(format!("profile {index}: {reason}")),
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(InterpreterError::Profile(reasons)) }
}

/// What of the inputs a profile does not allow.
fn misfit(network: &Network, profile: &Profile, values: &TensorValues) -> Option<String> {
    network.inputs().iter().find_map(|id| {
        let (input, tensor) = (network.tensor(*id), values.get(id)?);
        let (found, min, max): (Vec<i64>, _, _) = match profile.inputs.get(&input.name)? {
            InputRange::Dimensions { min, max, .. } => {
                let shape = tensor.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX));
                (shape.collect(), min, max)
            }
            InputRange::Values { min, max, .. } => (tensor.ints().to_vec(), min, max),
        };
        let inside = |(value, (min, max)): (&i64, (&i64, &i64))| (min..=max).contains(&value);
        let allowed = found.iter().zip(min.iter().zip(max)).all(inside);
        (!allowed).then(|| format!("{:?} is {found:?}, not in {min:?}..={max:?}", input.name))
    })
}
