//! Optimization profiles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DYNAMIC, Network, NetworkError, Tensor};

/// An `IOptimizationProfile`: what shapes an engine accepts, by input.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Profile {
    /// A range for each input with dynamic dimensions and for each shape tensor.
    pub inputs: BTreeMap<String, InputRange>,
}

/// The range of one input; the vectors of one range have equal lengths and `min ≤ opt ≤ max` elementwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum InputRange {
    /// Of its dimensions.
    Dimensions {
        /// Smallest.
        min: Vec<i64>,
        /// What kernels are tuned for.
        opt: Vec<i64>,
        /// Largest.
        max: Vec<i64>,
    },
    /// Of the elements of a shape tensor.
    Values {
        /// Smallest.
        min: Vec<i64>,
        /// What kernels are tuned for.
        opt: Vec<i64>,
        /// Largest.
        max: Vec<i64>,
    },
}

impl Network {
    /// Whether an input is a shape tensor: whether a profile gives values of it.
    #[must_use]
    pub fn is_shape_tensor(&self, input: &str) -> bool {
        let values = |profile: &Profile| matches!(profile.inputs.get(input), Some(InputRange::Values { .. }));
        self.profiles.iter().any(values)
    }

    /// Checks that every profile has a range that fits for each input with dynamic dimensions and each shape tensor, and
    /// names nothing but inputs. TensorRT itself accepts some profiles that are not so, and fails later.
    ///
    /// # Errors
    /// [`NetworkError::Profile`].
    pub fn check_profiles(&self) -> Result<(), NetworkError> {
        for (index, profile) in self.profiles.iter().enumerate() {
            let misfit = |input: &str, what: String| {
                Err(NetworkError::Profile { profile: index, input: input.to_owned(), what })
            };
            for (name, range) in &profile.inputs {
                let Some(input) = self.input(name) else {
                    return misfit(name, "there is no such input".to_owned());
                };
                if let Err(what) = range.check(input) {
                    return misfit(name, what);
                }
            }
            for &input in self.inputs() {
                let input = self.tensor(input);
                let found = profile.inputs.get(&input.name);
                if found.is_none() && input.dims.contains(&DYNAMIC) {
                    return misfit(&input.name, format!("dimensions {:?} have no range", input.dims));
                }
                if found.is_none() && self.is_shape_tensor(&input.name) {
                    return misfit(&input.name, "its values have no range, as in another profile".to_owned());
                }
            }
        }
        Ok(())
    }
}

impl InputRange {
    /// Whether the range can be that of this input.
    fn check(&self, input: &Tensor) -> Result<(), String> {
        let (Self::Dimensions { min, opt, max } | Self::Values { min, opt, max }) = self;
        let count = match self {
            Self::Dimensions { .. } => Some(input.dims.len()),
            Self::Values { .. } => {
                if !input.dtype.is_integer() {
                    return Err(format!(
                        "values of a tensor of {}: shape tensors are of integers",
                        input.dtype
                    ));
                }
                match input.dims[..] {
                    [] => Some(1),
                    [length] => usize::try_from(length).ok(),
                    _ => None,
                }
            }
        };
        if [min, opt, max].into_iter().any(|bound| Some(bound.len()) != count) {
            return Err(format!(
                "min {min:?}, opt {opt:?} and max {max:?} do not fit dimensions {:?}",
                input.dims
            ));
        }
        let ordered = |(least, (best, most)): (&i64, (&i64, &i64))| least <= best && best <= most;
        if !min.iter().zip(opt.iter().zip(max)).all(ordered) {
            return Err(format!("min {min:?}, opt {opt:?} and max {max:?} are not in order"));
        }
        if let Self::Dimensions { .. } = self {
            let fits = |(&dim, (&least, &most)): (&i64, (&i64, &i64))| {
                if dim == DYNAMIC { least >= 0 } else { least == dim && most == dim }
            };
            if !input.dims.iter().zip(min.iter().zip(max)).all(fits) {
                return Err(format!("min {min:?} and max {max:?} do not fit dimensions {:?}", input.dims));
            }
        }
        Ok(())
    }
}
