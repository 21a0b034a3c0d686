//! The tiny Llama as quantisation tools write it: the weights of its layers in their packing, by rounding each group.
//!
//! What the tools themselves write is among the tests of `compiler-svc/hub`, layer by layer. These are whole models, and
//! what counts is that two engines of one agree.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use roundhouse_backend::quantized_number;
use roundhouse_graph::WeightFormat;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// Columns that share a scale, where the packing has groups.
const GROUP: usize = 32;
/// Which row of eight a nibble of an AWQ word holds, lowest nibble first.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Weights of these modules are quantised.
const QUANTISED: &str = "_proj.weight";

/// A tool and what it makes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// GPTQ: four bits in groups, symmetric.
    Gptq,
    /// GPTQ with zero points.
    GptqAsymmetric,
    /// AWQ: four bits in groups with zero points.
    Awq,
    /// compressed-tensors: four bits in groups.
    CompressedInt4,
    /// compressed-tensors: eight bits, a scale a row.
    CompressedInt8,
    /// compressed-tensors: E4M3, a scale a row.
    CompressedFp8,
    /// ModelOpt: E4M3, one scale a weight.
    ModelOptFp8,
}

/// A tensor of a file.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// A matrix `[rows, columns]`.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// Codes `[rows, columns]`, and `[rows, columns / group]` scales and zero points.
struct Coded {
    rows: usize,
    columns: usize,
    group: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Gptq,
        Self::GptqAsymmetric,
        Self::Awq,
        Self::CompressedInt4,
        Self::CompressedInt8,
        Self::CompressedFp8,
        Self::ModelOptFp8,
    ];

    /// Writes `checkpoint`, a folder of fp32 weights, into a new folder of `parent` as this tool would.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(self, checkpoint: &Path, parent: &Path) -> Result<PathBuf> {
        let folder = parent.join(format!("{self:?}"));
        std::fs::create_dir_all(&folder)?;
        for file in std::fs::read_dir(checkpoint)? {
            let file = file?;
            std::fs::copy(file.path(), folder.join(file.file_name()))?;
        }
        let (name, declared) = self.declaration();
        let path = folder.join(name);
        let mut json = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Value>(&bytes)?,
            Err(_) => json!({}),
        };
        for (key, value) in declared.as_object().into_iter().flatten() {
            json[key] = value.clone();
        }
        std::fs::write(path, serde_json::to_vec(&json)?)?;

        let path = folder.join("model.safetensors");
        let file = std::fs::read(&path)?;
        let mut stored = Vec::new();
        for (name, tensor) in SafeTensors::deserialize(&file)?.iter() {
            match (name.strip_suffix(".weight"), tensor.shape()) {
                (Some(module), &[rows, columns]) if name.ends_with(QUANTISED) => {
                    let values = tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                    let matrix = Matrix { rows, columns, values: values.collect() };
                    stored.extend(self.quantise(module, &matrix));
                }
                _ => stored.push(Stored {
                    name: name.to_owned(),
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    data: tensor.data().to_vec(),
                }),
            }
        }
        let views = stored.iter().map(|tensor| {
            Ok((tensor.name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data)?))
        });
        let views = views.collect::<Result<Vec<_>>>().context("a tensor's bytes")?;
        std::fs::write(path, safetensors::serialize(views, None)?)?;
        Ok(folder)
    }

    /// The file that says how weights are quantised, and what is in it.
    fn declaration(self) -> (&'static str, Value) {
        let compressed = |format: &str, weights: Value| {
            let group = json!({"targets": ["Linear"], "input_activations": null, "weights": weights});
            json!({"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
                "config_groups": {"group_0": group}})
        };
        let channel = |kind: &str| json!({"num_bits": 8, "type": kind, "symmetric": true, "strategy": "channel", "dynamic": false});
        let config = match self {
            Self::Gptq | Self::GptqAsymmetric => {
                json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP,
                "sym": self == Self::Gptq, "desc_act": false, "checkpoint_format": "gptq_v2"})
            }
            Self::Awq => json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
                "zero_point": true}),
            Self::CompressedInt4 => compressed(
                "pack-quantized",
                json!({"num_bits": 4, "type": "int", "symmetric": true, "group_size": GROUP, "strategy": "group",
                    "dynamic": false}),
            ),
            Self::CompressedInt8 => compressed("int-quantized", channel("int")),
            Self::CompressedFp8 => compressed("float-quantized", channel("float")),
            Self::ModelOptFp8 => {
                let quantization = json!({"quant_algo": "FP8", "exclude_modules": ["lm_head"]});
                return (
                    "hf_quant_config.json",
                    json!({"producer": {"name": "modelopt"}, "quantization": quantization}),
                );
            }
        };
        ("config.json", json!({"quantization_config": config}))
    }

    /// The tensors of a module's weight.
    fn quantise(self, module: &str, matrix: &Matrix) -> Vec<Stored> {
        let tensor = |part: &str, dtype, shape: &[usize], data| Stored {
            name: format!("{module}.{part}"),
            dtype,
            shape: shape.to_vec(),
            data,
        };
        let (rows, columns) = (matrix.rows, matrix.columns);
        match self {
            Self::Gptq | Self::GptqAsymmetric => {
                let coded = matrix.nibbles(self == Self::GptqAsymmetric);
                let groups = columns / GROUP;
                let words = (0..columns / 8).flat_map(|word| {
                    let code = |row: usize, place: usize| coded.codes[row * columns + word * 8 + place];
                    (0..rows).map(move |row| pack(|place| code(row, place))).collect::<Vec<_>>()
                });
                vec![
                    tensor("qweight", Dtype::I32, &[columns / 8, rows], bytes(words)),
                    tensor("qzeros", Dtype::I32, &[groups, rows / 8], bytes(coded.zero_words(|place| place))),
                    tensor("scales", Dtype::BF16, &[groups, rows], coded.scales_by_group()),
                ]
            }
            Self::Awq => {
                let coded = matrix.nibbles(true);
                let groups = columns / GROUP;
                let words = (0..columns).flat_map(|column| {
                    let code = |word: usize, place: usize| {
                        coded.codes[(word * 8 + AWQ_ORDER[place]) * columns + column]
                    };
                    (0..rows / 8).map(move |word| pack(|place| code(word, place))).collect::<Vec<_>>()
                });
                let zeros = coded.zero_words(|place| AWQ_ORDER[place]);
                vec![
                    tensor("qweight", Dtype::I32, &[columns, rows / 8], bytes(words)),
                    tensor("qzeros", Dtype::I32, &[groups, rows / 8], bytes(zeros)),
                    tensor("scales", Dtype::BF16, &[groups, rows], coded.scales_by_group()),
                ]
            }
            Self::CompressedInt4 => {
                let coded = matrix.nibbles(false);
                let words = coded.codes.as_chunks::<8>().0.iter().map(|codes| pack(|place| codes[place]));
                let shape = [rows as u64, columns as u64].into_iter().flat_map(u64::to_le_bytes).collect();
                vec![
                    tensor("weight_packed", Dtype::I32, &[rows, columns / 8], bytes(words)),
                    tensor("weight_shape", Dtype::I64, &[2], shape),
                    tensor("weight_scale", Dtype::BF16, &[rows, columns / GROUP], halves(coded.scales)),
                ]
            }
            Self::CompressedInt8 => {
                let coded = matrix.bytes(WeightFormat::Int8, columns);
                vec![
                    tensor("weight", Dtype::I8, &[rows, columns], coded.codes),
                    tensor("weight_scale", Dtype::BF16, &[rows, 1], halves(coded.scales)),
                ]
            }
            Self::CompressedFp8 => {
                let coded = matrix.bytes(WeightFormat::Fp8, columns);
                vec![
                    tensor("weight", Dtype::F8_E4M3, &[rows, columns], coded.codes),
                    tensor("weight_scale", Dtype::BF16, &[rows, 1], halves(coded.scales)),
                ]
            }
            Self::ModelOptFp8 => {
                let coded = matrix.bytes(WeightFormat::Fp8, rows * columns);
                let scale = coded.scales[0].to_le_bytes().to_vec();
                vec![
                    tensor("weight", Dtype::F8_E4M3, &[rows, columns], coded.codes),
                    tensor("weight_scale", Dtype::F32, &[], scale),
                ]
            }
        }
    }
}

