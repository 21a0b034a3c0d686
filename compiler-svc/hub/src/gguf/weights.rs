//! A GGUF file's tensors under their Hugging Face names.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use roundhouse_backend::{QuantizedTensor, WeightError, WeightSource};

use crate::HubError;
use crate::file::{ReadOnlyFile, row_elements, unreadable};
use crate::quantized::Part;

use super::architecture::Architecture;
use super::container::{Container, TensorInfo};
use super::quantisation::BlockType;
use super::tensor_names::{Layout, TensorName};

/// One tensor of the checkpoint.
#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    /// Of the weight: the stored one, turned around where that is transposed.
    shape: Vec<u64>,
    layout: Layout,
}

impl Tensor {
    /// How it is quantised, if its rows are rows of the file: a graph can then compute with its integers.
    fn packing(&self) -> Option<QuantizedTensor> {
        let rows_are_whole =
            matches!(self.layout, Layout::Same | Layout::OneRow | Layout::InterleavedHeads(_));
        let [_, columns] = self.shape[..] else { return None };
        let whole = rows_are_whole && columns.is_multiple_of(self.info.kind.elements() as u64);
        self.info.kind.packing().filter(|_| whole)
    }

    /// The shape of a part of it; `None` where it has not the part.
    fn part_shape(&self, part: Part) -> Option<[u64; 2]> {
        self.packing()?;
        let [rows, columns] = self.shape[..] else { return None };
        Some([rows, columns / self.info.kind.elements() as u64 * self.info.kind.part_width(part)? as u64])
    }

    /// Where a row is in the file.
    fn stored_row(&self, row: u64) -> u64 {
        match self.layout {
            Layout::InterleavedHeads(heads) => {
                stored_row(row, self.shape.first().copied().unwrap_or(1) / heads)
            }
            Layout::Same | Layout::Transposed | Layout::OnePlusWeight | Layout::OneRow => row,
        }
    }
}

/// All tensors of the checkpoint.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    file: ReadOnlyFile,
    tensors: BTreeMap<String, Tensor>,
    /// The last transposed tensor that was read, whole: any of its rows takes all of its blocks.
    transposed: Mutex<Option<(String, Arc<[f32]>)>>,
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
                Some(TensorName::Weight { name, layout }) => {
                    let shape = weight_shape(&name, &info, layout)
                        .map_err(|what| HubError::corrupt(container.file.path(), what))?;
                    tensors.insert(name, Tensor { info, shape, layout });
                }
                Some(TensorName::Experts { prefix, suffix }) => {
                    let parts = of_experts(&name, &info, architecture.experts())
                        .map_err(|what| HubError::corrupt(container.file.path(), what))?;
                    tensors.extend(parts.enumerate().map(|(expert, info)| {
                        let tensor = Tensor { shape: info.shape.clone(), info, layout: Layout::Same };
                        (format!("{prefix}.{expert}{suffix}"), tensor)
                    }));
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
        Ok(Self { file: container.file, tensors, transposed: Mutex::new(None) })
    }

    /// Bytes of all tensors in the file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.info.bytes).sum()
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, WeightError> {
        self.tensors.get(name).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    /// The quantised matrix of which a tensor is a part, if it is one.
    fn part_of(&self, name: &str) -> Option<(&Tensor, Part, [u64; 2])> {
        Part::candidates(name).filter(|(_, part)| *part != Part::Decoded).find_map(|(matrix, part)| {
            let tensor = self.tensors.get(matrix)?;
            Some((tensor, part, tensor.part_shape(part)?))
        })
    }

    /// Reads rows of a part of a matrix.
    fn read_part(
        &self,
        name: &str,
        tensor: &Tensor,
        part: Part,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), WeightError> {
        let TensorInfo { kind, offset, .. } = tensor.info;
        let row_blocks = tensor.shape.last().copied().unwrap_or(0) / kind.elements() as u64;
        let row_bytes = row_blocks * kind.bytes() as u64;
        let (count, length) = (rows.end - rows.start, out.len());
        // Rows that are next to each other in the file are read at once.
        let at_once = if matches!(tensor.layout, Layout::Same) { count } else { 1 };
        let width = length / usize::try_from((count / at_once.max(1)).max(1)).unwrap_or(usize::MAX);
        let firsts = rows.step_by(usize::try_from(at_once.max(1)).unwrap_or(usize::MAX));
        for (first, mut rest) in firsts.zip(out.chunks_exact_mut(width.max(1))) {
            let start = offset + tensor.stored_row(first) * row_bytes;
            let read = |chunk: &[u8]| {
                let blocks = chunk.len() / kind.bytes();
                let length = blocks * kind.part_width(part).unwrap_or(0);
                let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
                kind.decode_part(part, chunk, now);
                rest = later;
            };
            self.file
                .for_each_chunk(start, at_once * row_bytes, kind.bytes(), read)
                .map_err(unreadable(name, self.file.path()))?;
        }
        Ok(())
    }

    /// Decodes `out.len()` elements from element `first` on.
    fn decode(&self, name: &str, info: &TensorInfo, first: u64, out: &mut [f32]) -> Result<(), WeightError> {
        read_elements(&self.file, info.kind, info.offset, first, out)
            .map_err(unreadable(name, self.file.path()))
    }

    /// All of a tensor `[columns, rows]`, as `[rows, columns]`.
    fn turned(&self, name: &str, info: &TensorInfo) -> Result<Arc<[f32]>, WeightError> {
        let mut last = self.transposed.lock();
        if let Some((_, values)) = last.as_ref().filter(|(cached, _)| cached == name) {
            return Ok(Arc::clone(values));
        }
        // Released before the next one is read.
        *last = None;
        let [columns, rows] = [0, 1].map(|axis| info.shape.get(axis).copied().unwrap_or(0) as usize);
        let mut stored = vec![0.0; columns * rows];
        self.decode(name, info, 0, &mut stored)?;
        let values: Arc<[f32]> =
            (0..rows).flat_map(|row| stored.iter().skip(row).step_by(rows.max(1)).copied()).collect();
        *last = Some((name.to_owned(), Arc::clone(&values)));
        Ok(values)
    }
}

