//! What a device can fail with.

/// What a device can fail with, by meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no driver, or no GPU.
    #[error("no CUDA: {0}")]
    Missing(String),
    /// The driver is older than what the kernels were made for.
    #[error("the NVIDIA driver supports CUDA {found}; kernels need {needed} or newer: update the driver")]
    DriverTooOld {
        /// The CUDA version that it supports.
        found: String,
        /// The oldest one that will do.
        needed: String,
    },
    /// The memory is taken.
    #[error("out of memory on the GPU: {bytes} bytes more are needed and {free} are free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The device, or this process' use of it, is broken: nothing works on it any more.
    #[error("the GPU is lost: {0}; restart the process")]
    Lost(String),
    /// Anything else, in the driver's words.
    #[error("{0}")]
    Failed(String),
}
