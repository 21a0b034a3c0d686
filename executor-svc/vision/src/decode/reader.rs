//! The input of decoders that show no rows: it fails once the deadline has passed.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use crate::limits::Deadline;
use crate::{ImageFormat, VisionError};

/// Bytes that are given at once: what they may decode to bounds how late the deadline is seen.
const PIECE: usize = 4096;

/// Bytes in memory, until the deadline.
pub(super) struct DeadlineReader<'a> {
    bytes: Cursor<&'a [u8]>,
    deadline: Deadline,
}

impl<'a> DeadlineReader<'a> {
    pub(super) fn new(bytes: &'a [u8], deadline: Deadline) -> Self {
        Self { bytes: Cursor::new(bytes), deadline }
    }
}

impl Read for DeadlineReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for DeadlineReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.deadline.has_passed() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let rest = self.bytes.fill_buf()?;
        Ok(&rest[..rest.len().min(PIECE)])
    }

    fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
    }
}

impl Seek for DeadlineReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// What a decoder's error of its input means.
pub(super) fn input_error(error: &io::Error, format: ImageFormat, deadline: Deadline) -> VisionError {
    match error.kind() {
        io::ErrorKind::TimedOut => deadline.error(),
        io::ErrorKind::UnexpectedEof => VisionError::Truncated { format, what: "it ends early".to_owned() },
        _ => VisionError::Corrupt { format, what: error.to_string() },
    }
}
