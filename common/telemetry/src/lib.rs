//! Tracing for services and command line.
