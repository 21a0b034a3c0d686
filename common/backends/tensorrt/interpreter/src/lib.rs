//! Runs TensorRT networks on the CPU, as TensorRT documents its layers: the check where no GPU can run them.
