//! Whether this machine can run TensorRT engines, found out before anything is downloaded or asked of TensorRT: without a
//! GPU it may answer with pointers to nothing.

use std::path::PathBuf;

use roundhouse_backend::{BackendError, LibrarySearch};
use roundhouse_engine::{ComputeCapabilities, ComputeCapability, Manifest};
use roundhouse_tensorrt_library::device::{self, DeviceError as NoDevice};
use roundhouse_tensorrt_library::{Flavour, Library, LibraryError, find_all};

use super::device::CudaDevice;
use crate::DeviceError;
use crate::device::Machine;

/// Which GPU, and where things are.
#[derive(Debug, Clone, Default)]
pub struct CudaConfig {
    /// The GPU, in the driver's order.
    pub device: usize,
    /// Where TensorRT is.
    pub library: LibrarySearch,
    /// The folder in which compiled kernels are kept from one process to the next; none where there is none.
    pub kernel_cache: Option<PathBuf>,
}

/// Why a machine cannot run an engine: what was found, what is needed, and how to get it. Completes the sentence "this
/// machine needs …".
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is no driver, or it finds no GPU.
    #[error("an NVIDIA GPU: {0}")]
    NoGpu(#[from] NoDevice),
    /// There are GPUs, but not this one.
    #[error("a GPU {device}: there are {count}; choose another device")]
    NoSuchGpu {
        /// The GPU asked for.
        device: usize,
        /// How many there are.
        count: usize,
    },
    /// TensorRT does not run on this GPU.
    #[error(
        "an engine of another backend: GPU {device} has compute capability {}, and {flavour} {} runs on {}; compile \
         the model for the cpu backend{}",
        dotted(*found), Library::version(), supported_text(*flavour), other_flavour(*flavour, *found)
    )]
    UnsupportedGpu {
        /// The GPU.
        device: usize,
        /// Its compute capability.
        found: ComputeCapability,
        /// The flavour that this program was compiled for.
        flavour: Flavour,
    },
    /// The engine was built for other GPUs.
    #[error(
        "an engine for {found}: GPU {device} has compute capability {}; compile the model with {found} among its targets",
        dotted(*found)
    )]
    OtherTarget {
        /// The GPU.
        device: usize,
        /// Its compute capability.
        found: ComputeCapability,
    },
    /// TensorRT is not here.
    #[error("{flavour} {version}: {source}", flavour = Flavour::COMPILED, version = Library::version())]
    Library {
        /// What was found, and how to get it.
        #[from]
        source: LibraryError,
    },
    /// The engine was built by another version.
    #[error("version {needed} of the tensorrt backend: compile the model again")]
    Version {
        /// The only version whose engines this program runs.
        needed: String,
    },
}

/// `8.9`.
fn dotted(capability: ComputeCapability) -> String {
    format!("{}.{}", capability.major, capability.minor)
}

fn supported_text(flavour: Flavour) -> String {
    flavour.supported().iter().map(dotted).collect::<Vec<_>>().join(", ")
}

/// Where another flavour runs on the GPU: how to get a program of it.
fn other_flavour(flavour: Flavour, found: ComputeCapability) -> &'static str {
    match flavour {
        Flavour::Rtx if Flavour::Enterprise.supported().contains(found) => {
            ", or use a program with the cargo feature tensorrt-enterprise"
        }
        Flavour::Rtx | Flavour::Enterprise => "",
    }
}

/// What is known of this machine.
struct Facts {
    capabilities: Result<Vec<ComputeCapability>, NoDevice>,
    device: usize,
    flavour: Flavour,
}

impl Facts {
    /// Asks the driver.
    fn of_this_machine(device: usize) -> Self {
        Self { capabilities: device::compute_capabilities(), device, flavour: Flavour::COMPILED }
    }

    /// The GPU's compute capability, which TensorRT runs on.
    fn gpu(&self) -> Result<ComputeCapability, Refusal> {
        let (device, flavour) = (self.device, self.flavour);
        let capabilities = self.capabilities.as_ref().map_err(|error| Refusal::NoGpu(error.clone()))?;
        let count = capabilities.len();
        let &found = capabilities.get(device).ok_or(Refusal::NoSuchGpu { device, count })?;
        if !flavour.supported().contains(found) {
            return Err(Refusal::UnsupportedGpu { device, found, flavour });
        }
        Ok(found)
    }