impl Matrix {
    /// Groups of four bits: with zero points from the smallest number to the largest, else around 8.
    fn nibbles(&self, asymmetric: bool) -> Coded {
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for group in self.values.chunks_exact(GROUP) {
            let lowest = group.iter().copied().fold(0.0_f32, f32::min);
            let highest = group.iter().copied().fold(0.0_f32, f32::max);
            let range = if asymmetric { (highest - lowest) / 15.0 } else { highest.max(-lowest) / 7.0 };
            let scale = short(range);
            let zero = if asymmetric { (-lowest / scale).round().clamp(0.0, 15.0) } else { 8.0 };
            codes.extend(group.iter().map(|x| ((x / scale).round() + zero).clamp(0.0, 15.0) as u8));
            scales.push(scale);
            zeros.push(zero as u8);
        }
        Coded { rows: self.rows, columns: self.columns, group: GROUP, codes, scales, zeros }
    }

    /// Bytes that share a scale in groups of so many.
    fn bytes(&self, format: WeightFormat, group: usize) -> Coded {
        let largest_code = if format == WeightFormat::Fp8 { 448.0 } else { 127.0 };
        let numbers: Vec<_> = (0..=u8::MAX).map(|code| (code, quantized_number(format, code))).collect();
        let nearest = |x: f32| {
            let distance = |number: f32| if number.is_nan() { f32::INFINITY } else { (number - x).abs() };
            let found = numbers.iter().min_by(|(_, a), (_, b)| distance(*a).total_cmp(&distance(*b)));
            found.map_or(0, |(code, _)| *code)
        };
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for group in self.values.chunks_exact(group) {
            let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let scale = short(largest / largest_code);
            codes.extend(group.iter().map(|x| nearest(x / scale)));
            scales.push(scale);
        }
        Coded { rows: self.rows, columns: self.columns, group, codes, scales, zeros: Vec::new() }
    }
}

