//! Graphs to TensorRT networks, one converter for each op.
