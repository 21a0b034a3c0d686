//! Who calls, and by when it wants its answer: what a request's metadata says.

use std::time::Instant;

use roundhouse_rpc::{Failure, deadline};
use tonic::metadata::MetadataMap;

/// Whose sessions and part of the machine a request has. Absent means the tenant without a name.
const TENANT: &str = "roundhouse-tenant";
/// The longest tenant in bytes.
const MAX_TENANT_BYTES: usize = 128;

/// Who calls, and by when it wants its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// The tenant; empty for the one without a name.
    pub(super) tenant: String,
    /// From `grpc-timeout`.
    pub(super) deadline: Option<Instant>,
}

impl Caller {
    /// The caller of a request with this metadata.
    ///
    /// # Errors
    /// INVALID_ARGUMENT when the tenant is not visible ASCII of at most 128 bytes.
    pub(super) fn of(metadata: &MetadataMap) -> Result<Self, Failure> {
        let tenant = metadata.get(TENANT).map(|value| value.to_str());
        let tenant = tenant.transpose().ok().flatten().filter(|tenant| tenant.len() <= MAX_TENANT_BYTES);
        match (tenant, metadata.contains_key(TENANT)) {
            (None, true) => {
                let message = format!("{TENANT} is not visible ASCII of at most {MAX_TENANT_BYTES} bytes");
                Err(Failure::invalid_field(TENANT, message))
            }
            (tenant, _) => {
                Ok(Self { tenant: tenant.unwrap_or_default().to_owned(), deadline: deadline(metadata) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_the_tenant_that_it_says_or_none() {
        let mut metadata = MetadataMap::new();
        assert_eq!(Caller::of(&metadata).unwrap(), Caller { tenant: String::new(), deadline: None });
        metadata.insert(TENANT, "blue team".parse().unwrap());
        assert_eq!(Caller::of(&metadata).unwrap().tenant, "blue team");
        metadata.insert(TENANT, "x".repeat(MAX_TENANT_BYTES + 1).parse().unwrap());
        assert!(Caller::of(&metadata).is_err());
        metadata.insert(TENANT, tonic::metadata::MetadataValue::try_from(&b"\xfe"[..]).unwrap());
        assert!(Caller::of(&metadata).is_err());
    }
}
