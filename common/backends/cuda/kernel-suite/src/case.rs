//! A case.

use roundhouse_cuda_device::DeviceError;
use roundhouse_cuda_kernels::Kernel;

use crate::Runner;

/// A case failed.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The case gave a kernel what it does not take.
    #[error("{kernel}: {message}")]
    Arguments {
        /// The kernel.
        kernel: String,
        /// What is wrong.
        message: String,
    },
    /// A result is not as the reference has it.
    #[error("{what}: element {index} is {found}, expected {expected} within {tolerance}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// Which element.
        index: usize,
        /// What the kernel gave.
        found: f64,
        /// What the reference gives.
        expected: f64,
        /// How far they may be apart.
        tolerance: f64,
    },
}

type Run = dyn Fn(&Runner) -> Result<(), SuiteError> + Send + Sync;

/// One case.
pub struct Case {
    /// Its name: the mechanism and what is special.
    pub name: String,
    /// The kernels that it launches.
    pub kernels: Vec<Kernel>,
    run: Box<Run>,
}

impl Case {
    pub(crate) fn new(
        name: String,
        kernels: Vec<Kernel>,
        run: impl Fn(&Runner) -> Result<(), SuiteError> + Send + Sync + 'static,
    ) -> Self {
        Self { name, kernels, run: Box::new(run) }
    }

    /// Runs it. The runner's image has the case's kernels.
    ///
    /// # Errors
    /// [`SuiteError`].
    pub fn run(&self, runner: &Runner) -> Result<(), SuiteError> {
        (self.run)(runner)
    }
}
