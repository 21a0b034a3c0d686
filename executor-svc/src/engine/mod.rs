//! Engines in memory: loaded once, shared by all their sessions.

mod loaded;
mod registry;

pub use loaded::{LoadError, LoadedEngine, SharedParts};
pub use registry::{Engines, FindError, Loaded};
