//! Streams the weights of a graph into a safetensors file, a few rows at a time.

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use roundhouse_backend::{BackendError, WeightError, WeightSource, evaluate_rows, expr_shape};
use roundhouse_graph::{DType, Graph, WeightExpr};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{ALIGNMENT, PartialFile, file_dtype};

/// Elements evaluated at a time: with their conversion, a few MB of buffers.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// What goes where in a weights file.
pub struct WeightsLayout<'a> {
    /// The file's first bytes: the header's length and the header, padded to [`ALIGNMENT`].
    header: Vec<u8>,
    tensors: Vec<Entry<'a>>,
    data_bytes: u64,
}

struct Entry<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    bytes: usize,
    expr: &'a WeightExpr,
}

impl<'a> WeightsLayout<'a> {
    /// Lays out the weights of a graph.
    ///
    /// # Errors
    /// For a weight whose dtype is no float.
    pub fn new(graph: &'a Graph) -> Result<Self, BackendError> {
        let mut tensors = Vec::new();
        for (_, value, expr) in graph.weights() {
            let refuse = || invalid(format!("weight {:?} with dtype {}", value.name, value.dtype));
            let shape = value.shape.iter().map(|dim| usize::try_from(dim.as_constant()?).ok());
            let shape = shape.collect::<Option<Vec<usize>>>().ok_or_else(refuse)?;
            file_dtype(value.dtype).ok_or_else(refuse)?;
            let bytes = shape.iter().try_fold(value.dtype.size(), |bytes, &dim| bytes.checked_mul(dim));
            let bytes = bytes.ok_or_else(refuse)?;
            tensors.push(Entry { name: &value.name, dtype: value.dtype, shape, bytes, expr });
        }
        // The format has no gaps: what keeps the next tensor aligned goes first, then wider elements before narrower.
        tensors.sort_by_key(|entry| (entry.bytes % ALIGNMENT != 0, std::cmp::Reverse(entry.dtype.size())));

        let mut offset = 0_usize;
        let infos = tensors.iter().filter_map(|entry| {
            let start = offset;
            offset = offset.saturating_add(entry.bytes);
            let (dtype, shape) = (file_dtype(entry.dtype)?, entry.shape.clone());
            Some((entry.name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, offset) }))
        });
        let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format), infos.collect())
            .map_err(|error| invalid(format!("the graph's weights: {error}")))?;
        let mut json = serde_json::to_vec(&metadata)
            .map_err(|error| invalid(format!("the graph's weights: {error}")))?;
        let padded = (size_of::<u64>() + json.len()).next_multiple_of(ALIGNMENT) - size_of::<u64>();
        json.resize(padded, b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(Self { header, tensors, data_bytes: offset as u64 })
    }

    /// The size of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}

/// Writes a weights file. `written` is told the bytes written after every few MB and ends the build with its error.
///
/// # Errors
/// When a weight cannot be read or does not have the graph's shape, when the file cannot be written, or as `written`.
pub fn write_weights(
    layout: &WeightsLayout<'_>,
    source: &dyn WeightSource,
    file: &mut PartialFile,
    written: &dyn Fn(u64) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    for entry in &layout.tensors {
        check_shape(source, entry)?;
    }
    file.write(&layout.header)?;
    let mut done = layout.header.len() as u64;
    written(done)?;
    let mut values = Vec::new();
    let mut halves = Vec::new();
    for entry in &layout.tensors {
        let elements = entry.bytes / entry.dtype.size();
        let rows = expr_shape(source, entry.expr)?.first().copied().unwrap_or(1);
        let width = elements.checked_div(usize::try_from(rows).unwrap_or(usize::MAX)).unwrap_or(0);
        let chunk = CHUNK_ELEMENTS.checked_div(width).unwrap_or(0).max(1) as u64;
        let mut first = 0;
        while first < rows {
            let last = rows.min(first + chunk);
            values.resize((last - first) as usize * width, 0.0);
            evaluate_rows(source, entry.expr, first..last, &mut values)?;
            let bytes = encode(&values, entry.dtype, &mut halves);
            file.write(bytes)?;
            done += bytes.len() as u64;
            written(done)?;
            first = last;
        }
    }
    Ok(())
}

/// The recipe gives the graph's shape; a literal, which has no rows of its own, or a tensor with more dimensions gives
/// at least its elements in order.
fn check_shape(source: &dyn WeightSource, entry: &Entry<'_>) -> Result<(), BackendError> {
    let found = expr_shape(source, entry.expr)?;
    let expected: Vec<u64> = entry.shape.iter().map(|&dim| dim as u64).collect();
    let same_elements = found.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim))
        == Some(expected.iter().product::<u64>());
    let literal = matches!(entry.expr, WeightExpr::Literal { .. });
    if same_elements && (literal || found.first() == expected.first()) {
        return Ok(());
    }
    Err(WeightError::Shape { name: entry.name.to_owned(), expected, found }.into())
}

/// The bytes of `values` in `dtype`, rounded to nearest even.
fn encode<'a>(values: &'a [f32], dtype: DType, halves: &'a mut Vec<u16>) -> &'a [u8] {
    match dtype {
        DType::F16 => {
            halves.resize(values.len(), 0);
            bytemuck::cast_slice_mut::<u16, f16>(halves).convert_from_f32_slice(values);
            bytemuck::cast_slice(halves)
        }
        DType::Bf16 => {
            halves.resize(values.len(), 0);
            bytemuck::cast_slice_mut::<u16, bf16>(halves).convert_from_f32_slice(values);
            bytemuck::cast_slice(halves)
        }
        DType::U8 => {
            halves.resize(values.len().div_ceil(2), 0);
            let bytes = &mut bytemuck::cast_slice_mut::<u16, u8>(halves)[..values.len()];
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "recipes give 0 to 255"
            )]
            bytes.iter_mut().zip(values).for_each(|(byte, &value)| *byte = value as u8);
            bytes
        }
        DType::F32 | DType::I64 | DType::Bool => bytemuck::cast_slice(values),
    }
}

/// Weights that no file can hold.
fn invalid(what: String) -> BackendError {
    BackendError::InvalidArgument(what)
}
