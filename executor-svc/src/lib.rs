//! The executor service: engine to token stream.
