//! Weights that other tools quantised, read as they are.
//!
//! A quantised module has several tensors in the files (`qweight`, `weight_scale`, …). Here it has one, `….weight`,
//! with the numbers that they stand for, and so the names and shapes of the model before it was quantised. Where a
//! graph can compute with the integers themselves, [`WeightSource::quantized`] says so; where the columns of one group
//! are scattered (GPTQ with `desc_act`), or a group is cut short, it does not.

mod codes;
mod gptq_awq;
mod groups;
mod layer;
mod part;
mod recent;
mod row_major;
mod scheme;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use roundhouse_backend::{QuantizedTensor, WeightError, WeightSource};
use safetensors::Dtype;

use crate::file::row_elements;
use crate::shards::SafetensorsWeights;

use layer::{Layer, Table};
pub(crate) use part::Part;
use recent::Recent;
pub(crate) use scheme::Scheme;
use tensors::Tensors;

/// The parts of a quantised module, apart from `weight` itself.
const PARTS: [&str; 11] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_g_idx",
    "weight_scale_2",
];
/// Scales with which other programs round activations, for speed.
const ACTIVATION_SCALES: [&str; 2] = ["input_scale", "activation_scale"];
/// Scales with which other programs round what they cache.
const CACHE_SCALES: [&str; 6] =
    ["k_scale", "v_scale", "q_scale", "kv_scale", "output_scale", "kv_cache_scaling_factor"];

/// A checkpoint whose linear weights are quantised.
#[derive(Debug)]
pub(crate) struct QuantizedWeights {
    weights: SafetensorsWeights,
    /// By the name of what they stand for.
    layers: BTreeMap<String, Layer>,
    /// The names of all tensors as a model sees them.
    names: BTreeSet<String>,
    codes: Recent<Vec<u8>>,
    tables: Recent<Table>,
}

impl QuantizedWeights {
    /// Finds the quantised modules and checks that their tensors fit each other.
    ///
    /// # Errors
    /// What does not fit, with the tensor's name.
    pub(crate) fn new(weights: SafetensorsWeights, scheme: &Scheme) -> Result<Self, String> {
        let tensors = Tensors(&weights);
        let mut names: BTreeSet<String> = weights.names().into_iter().collect();
        let mut layers = BTreeMap::new();
        for module in modules(tensors, &names, scheme) {
            let layer = match scheme {
                Scheme::Gptq(scheme) => gptq_awq::gptq(tensors, &module, scheme)?,
                Scheme::Awq { group_size } => gptq_awq::awq(tensors, &module, *group_size)?,
                Scheme::CompressedTensors(declared) => row_major::compressed(tensors, &module, declared)?,
                Scheme::Fp8 { block } => row_major::fp8(tensors, &module, *block)?,
            };
            for part in PARTS {
                names.remove(&format!("{module}.{part}"));
            }
            if matches!(scheme, Scheme::Gptq(_)) {
                hide_zero_bias(tensors, &mut names, &module, layer.rows)?;
            }
            let weight = format!("{module}.weight");
            let is_new = names.insert(weight.clone());
            if is_new != layer.is_renamed() {
                return Err(format!("{weight:?} is there both quantised and not"));
            }
            layers.insert(weight, layer);
        }
        if layers.is_empty() {
            return Err("the config says that weights are quantised, and none is".to_owned());
        }
        if let Some(orphan) = names.iter().find(|name| is_one_of(name, &PARTS)) {
            return Err(format!("tensor {orphan:?} is of no quantised weight"));
        }
        if matches!(scheme, Scheme::CompressedTensors(_) | Scheme::Fp8 { .. }) {
            let what = "activations are computed in the engine's precision, so their scales are not used";
            ignore(&mut names, &ACTIVATION_SCALES, what);
            let what = "the KV cache is kept in the engine's precision, so its scales are not used";
            ignore(&mut names, &CACHE_SCALES, what);
        }
        Ok(Self { weights, layers, names, codes: Recent::new(), tables: Recent::new() })
    }

    /// The quantised matrix of which a tensor is a part.
    fn part_of(&self, name: &str) -> Option<(&str, &Layer, Part)> {
        Part::candidates(name).find_map(|(matrix, part)| {
            let (name, layer) = self.layers.get_key_value(matrix)?;
            layer.shape(part)?;
            Some((name.as_str(), layer, part))
        })
    }

