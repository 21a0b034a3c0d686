//! Images in requests: from encoded bytes to the rows that stand for their tokens.
//!
//! An engine that takes images has an [`ImageInput`]: its processor, and what its vision tower's output becomes in a sequence.
//! [`Images`] decodes, processes and encodes the images of requests, and keeps their features by digest
//! ([`FeatureCache`]). A [`SequenceImage`] is an image at its place in a history, where [`expand`] has put it.

mod encode;
mod feature_cache;
mod input;
mod sequence;
#[cfg(test)]
pub(crate) mod test_support;

pub use encode::{EncodedImage, ImageError, Images};
pub use feature_cache::{FeatureCache, FeatureCacheUsage, FeatureKey};
pub use input::{ImageInput, ImageInputError, NoImages};
pub use sequence::{SequenceImage, WrongPlaceholders, expand, first_difference};
