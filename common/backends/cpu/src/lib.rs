//! The CPU backend: builder and runtime.
