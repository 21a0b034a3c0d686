//! Images in: fetching, decoding, and the pre-processing of vision-language models.
//!
//! A [`Fetcher`] gets the bytes of an [`ImageSource`] as far as its [`FetchPolicy`] allows, [`decode`] makes an [`RgbImage`] of
//! them within [`ImageLimits`], and an [`ImageProcessor`] makes of that what the model's vision tower takes. What comes out is
//! what Transformers makes of the same file; what must not come in is refused before it costs anything.

#![forbid(unsafe_code)]

mod decode;
mod digest;
mod error;
mod fetch;
mod limits;
mod normalise;
mod orientation;
mod processor;
mod resample;
mod rgb_image;
mod source;

pub use decode::{decode, format_of};
pub use digest::ImageDigest;
pub use error::{Fault, ImageFormat, VisionError};
pub use fetch::{FetchPolicy, Fetcher, HttpPolicy, ObjectStorePolicy};
pub use limits::ImageLimits;
pub use processor::{Arrangement, ImageLayout, ImageProcessor, ProcessedImage, tokens_per_tile};
pub use resample::{Filter, resize};
pub use rgb_image::RgbImage;
pub use source::ImageSource;