    fn read_part(
        &self,
        name: &str,
        layer: &Layer,
        part: Part,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), WeightError> {
        let step = layer.block_rows();
        let width = out.len() / index(rows.end - rows.start).max(1);
        let (mut row, mut rest) = (rows.start, out);
        while row < rows.end {
            let number = row / step;
            let block = number * step..layer.rows.min((number + 1) * step);
            let last = rows.end.min(block.end);
            let codes = || self.codes.get(name, number, || layer.codes(&self.weights, &block));
            let table = || self.tables.get(name, number, || layer.table(&self.weights, &block));
            let (now, later) = rest.split_at_mut(index(last - row) * width);
            let lines = (index(row - block.start)..).zip(now.chunks_exact_mut(width.max(1)));
            match part {
                Part::Decoded => {
                    let (codes, table): (Arc<Vec<u8>>, Arc<Table>) = (codes()?, table()?);
                    lines.for_each(|(row, out)| layer.decoded(&codes, &table, row, out));
                }
                Part::Values => {
                    let codes = codes()?;
                    lines.for_each(|(row, out)| layer.values(&codes, row, out));
                }
                Part::Scales => {
                    let table = table()?;
                    lines.for_each(|(row, out)| out.copy_from_slice(table.scales(row, layer.group_count)));
                }
                Part::Offsets => {
                    let table = table()?;
                    lines.for_each(|(row, out)| table.offsets(row, layer.group_count, out));
                }
            }
            (row, rest) = (last, later);
        }
        Ok(())
    }
}

impl WeightSource for QuantizedWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        match self.part_of(name).and_then(|(_, layer, part)| layer.shape(part)) {
            Some(shape) => Ok(shape.to_vec()),
            None => self.weights.shape(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().cloned().collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        let Some((of, layer, part)) = self.part_of(name) else {
            return self.weights.read_rows(name, rows, out);
        };
        row_elements(name, &self.shape(name)?, &rows, out.len())?;
        self.read_part(of, layer, part, rows, out)
    }

    fn quantized(&self, name: &str) -> Option<QuantizedTensor> {
        // What cannot be read is an error when it is read.
        self.layers.get(name)?.describe(&self.weights).ok().flatten()
    }
}

/// The modules whose weights are quantised.
fn modules(tensors: Tensors<'_>, names: &BTreeSet<String>, scheme: &Scheme) -> Vec<String> {
    let packed = match scheme {
        Scheme::Gptq(_) | Scheme::Awq { .. } => Some(".qweight"),
        Scheme::CompressedTensors(_) => Some(".weight_packed"),
        Scheme::Fp8 { .. } => None,
    };
    let module = |name: &String| {
        if let Some(module) = packed.and_then(|packed| name.strip_suffix(packed)) {
            return Some(module.to_owned());
        }
        let narrow = matches!(tensors.dtype(name), Some(Dtype::I8 | Dtype::F8_E4M3));
        name.strip_suffix(".weight").filter(|_| narrow).map(str::to_owned)
    };
    names.iter().filter_map(module).collect()
}

/// GPTQ's tools have long written a bias of zeros for every module. A model without biases must not stumble over it, and
/// one with them still finds it.
fn hide_zero_bias(
    tensors: Tensors<'_>,
    names: &mut BTreeSet<String>,
    module: &str,
    rows: u64,
) -> Result<(), String> {
    let name = format!("{module}.bias");
    let Some(dtype) = tensors.dtype(&name) else { return Ok(()) };
    tensors.has_shape(&name, &[dtype], &[&[rows]])?;
    let bytes = tensors.bytes(&name, rows * dtype.bitsize() as u64 / 8)?;
    if bytes.iter().all(|&byte| byte == 0) {
        names.remove(&name);
    }
    Ok(())
}

/// Leaves out tensors that change nothing of what the weights are, and says why.
fn ignore(names: &mut BTreeSet<String>, last_parts: &[&str], why: &str) {
    let before = names.len();
    names.retain(|name| !is_one_of(name, last_parts));
    let tensors = before - names.len();
    if tensors > 0 {
        tracing::info!(tensors, "{why}");
    }
}

/// Whether the last part of a name is one of these.
fn is_one_of(name: &str, last_parts: &[&str]) -> bool {
    name.rsplit_once('.').is_some_and(|(_, last)| last_parts.contains(&last))
}

/// A count as an index. What does not fit finds nothing to index, whatever is read.
fn index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
