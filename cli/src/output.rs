//! What a person or a program reads: errors, sizes, durations.

use std::io::IsTerminal as _;

use tonic_types::StatusExt as _;

/// Prints an error and its causes to standard error; of a status from a service also its reason.
pub(crate) fn print_error(error: &anyhow::Error) {
    let (red, reset) = if std::io::stderr().is_terminal() { ("\u{1b}[31m", "\u{1b}[0m") } else { ("", "") };
    eprint!("{red}error:{reset} ");
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        eprintln!("{}", describe(status));
        return;
    }
    eprintln!("{error:#}");
}

/// A status in a line: message, code and reason.
pub(crate) fn describe(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| format!(", {}", info.reason)).unwrap_or_default();
    format!("{} ({:?}{reason})", status.message(), status.code())
}

/// Prints a value as a line of JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Bytes for people: `256.6 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
