//! The implementation of TLS's cryptography that every HTTP client of a process uses.
//!
//! rustls has several and takes the one that the process has chosen. The gRPC side is built with ring; a second one beside it
//! would be compiled for nothing.

#![forbid(unsafe_code)]

/// Chooses ring for this process, unless something was chosen before. To be called before an HTTP client is made, as often
/// as one is.
pub fn choose_provider() {
    // An error says that one is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_a_provider_however_often_it_is_chosen() {
        for _ in 0..2 {
            super::choose_provider();
            assert!(rustls::crypto::CryptoProvider::get_default().is_some());
        }
    }
}
