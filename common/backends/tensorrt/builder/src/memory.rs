//! How much memory a build may take: of the machine, and of the control group that a container is.

use std::fs;
use std::path::Path;

/// Bytes that this process can still allocate; `None` where the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    available(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn available(proc: &Path, cgroups: &Path) -> Option<u64> {
    let machine = fs::read_to_string(proc.join("meminfo")).ok().and_then(|text| mem_available(&text));
    let group = fs::read_to_string(proc.join("self/cgroup")).ok().and_then(|text| {
        // The groups of the process, the innermost first; a limit of any of them holds.
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
        Path::new(path).ancestors().filter_map(|path| left_in_group(&cgroups.join(path))).min()
    });
    // The first version has a folder for memory of its own, which in a container is the container's.
    let first_version = left_in_first_version(&cgroups.join("memory"));
    [machine, group, first_version].into_iter().flatten().min()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the limit of a group of version 2 leaves; `None` without a limit. Cached files count as free: they go when memory
/// is short.
fn left_in_group(group: &Path) -> Option<u64> {
    let limit = number(&group.join("memory.max"))?;
    let used = number(&group.join("memory.current")).unwrap_or(0);
    let cached = statistic(&group.join("memory.stat"), "inactive_file").unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

fn left_in_first_version(group: &Path) -> Option<u64> {
    let limit = number(&group.join("memory.limit_in_bytes"))?;
    let used = number(&group.join("memory.usage_in_bytes")).unwrap_or(0);
    let cached = statistic(&group.join("memory.stat"), "total_inactive_file").unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// The number in a file; `None` for `max`.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn statistic(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(cgroup: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal: 32 kB\nMemAvailable:      16 kB\n");
        write("proc/self/cgroup", cgroup);
        for (path, text) in files {
            write(&format!("cgroup/{path}"), text);
        }
        available(&root.path().join("proc"), &root.path().join("cgroup"))
    }

    #[test]
    fn without_a_limit_it_is_the_machine_s() {
        assert_eq!(system("0::/\n", &[]), Some(16_384));
        assert_eq!(
            system("0::/a\n", &[("a/memory.max", "max\n"), ("a/memory.current", "5\n")]),
            Some(16_384)
        );
    }

    #[test]
    fn the_tightest_group_limits() {
        let inner = [("a/b/memory.max", "9000"), ("a/b/memory.current", "1000")];
        assert_eq!(system("0::/a/b\n", &inner), Some(8000));
        let outer = [("a/memory.max", "6000"), ("a/memory.current", "5000"), ("a/b/memory.max", "9000")];
        assert_eq!(system("0::/a/b\n", &outer), Some(1000));
        let stat = ("a/memory.stat", "active_file 7\ninactive_file 3000\n");
        assert_eq!(system("0::/a/b\n", &[outer[0], outer[1], outer[2], stat]), Some(4000));
    }

    #[test]
    fn the_first_version_s_limit_is_read() {
        let files = [("memory/memory.limit_in_bytes", "4096"), ("memory/memory.usage_in_bytes", "96")];
        assert_eq!(system("5:memory:/docker\n", &files), Some(4000));
    }

    #[test]
    fn a_limit_that_is_passed_leaves_nothing() {
        let files = [("a/memory.max", "10"), ("a/memory.current", "20")];
        assert_eq!(system("0::/a\n", &files), Some(0));
    }
}
