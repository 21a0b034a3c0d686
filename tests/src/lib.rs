//! End-to-end tests, one behaviour a file.
