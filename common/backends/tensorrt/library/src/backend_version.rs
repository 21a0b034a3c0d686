//! The version of the backend that builds and runs engines.

use crate::{Flavour, Library};

/// What, changed, makes engines built before unusable or different: the converters' layers, the form of the network's
/// JSON, the signature.
const ENGINE_FORMAT: u32 = 1;

/// `rtx-1.7.1+engine.1`: flavour and version of TensorRT, and the form of the engine. What an engine is built as, and
/// what a runtime asks for.
#[must_use]
pub fn backend_version() -> String {
    format!("{}-{}+engine.{ENGINE_FORMAT}", Flavour::COMPILED.name(), Library::version())
}
