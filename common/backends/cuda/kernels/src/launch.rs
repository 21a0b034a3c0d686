//! How a kernel is launched.

/// Grid, block and shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z; none is 0.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32 (one dimension).
    pub block: u32,
    /// Bytes of dynamic shared memory; over 48 KiB needs the function's attribute raised first.
    pub shared_bytes: u32,
}
