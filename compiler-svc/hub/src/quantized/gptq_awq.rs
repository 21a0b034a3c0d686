//! Weights as GPTQ's and AWQ's tools pack them: transposed, in words of 32 bits, scales `[groups, N]`.

use roundhouse_graph::WeightFormat;
use safetensors::Dtype;

use super::codes::{Codes, words};
use super::groups::{Columns, Order, Packing, Scales, Zeros};
use super::layer::Layer;
use super::scheme::Gptq;
use super::tensors::{FLOATS, Tensors};

const WORD: &[Dtype] = &[Dtype::I32];

/// The GPTQ weight of `module`.
pub(super) fn gptq(tensors: Tensors<'_>, module: &str, scheme: &Gptq) -> Result<Layer, String> {
    let name = |part: &str| format!("{module}.{part}");
    let (qweight, qzeros, g_idx) = (name("qweight"), name("qzeros"), name("g_idx"));
    let [packed, rows] = tensors.matrix(&qweight, WORD)?;
    let index = tensors.dtype(&g_idx).map(|_| tensors.integers(&g_idx)).transpose()?;
    let columns = match &index {
        Some(index) => index.len() as u64,
        None => packed * 32 / u64::from(scheme.bits),
    };
    let known = if scheme.has_overrides { &[4, 8][..] } else { &[scheme.bits] };
    let Some(&bits) = known.iter().find(|&&bits| words(columns, bits) == packed) else {
        return Err(format!(
            "tensor {qweight:?} has {packed} words a row, which are not {columns} columns of {known:?} bits"
        ));
    };
    let (group_count, size) =
        group_size(tensors, &name("scales"), [rows, columns], scheme.group_size, scheme.has_overrides)?;
    tensors.has_shape(&qzeros, WORD, &[&[group_count, words(rows, bits)]])?;
    let packing = if scheme.zeros_less_one { Packing::LessOne } else { Packing::Plain };
    Ok(Layer {
        rows,
        columns,
        format: if bits == 4 { WeightFormat::Int4 } else { WeightFormat::Int8 },
        codes: Codes::AlongColumns { tensor: qweight, bits },
        groups: match index {
            Some(index) => column_groups(&g_idx, &index, group_count, size)?,
            None => Columns::Contiguous(size),
        },
        group_count,
        scales: Scales { tensor: name("scales"), order: Order::Groups },
        zeros: Some(Zeros::Groups { tensor: qzeros, bits, packing }),
    })
}

/// The AWQ weight of `module`.
pub(super) fn awq(tensors: Tensors<'_>, module: &str, wanted_size: Option<u64>) -> Result<Layer, String> {
    let name = |part: &str| format!("{module}.{part}");
    let (qweight, qzeros) = (name("qweight"), name("qzeros"));
    let [columns, packed] = tensors.matrix(&qweight, WORD)?;
    let rows = packed * 8;
    let (group_count, size) = group_size(tensors, &name("scales"), [rows, columns], wanted_size, false)?;
    tensors.has_shape(&qzeros, WORD, &[&[group_count, packed]])?;
    Ok(Layer {
        rows,
        columns,
        format: WeightFormat::Int4,
        codes: Codes::Awq { tensor: qweight },
        groups: Columns::Contiguous(size),
        group_count,
        scales: Scales { tensor: name("scales"), order: Order::Groups },
        zeros: Some(Zeros::Groups { tensor: qzeros, bits: 4, packing: Packing::Awq }),
    })
}

/// How many groups the scales are of, and the columns of each. The last group may be shorter.
fn group_size(
    tensors: Tensors<'_>,
    scales: &str,
    [rows, columns]: [u64; 2],
    wanted: Option<u64>,
    has_overrides: bool,
) -> Result<(u64, u64), String> {
    let [count, found] = tensors.matrix(scales, FLOATS)?;
    let size = wanted.unwrap_or(columns);
    if found == rows {
        if count == 1 && size >= columns {
            return Ok((1, columns));
        }
        if count == columns.div_ceil(size) {
            return Ok((count, size));
        }
        if has_overrides && columns.is_multiple_of(count) {
            return Ok((count, columns / count));
        }
    }
    Err(format!(
        "tensor {scales:?} has shape [{count}, {found}], expected [{}, {rows}]: groups of {size} of {columns} columns",
        columns.div_ceil(size)
    ))
}

/// Reads which group each column is of. In order it is as if there were no such tensor.
pub(super) fn column_groups(
    name: &str,
    index: &[i32],
    group_count: u64,
    size: u64,
) -> Result<Columns, String> {
    let mut groups = Vec::with_capacity(index.len());
    for (column, &group) in index.iter().enumerate() {
        match u32::try_from(group) {
            Ok(found) if u64::from(found) < group_count => groups.push(found),
            _ => {
                return Err(format!(
                    "tensor {name:?} puts column {column} in group {group}, there are {group_count}"
                ));
            }
        }
    }
    let in_order = (0..).zip(&groups).all(|(column, &group): (u64, _)| u64::from(group) == column / size);
    Ok(if in_order { Columns::Contiguous(size) } else { Columns::Indexed(groups) })
}