/// The matrices of a tensor `[experts, rows, columns]`, or what is wrong with it.
fn of_experts(
    name: &str,
    info: &TensorInfo,
    experts: u64,
) -> Result<impl Iterator<Item = TensorInfo> + use<>, String> {
    let shape = &info.shape;
    let [count, rows, columns] = shape[..] else {
        return Err(format!("tensor {name:?} of shape {shape:?} is no matrix an expert"));
    };
    if count != experts {
        return Err(format!("tensor {name:?} of shape {shape:?} is not of {experts} experts"));
    }
    // Rows are whole blocks, and so are matrices.
    let (kind, offset, bytes) = (info.kind, info.offset, info.bytes / count.max(1));
    let part =
        move |expert| TensorInfo { shape: vec![rows, columns], kind, offset: offset + expert * bytes, bytes };
    Ok((0..count).map(part))
}

/// The shape of a weight that is stored so, or what is wrong with it.
fn weight_shape(name: &str, info: &TensorInfo, layout: Layout) -> Result<Vec<u64>, String> {
    let shape = &info.shape;
    match layout {
        Layout::InterleavedHeads(heads)
            if !shape.first().is_some_and(|&rows| rows.is_multiple_of(2 * heads)) =>
        {
            Err(format!("tensor {name:?} of shape {shape:?} is no {heads} heads"))
        }
        Layout::Transposed => match shape[..] {
            [columns, rows] => Ok(vec![rows, columns]),
            _ => Err(format!("tensor {name:?} of shape {shape:?} is no matrix")),
        },
        Layout::OneRow => match shape[..] {
            [columns] | [1, columns] => Ok(vec![1, columns]),
            _ => Err(format!("tensor {name:?} of shape {shape:?} is no row")),
        },
        _ => Ok(shape.clone()),
    }
}

impl WeightSource for GgufWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        match self.part_of(name) {
            Some((.., shape)) => Ok(shape.to_vec()),
            None => Ok(self.tensor(name)?.shape.clone()),
        }
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        if let Some((tensor, part, shape)) = self.part_of(name) {
            row_elements(name, &shape, &rows, out.len())?;
            return self.read_part(name, tensor, part, rows, out);
        }
        let tensor = self.tensor(name)?;
        let Tensor { info, shape, layout } = tensor;
        let (first, count) = row_elements(name, shape, &rows, out.len())?;
        match layout {
            Layout::Same | Layout::OneRow => self.decode(name, info, first, out),
            Layout::OnePlusWeight => {
                self.decode(name, info, first, out)?;
                out.iter_mut().for_each(|value| *value -= 1.0);
                Ok(())
            }
            Layout::Transposed => {
                let first = usize::try_from(first).unwrap_or(usize::MAX);
                out.copy_from_slice(&self.turned(name, info)?[first..first + out.len()]);
                Ok(())
            }
            Layout::InterleavedHeads(_) if count == 0 => Ok(()),
            Layout::InterleavedHeads(_) => {
                let row_length = out.len() / (rows.end - rows.start) as usize;
                for (row, out) in rows.zip(out.chunks_exact_mut(row_length)) {
                    self.decode(name, info, tensor.stored_row(row) * row_length as u64, out)?;
                }
                Ok(())
            }
        }
    }

    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        self.tensors.get(name)?.packing()
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
