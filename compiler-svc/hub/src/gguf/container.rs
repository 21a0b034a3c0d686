//! The GGUF container, versions 2 and 3, little-endian: metadata and the place of every tensor.
//!
//! A header is not trusted: counts and lengths are bounded by the bytes that are left in the file before anything is
//! allocated for them, and every tensor lies inside the file and overlaps no other.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::HubError;
use crate::file::ReadOnlyFile;

use super::metadata::{Metadata, Scalar, Value};
use super::quantisation::{BlockType, SUPPORTED};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
/// As in ggml.
const MAX_DIMENSIONS: u32 = 4;
/// Longest string: a chat template is a few kilobytes.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// Most strings in all arrays together: several of the largest vocabularies with their merges.
const MAX_STRINGS: u64 = 1 << 23;
const STRING_TYPE: u32 = 8;
const ARRAY_TYPE: u32 = 9;
/// The fewest bytes that a metadata pair and a tensor's description take.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// Where one tensor is.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    /// Slowest axis first, as everywhere in this project (GGUF itself writes the fastest first).
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: BlockType,
    /// From the start of the file.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) file: ReadOnlyFile,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Container {
    pub(crate) fn open(path: &Path) -> Result<Self, HubError> {
        let file = ReadOnlyFile::open(path)?;
        let mut reader =
            Reader { inner: BufReader::new(file.as_file()), position: 0, length: file.len(), strings: 0 };
        let (metadata, tensors) = reader.header(path)?;
        Ok(Self { file, metadata, tensors })
    }
}

/// A failed read, before it is known which file it is of.
enum Failure {
    Corrupt(String),
    Unsupported { found: String, supported: &'static str },
    Io(std::io::Error),
}

fn corrupt<T>(what: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Corrupt(what.into()))
}

struct Reader<R> {
    inner: R,
    position: u64,
    length: u64,
    /// In arrays so far.
    strings: u64,
}

impl<R: Read> Reader<R> {
    fn header(&mut self, path: &Path) -> Result<(Metadata, BTreeMap<String, TensorInfo>), HubError> {
        let parsed = self.counts().and_then(|(tensor_count, pair_count)| {
            let values = self.metadata(pair_count)?;
            let alignment = alignment(&values)?;
            let tensors = self.tensors(tensor_count, alignment)?;
            Ok((values, tensors))
        });
        match parsed {
            Ok((values, tensors)) => Ok((Metadata { path: path.to_owned(), values }, tensors)),
            Err(Failure::Corrupt(what)) => Err(HubError::corrupt(path, what)),
            Err(Failure::Io(source)) => Err(HubError::Io { path: path.to_owned(), source }),
            Err(Failure::Unsupported { found, supported }) => Err(HubError::Unsupported {
                place: path.display().to_string(),
                found,
                supported: supported.to_owned(),
            }),
        }
    }

