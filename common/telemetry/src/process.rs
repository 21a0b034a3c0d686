//! What the system says of this process.

/// The most memory that this process has had resident, in bytes: `VmHWM` of `/proc/self/status`. 0 where the system
/// does not tell.
#[must_use]
pub fn peak_memory_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// The memory that this process has resident now, in bytes: `VmRSS` of `/proc/self/status`. 0 where the system does not
/// tell.
#[must_use]
pub fn resident_memory_bytes() -> u64 {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| parse(&status, field)).unwrap_or(0)
}

fn parse(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_its_unit_applied() {
        let status = "Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    1234 kB\nVmRSS:\t  7 kB\n";
        assert_eq!(parse(status, "VmHWM:"), Some(1234 * 1024));
        assert_eq!(parse(status, "VmRSS:"), Some(7 * 1024));
        assert_eq!(parse("Name:\tx\n", "VmHWM:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_now_and_had_no_less_at_its_peak() {
        let now = resident_memory_bytes();
        assert!(now > 100 << 10);
        assert!(peak_memory_bytes() >= now);
    }
}
