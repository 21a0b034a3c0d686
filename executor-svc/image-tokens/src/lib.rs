//! From an image's patches to a sequence's tokens.
//!
//! [`PatchWindows`] says in which order patches go through a vision tower that attends within windows, and where they are;
//! [`token_places`] where an image's tokens are along time, height and width; [`encode()`] runs an engine's `vision` and
//! `projector` over images and gives the features of each. All of it is arithmetic on sizes: pixels are only handed on.

#![forbid(unsafe_code)]

mod encode;
mod grid;
mod places;
mod windows;

pub use encode::{EncodeError, Preprocessed, encode};
pub use grid::{GridError, ImageGrid};
pub use places::{plain_places, token_places};
pub use windows::PatchWindows;
