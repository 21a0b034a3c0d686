//! Reading weights at an offset.
//!
//! Files are read with positioned reads into the caller's buffer and not mapped: what was read does not stay in this
//! process's memory, and a file that is cut short while it is open is an error and not a fault.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use roundhouse_backend::WeightError;

use crate::HubError;

/// Bytes read at once while decoding, about.
const CHUNK_BYTES: usize = 256 * 1024;

/// An open file of known length.
#[derive(Debug)]
pub(crate) struct ReadOnlyFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl ReadOnlyFile {
    pub(crate) fn open(path: &Path) -> Result<Self, HubError> {
        let file = File::open(path).map_err(HubError::io(path))?;
        let metadata = file.metadata().map_err(HubError::io(path))?;
        if !metadata.is_file() {
            return Err(HubError::corrupt(path, "not a regular file"));
        }
        Ok(Self { path: path.to_owned(), file, length: metadata.len() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Reads `length` bytes from `offset` on, in order, in chunks of whole units of `unit` bytes.
    pub(crate) fn for_each_chunk(
        &self,
        offset: u64,
        length: u64,
        unit: usize,
        mut use_chunk: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let chunk = (CHUNK_BYTES / unit).max(1) * unit;
        let mut buffer = vec![0; chunk.min(usize::try_from(length).unwrap_or(chunk))];
        let mut done = 0;
        while done < length {
            let part = &mut buffer[..chunk.min(usize::try_from(length - done).unwrap_or(chunk))];
            self.read_exact_at(part, offset + done)?;
            use_chunk(part);
            done += part.len() as u64;
        }
        Ok(())
    }
}

/// The elements that rows `rows` of a tensor cover: `(first, count)`. A scalar or vector has one element a row.
///
/// # Errors
/// When the tensor has no such rows, or `length` is not exactly theirs.
pub(crate) fn row_elements(
    name: &str,
    shape: &[u64],
    rows: &std::ops::Range<u64>,
    length: usize,
) -> Result<(u64, u64), WeightError> {
    let corrupt = |what| WeightError::Corrupt { name: name.to_owned(), what };
    let available = shape.first().copied().unwrap_or(1);
    if rows.start > rows.end || rows.end > available {
        return Err(corrupt(format!("rows {rows:?} were asked for, it has {available}")));
    }
    let elements = |from: u64, row: Option<u64>| row.and_then(|row| from.checked_mul(row));
    let row = shape.iter().skip(1).try_fold(1u64, |product, &size| product.checked_mul(size));
    let (Some(first), Some(count)) = (elements(rows.start, row), elements(rows.end - rows.start, row)) else {
        return Err(corrupt(format!("shape {shape:?} is too large")));
    };
    if count != length as u64 {
        return Err(corrupt(format!("rows {rows:?} have {count} elements, the buffer has {length}")));
    }
    Ok((first, count))
}

/// For `map_err`: a read of the tensor failed.
pub(crate) fn unreadable(name: &str, path: &Path) -> impl FnOnce(io::Error) -> WeightError {
    let (name, path) = (name.to_owned(), path.display().to_string());
    move |error| WeightError::Corrupt { name, what: format!("{path}: {error}") }
}
