//! Runs TensorRT engines.
