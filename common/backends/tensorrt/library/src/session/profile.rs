//! Optimization profiles. TensorRT checks little of them: it takes ranges of inputs that do not exist, and profiles that
//! lack some.

use std::ffi::CString;

use roundhouse_tensorrt_network::{DYNAMIC, Dims, InputRange, Profile};
use trtx::OptProfileSelector;
use trtx::network::Tensor;
use trtx::optimization_profile::OptimizationProfile;
use trtx::trtx_sys::Dims64;

use super::BuildSession;
use crate::{TensorRtError, raw};

/// An input of the network.
pub(super) struct Input<'w> {
    pub(super) name: String,
    pub(super) dims: Dims,
    pub(super) tensor: Tensor<'w>,
}

/// What a profile must fit.
struct Wanted<'a> {
    name: &'a str,
    dims: &'a [i64],
    /// Whether TensorRT must know its elements.
    is_shape_tensor: bool,
}

impl BuildSession<'_> {
    /// Adds an optimization profile. The whole network must have been defined.
    ///
    /// # Errors
    /// [`TensorRtError::Misuse`] when it does not fit the inputs, [`TensorRtError::Refused`].
    pub fn add_profile(&mut self, profile: &Profile) -> Result<(), TensorRtError> {
        let wanted = self.inputs.iter().map(|input| Wanted {
            name: &input.name,
            dims: &input.dims,
            is_shape_tensor: input.tensor.is_shape_tensor(&self.network),
        });
        check(profile, &wanted.collect::<Vec<_>>()).map_err(TensorRtError::misuse)?;

        let mark = self.errors.mark();
        let refused =
            |session: &Self, error: &trtx::Error| session.refused("an optimization profile", error, mark);
        let created = self.builder.creata_optimization_profile();
        let mut target = created.map_err(|error| refused(self, &error))?;
        for (name, range) in &profile.inputs {
            let (InputRange::Dimensions { min, opt, max } | InputRange::Values { min, opt, max }) = range;
            let selectors = [OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX];
            for (selector, values) in selectors.into_iter().zip([min, opt, max]) {
                let set = match range {
                    InputRange::Dimensions { .. } => {
                        target.set_dimensions(name, selector, &Dims64::from_slice(values))
                    }
                    InputRange::Values { .. } => target.set_shape_values_v2(name, selector, values),
                };
                set.map_err(|error| refused(self, &error))?;
                let held = held(&target, name, selector, range)?;
                if held.as_ref() != Some(values) {
                    return Err(TensorRtError::misuse(format!(
                        "the profile's {selector:?} of {name:?} is {values:?}, TensorRT has {held:?}"
                    )));
                }
            }
        }
        let added = self.config.add_optimization_profile(&mut target);
        added.map(|_| ()).map_err(|error| refused(self, &error))
    }
}

/// What TensorRT holds of a range.
fn held(
    profile: &OptimizationProfile<'_>,
    input: &str,
    which: OptProfileSelector,
    range: &InputRange,
) -> Result<Option<Vec<i64>>, TensorRtError> {
    match range {
        InputRange::Dimensions { .. } => {
            let dims = profile.dimensions(input, which);
            let rank = usize::try_from(dims.nbDims).ok();
            Ok(rank.and_then(|rank| dims.d.get(..rank)).map(<[i64]>::to_vec))
        }
        InputRange::Values { .. } => {
            let input = CString::new(input);
            let input = input.map_err(|_| TensorRtError::misuse("an input's name has a NUL"))?;
            raw::profile_values(profile, &input, which)
        }
    }
}

