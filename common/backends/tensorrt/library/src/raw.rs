//! What `trtx` does not wrap: the C++ objects inside its types.
//!
//! `trtx` keeps its pointers to itself, except that every `Debug` text begins with the object's address. It is read
//! there. That is bound to the exact version of the crate in the workspace's manifest; where it does not hold, a
//! call here is a [`TensorRtError::Binding`], and a test of every type fails.
#![expect(unsafe_code, reason = "the C++ objects are behind pointers")]

use std::ffi::{CStr, c_void};
use std::fmt::Debug;
use std::pin::Pin;
use std::ptr::NonNull;

use trtx::network::{FillLayer, NetworkDefinition};
use trtx::optimization_profile::OptimizationProfile;
use trtx::trtx_sys::nvinfer1;
use trtx::{Builder, BuilderConfig, CudaEngine, OptProfileSelector};

use crate::TensorRtError;

pub mod engine;
mod layers;
mod stream_writer;

pub(crate) use layers::layers;
pub use layers::{LayerView, TensorView};
pub(crate) use stream_writer::build_to_stream;

/// A type of `trtx` that owns, or is a handle to, a C++ object of type `Object`.
///
/// # Safety
/// `Debug` of the type writes `inner: "…"` first, with the address of its `Object` in hexadecimal, and the object lives as
/// long as the value.
unsafe trait Inner: Debug {
    type Object;

    /// The address of the object.
    fn address(&self) -> Result<NonNull<Self::Object>, TensorRtError> {
        address_in(&format!("{self:?}")).map(NonNull::cast)
    }

    /// The object.
    fn object(&self) -> Result<&Self::Object, TensorRtError> {
        // SAFETY: by the trait's contract there is an object at the address, which lives as long as `self`.
        self.address().map(|address| unsafe { address.as_ref() })
    }

    /// The object, to be changed.
    fn object_mut(&mut self) -> Result<Pin<&mut Self::Object>, TensorRtError> {
        let mut address = self.address()?;
        // SAFETY: as in `object`; `self` is borrowed exclusively and `trtx` gives out no other reference to the object.
        // C++ objects are not moved: the reference is pinned.
        Ok(unsafe { Pin::new_unchecked(address.as_mut()) })
    }
}

// SAFETY: builder.rs of trtx 0.9.1, `impl Debug for Builder`; it owns the object through a `UniquePtr`.
unsafe impl Inner for Builder<'_> {
    type Object = nvinfer1::IBuilder;
}

// SAFETY: builder_config.rs of trtx 0.9.1, `impl Debug for BuilderConfig`; it owns the object through a `UniquePtr`.
unsafe impl Inner for BuilderConfig<'_> {
    type Object = nvinfer1::IBuilderConfig;
}

// SAFETY: network.rs of trtx 0.9.1, `impl Debug for NetworkDefinition`; it owns the object through a `UniquePtr`.
unsafe impl Inner for NetworkDefinition<'_> {
    type Object = nvinfer1::INetworkDefinition;
}

// SAFETY: optimization_profile.rs of trtx 0.9.1, `impl Debug for OptimizationProfile`; it refers to an object of the
// builder's, whose lifetime the handle has.
unsafe impl Inner for OptimizationProfile<'_> {
    type Object = nvinfer1::IOptimizationProfile;
}

// SAFETY: network.rs of trtx 0.9.1, `impl Debug for Layer`; the layer is its network's, whose lifetime the handle has.
unsafe impl Inner for FillLayer<'_> {
    type Object = nvinfer1::IFillLayer;
}

// SAFETY: cuda_engine.rs of trtx 0.9.1, `impl Debug for CudaEngine`; it owns the object through a `UniquePtr`.
unsafe impl Inner for CudaEngine<'_> {
    type Object = nvinfer1::ICudaEngine;
}

/// The address in a text like `Builder { inner: "7f00aa10", .. }`.
fn address_in(text: &str) -> Result<NonNull<c_void>, TensorRtError> {
    let changed = || TensorRtError::Binding { what: format!("its Debug text holds no address: {text:?}") };
    let (_, rest) = text.split_once("{ inner: \"").ok_or_else(changed)?;
    let (digits, _) = rest.split_once('"').ok_or_else(changed)?;
    let address = usize::from_str_radix(digits, 16).map_err(|_| changed())?;
    NonNull::new(std::ptr::with_exposed_provenance_mut(address)).ok_or_else(changed)
}

/// Makes a fill layer of mode `kLINSPACE` count from 0 in steps of 1.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub(crate) fn count_from_zero(layer: &mut FillLayer<'_>, integers: bool) -> Result<(), TensorRtError> {
    let mut fill = layer.object_mut()?;
    if integers {
        fill.as_mut().setAlphaInt64(0);
        fill.setBetaInt64(1);
    } else {
        fill.as_mut().setAlpha(0.0);
        fill.setBeta(1.0);
    }
    Ok(())
}

/// What a profile holds of the values of a shape tensor; `None` if it holds none.
///
/// # Errors
/// [`TensorRtError::Binding`].
pub(crate) fn profile_values(
    profile: &OptimizationProfile<'_>,
    input: &CStr,
    which: OptProfileSelector,
) -> Result<Option<Vec<i64>>, TensorRtError> {
    let profile = profile.object()?;
    // SAFETY: `input` is a C string; TensorRT reads it during the call only.
    let count = unsafe { profile.getNbShapeValues(input.as_ptr()) };
    let Some(count) = usize::try_from(count).ok().filter(|&count| count > 0) else { return Ok(None) };
    // SAFETY: as above.
    let values = unsafe { profile.getShapeValuesV2(input.as_ptr(), which.into()) };
    if values.is_null() {
        return Ok(None);
    }
    // SAFETY: by the contract of `getShapeValuesV2`, as many numbers as `getNbShapeValues` says, in the profile, which is
    // borrowed here.
    Ok(Some(unsafe { std::slice::from_raw_parts(values, count) }.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said here of `trtx` was read in this version. Another one needs all of it read again: where the addresses
    /// are, who owns the objects, the order of `IStreamWriter`'s functions.
    #[test]
    fn trtx_is_the_version_that_was_read() {
        let lock = include_str!("../../../../../Cargo.lock");
        for name in ["trtx", "trtx-sys"] {
            let package = format!("name = \"{name}\"\nversion = \"0.9.1+rtx1.7\"");
            assert!(lock.contains(&package), "{name} has changed");
        }
    }

    #[test]
    fn an_address_is_read_and_anything_else_refused() {
        assert_eq!(address_in("Builder { inner: \"7f00aa10\", .. }").unwrap().as_ptr() as usize, 0x7f00_aa10);
        for text in ["Builder { inner: \"0\", .. }", "Builder { inner: \"x\", .. }", "Builder { id: 1 }", ""]
        {
            assert!(matches!(address_in(text), Err(TensorRtError::Binding { .. })), "{text}");
        }
    }
}
