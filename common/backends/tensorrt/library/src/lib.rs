//! Finds, loads and wraps TensorRT.