    /// Whether the GPU is among an engine's targets, where those are named.
    fn target(&self, targets: &[String]) -> Result<(), Refusal> {
        let found = self.gpu()?;
        if !targets.is_empty() && !targets.contains(&found.to_string()) {
            return Err(Refusal::OtherTarget { device: self.device, found });
        }
        Ok(())
    }
}

/// Whether an engine of this version is one that this program runs.
fn check_version(found: &str) -> Result<(), Refusal> {
    let needed = roundhouse_tensorrt_library::backend_version();
    if found == needed { Ok(()) } else { Err(Refusal::Version { needed }) }
}

/// A machine that may have an NVIDIA GPU.
#[derive(Debug, Clone, Default)]
pub struct Cuda {
    config: CudaConfig,
}

impl Cuda {
    /// A GPU of this machine, if it has one. Nothing is looked for yet.
    #[must_use]
    pub fn new(config: CudaConfig) -> Self {
        Self { config }
    }

    /// Whether this machine can run an engine for these targets, built by this version of the backend. Asks in order: is
    /// there a driver, is there a GPU, does TensorRT run on it, was the engine built for it, is TensorRT here, did this
    /// version build the engine.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn supports(&self, targets: &[String], version: &str) -> Result<(), Refusal> {
        Facts::of_this_machine(self.config.device).target(targets)?;
        Library::load(&self.config.library)?;
        check_version(version)
    }
}

impl Machine for Cuda {
    type Device = CudaDevice;

    fn compute_capability(&self) -> Option<ComputeCapability> {
        Facts::of_this_machine(self.config.device).gpu().ok()
    }

    fn check(&self, manifest: &Manifest) -> Result<(), BackendError> {
        let supported = self.supports(&manifest.target.compute_capabilities, &manifest.backend_version);
        supported.map_err(|refusal| BackendError::Incompatible {
            key: manifest.key.to_string(),
            found: match &refusal {
                Refusal::Version { .. } => {
                    format!("version {} of the tensorrt backend", manifest.backend_version)
                }
                _ => manifest.target.to_string(),
            },
            needed: refusal.to_string(),
        })
    }

    fn open(&self) -> Result<CudaDevice, DeviceError> {
        let ready = Facts::of_this_machine(self.config.device).gpu();
        let ready = ready.and_then(|_| Ok(Library::load(&self.config.library)?));
        ready.map_err(|refusal| DeviceError::Engine(format!("this machine needs {refusal}")))?;
        CudaDevice::open(self.config.device)
    }
}

/// One thing that running TensorRT engines needs, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// What was found, or what is missing and how to get it.
    pub outcome: Result<String, String>,
}

/// Everything that running TensorRT engines needs, whether or not something before it is missing.
#[must_use]
pub fn doctor(config: &CudaConfig) -> Vec<Check> {
    let facts = Facts::of_this_machine(config.device);
    let mut checks = vec![Check {
        name: "NVIDIA driver and GPUs",
        outcome: match &facts.capabilities {
            Ok(found) => {
                let list =
                    found.iter().enumerate().map(|(gpu, found)| format!("GPU {gpu} has {}", dotted(*found)));
                Ok(list.collect::<Vec<_>>().join(", "))
            }
            Err(error) => Err(error.to_string()),
        },
    }];
    if facts.capabilities.is_ok() {
        let runs = |found| format!("{} runs on compute capability {}", facts.flavour, dotted(found));
        let outcome = facts.gpu().map(runs).map_err(|refusal| format!("this machine needs {refusal}"));
        checks.push(Check { name: "TensorRT supports the GPU", outcome });
    }
    let library = Library::load(&config.library);
    checks.push(Check {
        name: "TensorRT",
        outcome: match &library {
            Ok(library) => {
                Ok(format!("{} {} at {}", facts.flavour, Library::version(), library.path().display()))
            }
            Err(error) => Err(error.to_string()),
        },
    });
    let others = find_all(&config.library).into_iter();
    for other in others.filter(|other| library.as_ref().map_or(true, |own| own.path() != other.path)) {
        let supported: ComputeCapabilities = other.supported();
        let runs_on = supported.iter().map(dotted).collect::<Vec<_>>().join(", ");
        checks.push(Check {
            name: "another TensorRT",
            outcome: match &other.version {
                Ok(version) => Ok(format!(
                    "{} {version} at {}, for GPUs of {runs_on}",
                    other.flavour,
                    other.path.display()
                )),
                Err(error) => Err(format!("{}: {error}", other.path.display())),
            },
        });
    }
    checks
}

#[cfg(test)]
mod tests;
