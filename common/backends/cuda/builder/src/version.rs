//! Which engines go with which programs.

/// What, changed, makes engines built before unusable: the form of the plan and of what kernels take.
pub const ENGINE_FORMAT: u32 = 1;

/// The version of engines made with this compiler of kernels.
pub(crate) fn backend_version(compiler: &str) -> String {
    format!("{}+{compiler}", prefix())
}

fn prefix() -> String {
    format!("{}+engine.{ENGINE_FORMAT}", env!("CARGO_PKG_VERSION"))
}

/// Whether this program runs engines of a version: of this program's, with whatever compiled their kernels.
///
/// # Errors
/// The version that is needed.
pub fn can_run(backend_version: &str) -> Result<(), String> {
    let compiler = backend_version.strip_prefix(&prefix()).and_then(|rest| rest.strip_prefix('+'));
    let numbers = compiler.and_then(|compiler| compiler.split_once('.')).map(|(_, numbers)| numbers);
    let is_version = |text: &str| {
        text.split('.').all(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    if numbers.is_some_and(is_version) { Ok(()) } else { Err(format!("{}+nvrtc", prefix())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_of_this_format_run_whatever_compiled_their_kernels() {
        for compiler in ["nvrtc.12.9.86", "nvrtc.13.0", "emulation.1"] {
            can_run(&backend_version(compiler)).unwrap();
        }
        let own = backend_version("nvrtc.12.9.86");
        let other = own.replace("+engine.", "+engine.9");
        for version in [format!("{own}-of-another-time"), other, prefix(), format!("{}+nvrtc.", prefix())] {
            assert!(can_run(&version).is_err(), "{version}");
        }
    }
}
