//! TensorRT: where it is, loading it, and using it without its traps.
//!
//! [`Library::load`] loads the one TensorRT of the process and checks that it is the version this program was compiled
//! for. A [`BuildSession`] is one network being defined and built; its types rule out what the crate `trtx` leaves to its
//! caller: drop order, lengths of constants, panics that reach C++, names that TensorRT never checks. [`raw`] reaches
//! what `trtx` does not wrap.

#![deny(unsafe_code)]

mod backend_version;
mod dylib;
mod error;
mod find;
mod guard;
mod load;
mod logger;
mod recorder;
mod session;
mod version;

pub mod device;
pub mod flavour;
pub mod raw;
#[cfg(feature = "testing")]
pub mod testing;

pub use backend_version::backend_version;
pub use error::{LibraryError, TensorRtError};
pub use find::{Found, Source, find_all};
pub use flavour::Flavour;
pub use load::Library;
pub use logger::{LogSink, Severity, process_logger, with_log_sink};
pub use recorder::RecordedError;
pub use session::{
    AttentionOperands, BuildFlags, BuildMonitor, BuildSession, DimsOperand, Inferred, TensorHandle,
};
pub use version::Version;
