//! A GGUF file's tensors under their Hugging Face names.

use std::collections::BTreeMap;
use std::ops::Range;

use roundhouse_backend::{WeightError, WeightSource};

use crate::HubError;
use crate::file::{ReadOnlyFile, row_elements, unreadable};

use super::architecture::{Architecture, TensorName};
use super::container::{Container, TensorInfo};
use super::quantisation::BlockType;

/// One tensor of the checkpoint.
#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    /// Attention heads whose rows are stored interleaved.
    interleaved_heads: Option<u64>,
}

/// All tensors of the checkpoint.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    file: ReadOnlyFile,
    tensors: BTreeMap<String, Tensor>,
}

impl GgufWeights {
    /// Renames the tensors.
    ///
    /// # Errors
    /// When the architecture has no such tensor.
    pub(crate) fn new(container: Container, architecture: Architecture) -> Result<Self, HubError> {
        let mut tensors = BTreeMap::new();
        for (name, info) in container.tensors {
            match architecture.hugging_face_name(&name) {
                Some(TensorName::Weight { name, interleaved_heads }) => {
                    if let Some(heads) = interleaved_heads
                        && !info.shape.first().is_some_and(|&rows| rows.is_multiple_of(2 * heads))
                    {
                        let what = format!("tensor {name:?} of shape {:?} is no {heads} heads", info.shape);
                        return Err(HubError::corrupt(container.file.path(), what));
                    }
                    tensors.insert(name, Tensor { info, interleaved_heads });
                }
                Some(TensorName::Ignored) => {}
                None => {
                    return Err(HubError::Unsupported {
                        place: container.file.path().display().to_string(),
                        found: format!("tensor {name:?} in architecture {:?}", architecture.name()),
                        supported: "this architecture without it".to_owned(),
                    });
                }
            }
        }
        Ok(Self { file: container.file, tensors })
    }

    /// Bytes of all tensors in the file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.info.bytes).sum()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, WeightError> {
        self.tensors.get(name).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    /// Decodes `out.len()` elements from element `first` on.
    fn decode(&self, name: &str, info: &TensorInfo, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        read_elements(&self.file, info.kind, info.offset, first, out)
            .map_err(unreadable(name, self.file.path()))
    }
}

impl WeightSource for GgufWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        Ok(self.tensor(name)?.info.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let Tensor { info, interleaved_heads } = self.tensor(name)?;
        let (first, count) = row_elements(name, &info.shape, &rows, out.len())?;
        let Some(heads) = interleaved_heads else { return self.decode(name, info, first, out) };
        if count == 0 {
            return Ok(());
        }
        let head_dim = info.shape.first().copied().unwrap_or(1) / heads;
        let row_length = out.len() / (rows.end - rows.start) as usize;
        for (row, out) in rows.zip(out.chunks_exact_mut(row_length)) {
            self.decode(name, info, stored_row(row, head_dim) * row_length as u64, out)?;
        }
        Ok(())
    }
}

/// Where the row of a query or key projection is in the file.
///
/// Hugging Face's rotary embedding turns element `i` of a head with element `i + head_dim / 2`; ggml's turns element
/// `2 i` with `2 i + 1`, and its files have each head's rows in that order.
fn stored_row(row: u64, head_dim: u64) -> u64 {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, index) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * index + half
}

/// Decodes elements of a tensor whose blocks start at byte `offset` of the file. They need not be whole blocks.
fn read_elements(
    file: &ReadOnlyFile,
    kind: BlockType,
    offset: u64,
    first: u64,
    out: &mut [f32],
) -> std::io::Result<()> {
    let (elements, bytes) = (kind.elements() as u64, kind.bytes() as u64);
    let first_block = first / elements;
    let mut skip = (first % elements) as usize;
    let block_count = (first + out.len() as u64).div_ceil(elements) - first_block;
    let mut rest = out;
    let mut partial = vec![0.0; kind.elements()];
    file.for_each_chunk(offset + first_block * bytes, block_count * bytes, kind.bytes(), |chunk| {
        let mut chunk = chunk;
        while !chunk.is_empty() {
            let whole =
                if skip == 0 { (rest.len() / partial.len()).min(chunk.len() / kind.bytes()) } else { 0 };
            if whole > 0 {
                let (blocks, after) = chunk.split_at(whole * kind.bytes());
                let (now, later) = std::mem::take(&mut rest).split_at_mut(whole * partial.len());
                kind.decode(blocks, now);
                (chunk, rest) = (after, later);
            } else {
                let (block, after) = chunk.split_at(kind.bytes());
                kind.decode(block, &mut partial);
                let wanted = &partial[skip..];
                let length = wanted.len().min(rest.len());
                let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
                now.copy_from_slice(&wanted[..length]);
                skip = 0;
                (chunk, rest) = (after, later);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_go_back_to_halves() {
        let order: Vec<u64> = (0..8).map(|row| stored_row(row, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn elements_that_are_no_whole_blocks_decode_as_part_of_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blocks");
        let bytes: Vec<u8> = (0..5 * BlockType::Q8_0.bytes()).map(|index| (index * 7 % 61) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = ReadOnlyFile::open(&path).unwrap();
        let mut all = vec![0.0; 5 * 32];
        read_elements(&file, BlockType::Q8_0, 0, 0, &mut all).unwrap();
        for (first, length) in [(0, 1), (31, 2), (5, 100), (32, 64), (33, 127), (159, 1), (160, 0), (40, 0)] {
            let mut part = vec![0.0; length];
            read_elements(&file, BlockType::Q8_0, 0, first, &mut part).unwrap();
            assert_eq!(part, all[first as usize..][..length], "{length} from {first}");
        }
    }
}
