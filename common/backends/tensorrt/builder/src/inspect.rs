//! What a plan says of itself, read without TensorRT.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use roundhouse_engine::{ComputeCapabilities, ComputeCapability};
use roundhouse_tensorrt_library::Version;

/// A plan begins with this.
const MAGIC: &[u8; 4] = b"vtrt";
/// The fixed part at its beginning.
const HEADER_BYTES: usize = 64;
/// What stands before the compute capabilities.
const TARGETS_MARK: &[u8] = b"accelerators={";
/// The most of a plan that is searched for them. They stand in front of its code and weights.
const SEARCHED_BYTES: u64 = 1 << 20;
/// The longest list of them.
const MAX_LIST_BYTES: usize = 256;

/// What a plan says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanHeader {
    /// The version of TensorRT that made it, and that runs it.
    pub version: Version,
    /// The GPUs it is for, where it says so.
    pub targets: ComputeCapabilities,
}

/// A file that is no plan.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is no TensorRT plan: {what}")]
    NoPlan {
        /// The file.
        path: String,
        /// What was expected and what was found.
        what: String,
    },
}

impl PlanHeader {
    /// Reads what a plan says of itself: the magic, bytes 24 to 27 with the version (major, minor, patch and build), and
    /// the list of targets that stands near its beginning.
    ///
    /// # Errors
    /// [`InspectError::Io`], [`InspectError::NoPlan`].
    pub fn read(path: &Path) -> Result<Self, InspectError> {
        let io = |source| InspectError::Io { path: path.display().to_string(), source };
        let refuse = |what: String| InspectError::NoPlan { path: path.display().to_string(), what };
        let mut start = Vec::new();
        File::open(path).map_err(io)?.take(SEARCHED_BYTES).read_to_end(&mut start).map_err(io)?;
        let header =
            start.get(..HEADER_BYTES).ok_or_else(|| refuse(format!("it has {} bytes", start.len())))?;
        if header.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(refuse(format!("it begins with {:02x?}", &header[..MAGIC.len()])));
        }
        let [major, minor, patch] = [header[24], header[25], header[26]].map(u32::from);
        let targets = targets_in(&start).map_err(refuse)?;
        Ok(Self { version: Version { major, minor, patch }, targets })
    }
}

/// The compute capabilities of a text like `accelerators={sm80 sm89 }`.
fn targets_in(bytes: &[u8]) -> Result<ComputeCapabilities, String> {
    let missing = || format!("its first {} bytes name no targets", bytes.len());
    let at =
        bytes.windows(TARGETS_MARK.len()).position(|window| window == TARGETS_MARK).ok_or_else(missing)?;
    let rest = &bytes[at + TARGETS_MARK.len()..];
    let end = rest.iter().take(MAX_LIST_BYTES).position(|&byte| byte == b'}').ok_or_else(missing)?;
    let names = String::from_utf8_lossy(&rest[..end]);
    let targets = names.split_whitespace().map(|name| name.parse::<ComputeCapability>());
    targets.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(list: &str) -> Vec<u8> {
        let mut plan = vec![0; 100];
        plan[..4].copy_from_slice(MAGIC);
        plan[24..28].copy_from_slice(&[1, 7, 1, 116]);
        plan.extend_from_slice(list.as_bytes());
        plan
    }

    fn read(bytes: &[u8]) -> Result<PlanHeader, InspectError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.plan");
        std::fs::write(&path, bytes).unwrap();
        PlanHeader::read(&path)
    }

    #[test]
    fn version_and_targets_are_read() {
        let header = read(&plan("x accelerators={sm80 sm120 }\n}")).unwrap();
        assert_eq!(header.version.to_string(), "1.7.1");
        assert_eq!(header.targets.names(), ["sm_80", "sm_120"]);
    }

    #[test]
    fn what_is_no_plan_is_refused_with_the_reason() {
        let cases: [(&[u8], &str); 5] = [
            (b"vtrt", "4 bytes"),
            (&[b'x'; 100], "begins with [78, 78, 78, 78]"),
            (&plan("nothing"), "name no targets"),
            (&plan("accelerators={sm80 "), "name no targets"),
            (&plan("accelerators={sm999 }"), "sm999"),
        ];
        for (bytes, part) in cases {
            let text = read(bytes).unwrap_err().to_string();
            assert!(text.contains("engine.plan") && text.contains(part), "{text}");
        }
        assert!(matches!(PlanHeader::read(Path::new("/nonexistent/plan")), Err(InspectError::Io { .. })));
    }
}
