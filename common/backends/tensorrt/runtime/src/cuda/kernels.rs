//! Kernels that TensorRT finished compiling on this machine, kept in a file from one process to the next.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use roundhouse_tensorrt_library::flavour::Kernels;
use tempfile::NamedTempFile;
use trtx::RuntimeConfig;

/// An engine's compiled kernels and where they are kept.
pub(super) struct KernelCache {
    kernels: Kernels,
    path: PathBuf,
    /// Bytes of the file as it was last read or written.
    kept_bytes: usize,
}

impl KernelCache {
    /// Takes up what is kept in the file. What TensorRT refuses, as that of another driver or GPU, is compiled again.
    pub(super) fn open(kernels: Kernels, path: PathBuf) -> Self {
        let kept = fs::read(&path).unwrap_or_default();
        let accepted = !kept.is_empty() && kernels.restore(&kept);
        if !accepted && !kept.is_empty() {
            tracing::info!(path = %path.display(), "kept kernels are not for this GPU and driver: they are compiled again");
        }
        Self { kernels, path, kept_bytes: if accepted { kept.len() } else { 0 } }
    }

    /// Makes executions of a configuration use and add to them.
    pub(super) fn attach(&self, config: &mut RuntimeConfig<'_>) -> trtx::Result<()> {
        self.kernels.attach(config)
    }

    /// Writes the kernels there are, if there are others than in the file.
    pub(super) fn keep(&mut self) {
        let Some(bytes) = self.kernels.save() else { return };
        if bytes.len() == self.kept_bytes {
            return;
        }
        match write(&self.path, &bytes) {
            Ok(()) => self.kept_bytes = bytes.len(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "compiled kernels were not kept")
            }
        }
    }
}

/// Replaces a file as a whole: who reads meanwhile reads the old one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_its_folder_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels/engine");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }
}
