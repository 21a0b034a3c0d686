//! What a status says beside its code and message.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::StatusExt as _;

/// The `reason` of the status's `ErrorInfo`; empty when it has none.
#[must_use]
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// The `metadata` of the status's `ErrorInfo`.
#[must_use]
pub fn metadata(status: &Status) -> HashMap<String, String> {
    status.get_error_details().error_info().map(|info| info.metadata.clone()).unwrap_or_default()
}

/// The first field that the status's `BadRequest` names; empty when it names none.
#[must_use]
pub fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violations =
        details.bad_request().map(|request| request.field_violations.as_slice()).unwrap_or_default();
    violations.first().map(|violation| violation.field.clone()).unwrap_or_default()
}
