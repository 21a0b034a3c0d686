//! Flags with underscores mean the same as with hyphens, as in the tool that this one replaces.

use std::ffi::OsString;

/// Turns `--num_tokens=5` into `--num-tokens=5`. Values, and everything after `--`, stay as they are.
pub(crate) fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    args.map(|arg| {
        only_values |= arg == "--";
        match arg.to_str() {
            Some(text) if !only_values && text.starts_with("--") => {
                let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                OsString::from(flag.replace('_', "-") + value)
            }
            _ => arg,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_change() {
        let args = ["r", "--num_tokens", "a_b", "--model_precision=x_y", "-p_q", "--", "--keep_this"];
        let normal = normalise(args.iter().map(OsString::from));
        assert_eq!(
            normal,
            ["r", "--num-tokens", "a_b", "--model-precision=x_y", "-p_q", "--", "--keep_this"]
        );
    }
}