    fn remaining(&self) -> u64 {
        self.length.saturating_sub(self.position)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        if buffer.len() as u64 > self.remaining() {
            return corrupt(format!("the file ends at byte {} inside its header", self.length));
        }
        self.inner.read_exact(buffer).map_err(Failure::Io)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Failure> {
        let mut bytes = [0; 4];
        self.read(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.read(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Failure> {
        if count > self.remaining() {
            return corrupt(format!(
                "{count} bytes are claimed at byte {}, {} follow",
                self.position,
                self.remaining()
            ));
        }
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn string(&mut self) -> Result<String, Failure> {
        let (position, length) = (self.position, self.u64()?);
        if length > MAX_STRING_BYTES {
            return corrupt(format!("a string of {length} bytes at byte {position}"));
        }
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).or_else(|_| corrupt(format!("the string at byte {position} is not UTF-8")))
    }

    fn counts(&mut self) -> Result<(u64, u64), Failure> {
        let mut magic = [0; 4];
        self.read(&mut magic)?;
        if &magic != MAGIC {
            return corrupt("not a GGUF file: it does not start with \"GGUF\"");
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            let found = if (2..=3).contains(&version.swap_bytes()) {
                "a big-endian GGUF file".to_owned()
            } else {
                format!("GGUF version {version}")
            };
            return Err(Failure::Unsupported { found, supported: "little-endian GGUF, versions 2 and 3" });
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        let remaining = self.remaining();
        if tensors > remaining / MIN_TENSOR_BYTES || pairs > remaining / MIN_PAIR_BYTES {
            return corrupt(format!(
                "{tensors} tensors and {pairs} metadata pairs do not fit into {remaining} bytes"
            ));
        }
        Ok((tensors, pairs))
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>, Failure> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = self.string()?;
            let kind = self.u32()?;
            let value = self.value(&key, kind)?;
            if values.insert(key.clone(), value).is_some() {
                return corrupt(format!("metadata {key:?} is there twice"));
            }
        }
        Ok(values)
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Failure> {
        match kind {
            STRING_TYPE => Ok(Value::String(self.string()?)),
            ARRAY_TYPE => {
                let (element, count) = (self.u32()?, self.u64()?);
                self.array(key, element, count)
            }
            scalar => {
                let Some(scalar) = Scalar::from_id(scalar) else {
                    return corrupt(format!("metadata {key:?} has type {kind}, which there is not"));
                };
                let bytes = self.bytes(scalar.bytes() as u64)?;
                match scalar.decode(&bytes) {
                    Some(number) => Ok(Value::Number(number)),
                    None => corrupt(format!("metadata {key:?} cannot be decoded")),
                }
            }
        }
    }

    fn array(&mut self, key: &str, element: u32, count: u64) -> Result<Value, Failure> {
        if element == STRING_TYPE {
            self.strings = self.strings.saturating_add(count);
            // Every string has at least its length.
            if self.strings > MAX_STRINGS || count > self.remaining() / 8 {
                return corrupt(format!(
                    "metadata {key:?} claims {count} strings, {} bytes follow",
                    self.remaining()
                ));
            }
            let strings = (0..count).map(|_| self.string()).collect::<Result<_, _>>()?;
            return Ok(Value::Strings(strings));
        }
        let Some(scalar) = Scalar::from_id(element) else {
            return corrupt(format!("metadata {key:?} is an array of type {element}, which is not read"));
        };
        match count.checked_mul(scalar.bytes() as u64) {
            Some(length) => Ok(Value::Numbers { scalar, bytes: self.bytes(length)? }),
            None => corrupt(format!("metadata {key:?} claims {count} numbers")),
        }
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<BTreeMap<String, TensorInfo>, Failure> {
        let mut tensors = BTreeMap::new();
        for _ in 0..count {
            let name = self.string()?;
            let info = self.tensor(&name)?;
            if tensors.insert(name.clone(), info).is_some() {
                return corrupt(format!("tensor {name:?} is there twice"));
            }
        }
        let data_start = self.position.next_multiple_of(alignment);
        for (name, tensor) in &mut tensors {
            let start =
                tensor.offset.checked_add(data_start).filter(|_| tensor.offset.is_multiple_of(alignment));
            let end =
                start.and_then(|start| start.checked_add(tensor.bytes)).filter(|&end| end <= self.length);
            let (Some(start), Some(_)) = (start, end) else {
                return corrupt(format!(
                    "tensor {name:?} claims {} bytes at offset {} of the data, which starts at byte {data_start} \
                     of {} and is aligned to {alignment}: the file is cut short or broken",
                    tensor.bytes, tensor.offset, self.length
                ));
            };
            tensor.offset = start;
        }
        let mut order: Vec<(&String, &TensorInfo)> =
            tensors.iter().filter(|(_, tensor)| tensor.bytes > 0).collect();
        order.sort_by_key(|(_, tensor)| tensor.offset);
        for pair in order.windows(2) {
            if let [(first, before), (second, after)] = pair
                && before.offset + before.bytes > after.offset
            {
                return corrupt(format!("tensors {first:?} and {second:?} overlap"));
            }
        }
        Ok(tensors)
    }

    /// With `offset` as in the file: from the start of the data.
    fn tensor(&mut self, name: &str) -> Result<TensorInfo, Failure> {
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return corrupt(format!(
                "tensor {name:?} has {dimensions} dimensions, at most {MAX_DIMENSIONS} are allowed"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        shape.reverse();
        let (kind, offset) = (self.u32()?, self.u64()?);
        let kind = match BlockType::from_id(kind) {
            Ok(kind) => kind,
            Err(kind) => {
                let found = format!("tensor {name:?} of type {kind}");
                return Err(Failure::Unsupported { found, supported: SUPPORTED });
            }
        };
        let block = kind.elements() as u64;
        let row = shape.last().copied().unwrap_or(1);
        let elements = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bytes = elements
            .filter(|_| row.is_multiple_of(block))
            .and_then(|elements| (elements / block).checked_mul(kind.bytes() as u64));
        match bytes {
            Some(bytes) => Ok(TensorInfo { shape, kind, offset, bytes }),
            None => corrupt(format!("tensor {name:?} cannot have shape {shape:?} in blocks of {block}")),
        }
    }
}

fn alignment(values: &BTreeMap<String, Value>) -> Result<u64, Failure> {
    use super::metadata::Number::Unsigned;
    match values.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Number(Unsigned(value)))
            if value.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(value) =>
        {
            Ok(*value)
        }
        Some(_) => {
            corrupt(format!("metadata \"general.alignment\" is no power of two from 8 to {MAX_ALIGNMENT}"))
        }
    }
}