fn check(profile: &Profile, inputs: &[Wanted<'_>]) -> Result<(), String> {
    for (name, range) in &profile.inputs {
        let input = inputs.iter().find(|input| input.name == name);
        let input = input.ok_or_else(|| format!("the profile has a range of {name:?}, which is no input"))?;
        check_range(input, range).map_err(|what| format!("the profile's range of {name:?}: {what}"))?;
    }
    for input in inputs {
        let range = profile.inputs.get(input.name);
        let (is_dynamic, name) = (input.dims.contains(&DYNAMIC), input.name);
        if is_dynamic && !matches!(range, Some(InputRange::Dimensions { .. })) {
            return Err(format!("the profile lacks the dimensions of {name:?}, which are {:?}", input.dims));
        }
        if input.is_shape_tensor && !is_dynamic && !matches!(range, Some(InputRange::Values { .. })) {
            return Err(format!("the profile lacks the values of {name:?}, a shape tensor"));
        }
    }
    Ok(())
}

fn check_range(input: &Wanted<'_>, range: &InputRange) -> Result<(), String> {
    let (InputRange::Dimensions { min, opt, max } | InputRange::Values { min, opt, max }) = range;
    let length = match range {
        InputRange::Dimensions { .. } => input.dims.len(),
        InputRange::Values { .. } if input.is_shape_tensor && !input.dims.contains(&DYNAMIC) => {
            input.dims.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).product()
        }
        InputRange::Values { .. } => return Err("it is no shape tensor of known size".to_owned()),
    };
    if [min, opt, max].iter().any(|values| values.len() != length) {
        return Err(format!("{min:?}, {opt:?} and {max:?} must have {length} numbers each"));
    }
    for (index, ((min, opt), max)) in min.iter().zip(opt).zip(max).enumerate() {
        if !(0 <= *min && min <= opt && opt <= max) {
            return Err(format!("0 ≤ {min} ≤ {opt} ≤ {max} does not hold at {index}"));
        }
        let dim = input.dims.get(index).copied().unwrap_or(DYNAMIC);
        let is_dims = matches!(range, InputRange::Dimensions { .. });
        if is_dims && dim != DYNAMIC && (*min, *max) != (dim, dim) {
            return Err(format!("{min} to {max} at {index}, where the dimension is {dim}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dimensions(min: &[i64], opt: &[i64], max: &[i64]) -> InputRange {
        InputRange::Dimensions { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
    }

    fn values(min: i64, opt: i64, max: i64) -> InputRange {
        InputRange::Values { min: vec![min], opt: vec![opt], max: vec![max] }
    }

    fn message(ranges: Vec<(&str, InputRange)>) -> Option<String> {
        let profile =
            Profile { inputs: ranges.into_iter().map(|(name, range)| (name.to_owned(), range)).collect() };
        let inputs = [
            Wanted { name: "ids", dims: &[DYNAMIC, 4], is_shape_tensor: false },
            Wanted { name: "end", dims: &[], is_shape_tensor: true },
            Wanted { name: "fixed", dims: &[2], is_shape_tensor: false },
        ];
        check(&profile, &inputs).err()
    }

    #[test]
    fn profiles_that_tensorrt_would_take_are_refused() {
        let ids = || ("ids", dimensions(&[1, 4], &[2, 4], &[8, 4]));
        let end = || ("end", values(0, 4, 8));
        assert_eq!(message(vec![ids(), end()]), None);
        assert_eq!(message(vec![ids(), end(), ("fixed", dimensions(&[2], &[2], &[2]))]), None);
        let refused = [
            (vec![ids(), end(), ("idz", values(0, 1, 2))], "no input"),
            (vec![end()], "lacks the dimensions of \"ids\""),
            (vec![ids()], "lacks the values of \"end\""),
            (vec![ids(), ("end", values(5, 4, 8))], "5 ≤ 4"),
            (vec![ids(), ("end", values(-1, 4, 8))], "0 ≤ -1"),
            (vec![ids(), ("end", values(0, 9, 8))], "9 ≤ 8"),
            (vec![end(), ("ids", dimensions(&[1], &[2], &[8]))], "2 numbers"),
            (vec![end(), ("ids", dimensions(&[1, 4], &[2, 4], &[8, 5]))], "where the dimension is 4"),
            (vec![end(), ("ids", values(1, 2, 3))], "no shape tensor"),
            (vec![ids(), end(), ("fixed", values(1, 1, 1))], "no shape tensor"),
        ];
        for (ranges, part) in refused {
            let message = message(ranges).unwrap_or_default();
            assert!(message.contains(part), "{message:?} has no {part:?}");
        }
    }
}