impl Coded {
    /// Zero points as words of eight rows, a line a group; nibble `place` holds row `row_of(place)`.
    fn zero_words(&self, row_of: impl Fn(usize) -> usize) -> Vec<u32> {
        let groups = self.columns / self.group;
        let words = (0..groups).flat_map(|group| (0..self.rows / 8).map(move |word| (group, word)));
        words
            .map(|(group, word)| pack(|place| self.zeros[(word * 8 + row_of(place)) * groups + group]))
            .collect()
    }

    /// Scales `[groups, rows]`.
    fn scales_by_group(&self) -> Vec<u8> {
        let groups = self.columns / self.group;
        let turned =
            (0..groups).flat_map(|group| (0..self.rows).map(move |row| self.scales[row * groups + group]));
        halves(turned.collect())
    }
}

/// A scale of 8 significant bits, as bf16 and fp16 have them; never zero.
fn short(scale: f32) -> f32 {
    f32::from_bits(scale.max(1e-4).to_bits() & 0xffff_0000)
}

fn halves(numbers: Vec<f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Eight nibbles in a word, the lowest first.
fn pack(code: impl Fn(usize) -> u8) -> u32 {
    (0..8).fold(0, |word, place| word | u32::from(code(place)) << (4 * place))
}

fn bytes(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use roundhouse_backend::WeightSource;
    use roundhouse_hub::{Checkpoint, Checkpoints, HubConfig, Unwatched};

    use super::*;

    const PROJECTIONS: [&str; 2] =
        ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"];

    async fn open(folder: &Path, cache: &Path) -> Checkpoint {
        let config = HubConfig { cache: cache.to_owned(), ..HubConfig::from_env() };
        Checkpoints::new(config).open(folder.to_str().unwrap(), None, &Unwatched).await.unwrap()
    }

    fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
        let shape = checkpoint.shape(name).unwrap();
        let mut out = vec![f32::NAN; shape.iter().product::<u64>() as usize];
        checkpoint.read_rows(name, 0..shape[0], &mut out).unwrap();
        out
    }

    /// Rounding loses a half of a step at most. A step is a part of the largest number of a group, or of an E4M3 number
    /// itself.
    #[tokio::test]
    async fn what_a_tool_writes_is_read_as_weights_near_those_that_it_was_given() {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny-llama-2");
        let folder = tempfile::tempdir().unwrap();
        let exact = open(&original, &folder.path().join("cache")).await;
        for (tool, format, has_offsets, part) in [
            (Tool::Gptq, WeightFormat::Int4, false, 1.0 / 7.0),
            (Tool::GptqAsymmetric, WeightFormat::Int4, true, 2.0 / 15.0),
            (Tool::Awq, WeightFormat::Int4, true, 2.0 / 15.0),
            (Tool::CompressedInt4, WeightFormat::Int4, false, 1.0 / 7.0),
            (Tool::CompressedInt8, WeightFormat::Int8, false, 1.0 / 127.0),
            (Tool::CompressedFp8, WeightFormat::Fp8, false, 1.0 / 14.0),
            (Tool::ModelOptFp8, WeightFormat::Fp8, false, 1.0 / 14.0),
        ] {
            let written = tool.write(&original, folder.path()).unwrap();
            let checkpoint = open(&written, &folder.path().join("cache")).await;
            assert_eq!(checkpoint.names(), exact.names(), "{tool:?}");
            for name in PROJECTIONS {
                let described = checkpoint.quantized(name).unwrap();
                assert_eq!((described.quantization.format, described.has_offsets), (format, has_offsets));
                let (found, expected) = (read(&checkpoint, name), read(&exact, name));
                let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // A scale that was cut to eight bits leaves out up to a 128th of what it should reach.
                let allowed = largest * (part / 2.0 + 1.0 / 64.0);
                assert!(error > 0.0 && error <= allowed, "{tool:?} {name}: {error} of {largest}");
            }
            assert_eq!(read(&checkpoint, "lm_head.weight"), read(&exact, "lm_head.weight"));
        }
    }
}
