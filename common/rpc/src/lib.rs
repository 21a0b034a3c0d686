//! What both gRPC services share: the server shell, health, reflection, deadlines and error details.

#![forbid(unsafe_code)]

mod deadline;
mod error;
mod health;
mod server;
mod shutdown;

pub use deadline::deadline;
pub use error::{ERROR_DOMAIN, Failure, reason};
pub use health::Readiness;
pub use server::{MAX_MESSAGE_BYTES, ServeError, Server, ServerConfig};
pub use shutdown::shutdown_signal;
