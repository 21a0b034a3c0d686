//! Weights as compressed-tensors, ModelOpt and FP8 checkpoints have them: `[N, K]`, scales `[N, groups]`.

use roundhouse_graph::WeightFormat;
use safetensors::Dtype;

use super::codes::{Codes, words};
use super::gptq_awq::column_groups;
use super::groups::{Columns, Order, Scales, Zeros};
use super::layer::Layer;
use super::scheme::{Declared, Storage, Strategy};
use super::tensors::{FLOATS, Tensors};

/// The compressed-tensors weight of `module`, in the first of the declared ways that fits.
pub(super) fn compressed(tensors: Tensors<'_>, module: &str, declared: &[Declared]) -> Result<Layer, String> {
    let mut misfits = Vec::new();
    for &declared in declared {
        match layer(tensors, module, declared, "weight_scale") {
            Ok(layer) => return Ok(layer),
            Err(misfit) => misfits.push(misfit),
        }
    }
    Err(misfits.join("; or, as another config group has it: "))
}

/// The FP8 weight of `module`.
pub(super) fn fp8(tensors: Tensors<'_>, module: &str, block: Option<[u64; 2]>) -> Result<Layer, String> {
    let scales = ["weight_scale_inv", "weight_scale"];
    let scale = scales.into_iter().find(|scale| tensors.dtype(&format!("{module}.{scale}")).is_some());
    let Some(scale) = scale else {
        return Err(format!("tensor \"{module}.weight_scale\" is missing"));
    };
    let one = tensors.shape(&format!("{module}.{scale}"), FLOATS)?.iter().all(|&size| size == 1);
    let strategy = match block {
        Some(block) => Strategy::Block(block),
        None if one => Strategy::Tensor,
        None => Strategy::Channel,
    };
    let declared = Declared { storage: Storage::Bytes(WeightFormat::Fp8), strategy, symmetric: true };
    layer(tensors, module, declared, scale)
}

fn layer(tensors: Tensors<'_>, module: &str, declared: Declared, scale: &str) -> Result<Layer, String> {
    let name = |part: &str| format!("{module}.{part}");
    let (format, codes, [rows, columns]) = codes(tensors, module, declared.storage)?;
    let scale = name(scale);
    let (height, size) = scale_shape(tensors, &scale, declared.strategy, [rows, columns])?;
    let group_count = columns.div_ceil(size);
    let g_idx = name("weight_g_idx");
    let groups = if tensors.dtype(&g_idx).is_some() {
        let index = tensors.integers(&g_idx)?;
        if index.len() as u64 != columns {
            return Err(format!("tensor {g_idx:?} has {} elements, expected {columns}", index.len()));
        }
        column_groups(&g_idx, &index, group_count, size)?
    } else {
        Columns::Contiguous(size)
    };
    let zeros = zeros(tensors, &name("weight_zero_point"), declared, rows, height, group_count)?;
    Ok(Layer {
        rows,
        columns,
        format,
        codes,
        groups,
        group_count,
        scales: Scales { tensor: scale, order: Order::Rows { height } },
        zeros,
    })
}

fn codes(
    tensors: Tensors<'_>,
    module: &str,
    storage: Storage,
) -> Result<(WeightFormat, Codes, [u64; 2]), String> {
    match storage {
        Storage::Bytes(format) => {
            let tensor = format!("{module}.weight");
            let dtype = if format == WeightFormat::Fp8 { Dtype::F8_E4M3 } else { Dtype::I8 };
            let shape = tensors.matrix(&tensor, &[dtype])?;
            Ok((format, Codes::Bytes { tensor }, shape))
        }
        Storage::Packed(bits) => {
            let (tensor, shape) = (format!("{module}.weight_packed"), format!("{module}.weight_shape"));
            let [rows, packed] = tensors.matrix(&tensor, &[Dtype::I32])?;
            tensors.has_shape(&shape, &[Dtype::I64], &[&[2]])?;
            let sizes = tensors.bytes(&shape, 16)?;
            let sizes: Vec<u64> =
                sizes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            // No more columns than the words hold, so that their product cannot overflow.
            let fits = |columns: u64| columns <= packed * 32 && words(columns, bits) == packed;
            match sizes[..] {
                [found, columns] if found == rows && columns > 0 && fits(columns) => {
                    let format = if bits == 4 { WeightFormat::Int4 } else { WeightFormat::Int8 };
                    Ok((format, Codes::AlongRows { tensor, bits }, [rows, columns]))
                }
                _ => Err(format!(
                    "tensor {tensor:?} has shape [{rows}, {packed}], which does not hold {sizes:?} of {bits} bits"
                )),
            }
        }
    }
}

/// The rows and columns that share a scale.
fn scale_shape(
    tensors: Tensors<'_>,
    name: &str,
    strategy: Strategy,
    [rows, columns]: [u64; 2],
) -> Result<(u64, u64), String> {
    match strategy {
        Strategy::Tensor => {
            tensors.has_shape(name, FLOATS, &[&[], &[1], &[1, 1]])?;
            Ok((rows, columns))
        }
        Strategy::Channel => {
            tensors.has_shape(name, FLOATS, &[&[rows, 1], &[rows]])?;
            Ok((1, columns))
        }
        Strategy::Group(size) if !columns.is_multiple_of(size) => {
            Err(format!("tensor {name:?}: groups of {size} do not divide {columns} columns"))
        }
        Strategy::Group(size) => {
            tensors.has_shape(name, FLOATS, &[&[rows, columns / size]])?;
            Ok((1, size))
        }
        Strategy::Block([height, width]) => {
            tensors.has_shape(name, FLOATS, &[&[rows.div_ceil(height), columns.div_ceil(width)]])?;
            Ok((height, width))
        }
    }
}

fn zeros(
    tensors: Tensors<'_>,
    name: &str,
    declared: Declared,
    rows: u64,
    height: u64,
    group_count: u64,
) -> Result<Option<Zeros>, String> {
    let tensor = name.to_owned();
    let Some(dtype) = tensors.dtype(name) else {
        return if declared.symmetric { Ok(None) } else { Err(format!("tensor {name:?} is missing")) };
    };
    let table = [rows.div_ceil(height), group_count];
    if declared.storage == Storage::Bytes(WeightFormat::Fp8) {
        let shape = tensors.shape(name, &[dtype])?;
        let bytes = shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8;
        // Minus zero in E4M3 is one bit.
        return match tensors.bytes(name, bytes)?.iter().all(|byte| byte & 0x7f == 0) {
            true => Ok(None),
            false => Err(format!("tensor {name:?} is not zero, which FP8 weights do not use")),
        };
    }
    match (declared.storage, dtype) {
        (Storage::Packed(bits), Dtype::I32) if height == 1 => {
            tensors.has_shape(name, &[Dtype::I32], &[&[words(rows, bits), group_count]])?;
            Ok(Some(Zeros::AlongRows { tensor, bits }))
        }
        _ => {
            let vector = [table[0]];
            let same = if group_count == 1 { &[&table[..], &vector[..]][..] } else { &[&table[..]] };
            tensors.has_shape(name, &[Dtype::I8], same)?;
            Ok(Some(Zeros::Bytes { tensor, height }))
        }
    }
}
