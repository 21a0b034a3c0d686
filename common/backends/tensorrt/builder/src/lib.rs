//! Makes TensorRT engines.
