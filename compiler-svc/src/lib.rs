//! The compiler service: checkpoint to engine.
