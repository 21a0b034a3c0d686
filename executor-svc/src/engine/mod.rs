//! Engines in memory: loaded once, shared by all their sessions.

mod find;
mod load;
mod loaded;
mod registry;
mod room;

pub use find::{FindError, UseError};
pub use load::Loaded;
pub use loaded::{LoadError, LoadedEngine, SharedParts};
pub use registry::Engines;
