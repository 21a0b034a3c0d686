//! What the CUDA backend needs of a device.
//!
//! [`Device`] is memory, streams, kernels and graphs of launches, by addresses and handles as the driver has them.
//! [`Driver`] is the one with NVIDIA's driver, which is looked for when it is first asked for: a program that uses it
//! starts on a machine that has none. [`Memory`], [`Pinned`] and [`OwnedEvent`] give back what they
//! hold when they are dropped.

#![deny(unsafe_code)]

mod device;
mod driver;
mod error;
mod memory;

pub use device::{Device, Event, Function, Graph, Launch, Module, Properties, Stream};
pub use driver::{Driver, GPU, compute_capability, driver_version};
pub use error::DeviceError;
pub use memory::{Memory, OwnedEvent, Pinned};
