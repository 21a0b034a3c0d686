//! What a config says of weights that other tools quantised.

use std::path::Path;

use roundhouse_graph::WeightFormat;
use serde_json::Value;

use crate::HubError;

/// What is read, for messages.
const SUPPORTED: &str = "GPTQ (4 or 8 bits), AWQ (gemm, 4 bits), compressed-tensors (pack-quantized, int-quantized, \
     float-quantized; weights of 4 or 8 bits, integer activations left alone), FP8 in E4M3 (per tensor, channel or \
     block; ModelOpt's too), and weights in F64, F32, F16 or BF16, which Roundhouse quantises itself";
/// Models whose linear weights are `[in, out]` in checkpoints (Conv1D), which the tools transpose before they quantise.
const TRANSPOSED_MODELS: [&str; 2] = ["gpt2", "openai-gpt"];

/// A quantisation that is not read.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl Refused {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// The error, with the file that says so.
    pub(crate) fn at(self, place: &Path) -> HubError {
        HubError::Unsupported {
            place: place.display().to_string(),
            found: format!("weights quantised by {}", self.0),
            supported: SUPPORTED.to_owned(),
        }
    }
}

/// How a checkpoint's weights are quantised.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// `qweight [K · bits / 32, N]`, `qzeros`, `scales [groups, N]`, `g_idx [K]`.
    Gptq(Gptq),
    /// `qweight [K, N · bits / 32]` in interleaved order, `qzeros`, `scales [groups, N]`.
    Awq {
        /// Columns that share a scale; `None` for all.
        group_size: Option<u64>,
    },
    /// `weight_packed` or `weight`, `weight_scale`, …; of each weight one of these holds.
    CompressedTensors(Vec<Declared>),
    /// `weight` in E4M3 with `weight_scale` or `weight_scale_inv`.
    Fp8 {
        /// Rows and columns that share a scale; `None` for one scale a tensor or a row.
        block: Option<[u64; 2]>,
    },
}

/// What a GPTQ config says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gptq {
    /// 4 or 8.
    pub(crate) bits: u32,
    /// Columns that share a scale; `None` for all.
    pub(crate) group_size: Option<u64>,
    /// Whether zero points are stored less one (format `gptq`, not `gptq_v2`).
    pub(crate) zeros_less_one: bool,
    /// Whether modules may differ from the rest.
    pub(crate) has_overrides: bool,
}

/// How compressed-tensors stores a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Integers of so many bits, biased and packed along rows.
    Packed(u32),
    /// A byte each.
    Bytes(WeightFormat),
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Everything.
    Tensor,
    /// A row.
    Channel,
    /// So many columns of a row.
    Group(u64),
    /// So many rows and columns.
    Block([u64; 2]),
}

/// One of the ways that a compressed-tensors config declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) storage: Storage,
    pub(crate) strategy: Strategy,
    /// Whether every zero point is zero.
    pub(crate) symmetric: bool,
}

impl Scheme {
    /// Takes `quantization_config` out of a `config.json`, and reads it or, where there is none, `hf_quant_config.json`.
    ///
    /// # Errors
    /// When it is of a kind that is not read, or says something that is not known to change nothing.
    pub(crate) fn take(config: &mut Value, modelopt: Option<&Value>) -> Result<Option<Self>, Refused> {
        let model_type = config.get("model_type").and_then(Value::as_str).map(str::to_owned);
        let mut found = None;
        for place in ["", "/text_config"] {
            if let Some(Value::Object(place)) = config.pointer_mut(place) {
                let taken = place.shift_remove("quantization_config").filter(|value| !value.is_null());
                found = found.or(taken);
            }
        }
        let scheme = match (found, modelopt) {
            (Some(found), _) => Self::of(&found)?,
            (None, Some(modelopt)) => Some(self::modelopt(modelopt)?),
            (None, None) => None,
        };
        match model_type.filter(|model_type| TRANSPOSED_MODELS.contains(&model_type.as_str())) {
            Some(model_type) if scheme.is_some() => {
                Err(Refused::new(format!("another tool for model_type {model_type:?}")))
            }
            _ => Ok(scheme),
        }
    }

    fn of(config: &Value) -> Result<Option<Self>, Refused> {
        let method = text(config, &["quant_method"]).unwrap_or_default();
        match method.as_str() {
            "gptq" => gptq(config).map(Some),
            "awq" => awq(config).map(Some),
            "compressed-tensors" => compressed_tensors(config),
            "fp8" => fp8(config).map(Some),
            "modelopt" => modelopt(config).map(Some),
            _ => Err(Refused::new(config.get("quant_method").unwrap_or(&Value::Null).to_string())),
        }
    }
}

/// The first of these fields that is a text, in lower case.
fn text(config: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| config.get(name)?.as_str().map(str::to_lowercase))
}

fn is_set(config: &Value, name: &str) -> bool {
    match config.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

/// Refuses fields that ask for something.
fn refuse_fields(method: &str, config: &Value, names: &[&str]) -> Result<(), Refused> {
    match names.iter().find(|name| is_set(config, name)) {
        Some(name) => Err(Refused::new(format!("{method} with {name} {}", config[name]))),
        None => Ok(()),
    }
}

/// Columns that share a scale; `None` for −1, which is all.
fn group_size(method: &str, config: &Value, names: &[&str]) -> Result<Option<u64>, Refused> {
    let found = names.iter().find_map(|name| config.get(name)).unwrap_or(&Value::Null);
    match (found.as_u64(), found.as_i64()) {
        (Some(size @ 1..), _) => Ok(Some(size)),
        (_, Some(-1)) => Ok(None),
        _ => Err(Refused::new(format!("{method} in groups of {found}"))),
    }
}

fn bits(method: &str, config: &Value, names: &[&str], known: &[u64]) -> Result<u32, Refused> {
    let found = names.iter().find_map(|name| config.get(name)).unwrap_or(&Value::Null);
    let bits = found.as_u64().filter(|bits| known.contains(bits)).and_then(|bits| u32::try_from(bits).ok());
    bits.ok_or_else(|| Refused::new(format!("{method} to {found} bits")))
}

fn gptq(config: &Value) -> Result<Scheme, Refused> {
    refuse_fields("GPTQ", config, &["is_marlin_format", "adapter", "rotation"])?;
    let format = text(config, &["checkpoint_format", "format"]).unwrap_or_else(|| "gptq".to_owned());
    let zeros_less_one = match format.as_str() {
        "gptq" => true,
        "gptq_v2" => false,
        _ => return Err(Refused::new(format!("GPTQ in format {format:?}"))),
    };
    match text(config, &["pack_dtype"]) {
        Some(dtype) if dtype != "int32" => return Err(Refused::new(format!("GPTQ packed in {dtype}"))),
        _ => {}
    }
    Ok(Scheme::Gptq(Gptq {
        bits: bits("GPTQ", config, &["bits"], &[4, 8])?,
        group_size: group_size("GPTQ", config, &["group_size"])?,
        zeros_less_one,
        has_overrides: is_set(config, "dynamic"),
    }))
}

fn awq(config: &Value) -> Result<Scheme, Refused> {
    let format =
        text(config, &["version", "format", "checkpoint_format"]).unwrap_or_else(|| "gemm".to_owned());
    if format != "gemm" || text(config, &["backend"]).is_some_and(|backend| backend == "llm-awq") {
        return Err(Refused::new(format!("AWQ in format {format:?} of {}", config["backend"])));
    }
    bits("AWQ", config, &["bits", "w_bit"], &[4])?;
    if config.get("zero_point") == Some(&Value::Bool(false)) {
        return Err(Refused::new("AWQ without zero points"));
    }
    Ok(Scheme::Awq { group_size: group_size("AWQ", config, &["group_size", "q_group_size"])? })
}

fn fp8(config: &Value) -> Result<Scheme, Refused> {
    for (name, known) in [("fmt", "e4m3"), ("expert_dtype", "fp8")] {
        match text(config, &[name]) {
            Some(found) if found != known => return Err(Refused::new(format!("FP8 with {name} {found:?}"))),
            _ => {}
        }
    }
    let block = match config.get("weight_block_size") {
        None | Some(Value::Null) => None,
        Some(found) => Some(block("FP8", found)?),
    };
    Ok(Scheme::Fp8 { block })
}

fn block(method: &str, found: &Value) -> Result<[u64; 2], Refused> {
    let sizes: Option<Vec<u64>> = match found {
        Value::Array(sizes) => sizes.iter().map(Value::as_u64).collect(),
        // As in "128x128".
        Value::String(sizes) => sizes.split('x').map(|size| size.parse().ok()).collect(),
        _ => None,
    };
    match sizes.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(Refused::new(format!("{method} in blocks of {found}"))),
    }
}

/// `hf_quant_config.json` has the fields under `quantization`, `config.json` has them as they are.
fn modelopt(config: &Value) -> Result<Scheme, Refused> {
    let fields = config.get("quantization").unwrap_or(config);
    let algorithm = fields.get("quant_algo").unwrap_or(&Value::Null);
    match algorithm.as_str() {
        Some("FP8" | "FP8_PER_CHANNEL_PER_TOKEN") => Ok(Scheme::Fp8 { block: None }),
        _ => Err(Refused::new(format!("ModelOpt with quant_algo {algorithm}"))),
    }
}

fn compressed_tensors(config: &Value) -> Result<Option<Scheme>, Refused> {
    const METHOD: &str = "compressed-tensors";
    refuse_fields(METHOD, config, &["transform_config"])?;
    if let Some(sparsity) = config.pointer("/sparsity_config/format").filter(|format| *format != "dense") {
        return Err(Refused::new(format!("{METHOD} with sparsity {sparsity}")));
    }
    let format = config.get("format").unwrap_or(&Value::Null);
    let Some(groups) = config.get("config_groups").and_then(Value::as_object) else {
        return Err(Refused::new(format!("{METHOD} without config_groups")));
    };
    let mut declared = Vec::with_capacity(groups.len());
    for (name, group) in groups {
        let own = group.get("format").filter(|own| !own.is_null()).unwrap_or(format);
        declared.push(
            compressed_group(group, own)
                .map_err(|what| Refused::new(format!("{METHOD} with {what} (config group {name:?})")))?,
        );
    }
    // Without groups only the cache is quantised, or nothing.
    Ok((!declared.is_empty()).then_some(Scheme::CompressedTensors(declared)))
}

/// The error says what is not read.
fn compressed_group(group: &Value, format: &Value) -> Result<Declared, String> {
    let weights = group.get("weights").unwrap_or(&Value::Null);
    let (bits, kind) = (weights.get("num_bits").and_then(Value::as_u64), text(weights, &["type"]));
    let number = |name: &str| weights.get(name).and_then(Value::as_u64).filter(|&size| size > 0);
    let storage = match (format.as_str(), kind.as_deref(), bits) {
        (Some("pack-quantized"), Some("int"), Some(bits @ (4 | 8))) => Storage::Packed(bits as u32),
        (Some("int-quantized" | "naive-quantized"), Some("int"), Some(4 | 8)) => {
            Storage::Bytes(WeightFormat::Int8)
        }
        (Some("float-quantized" | "naive-quantized"), Some("float"), Some(8)) => {
            Storage::Bytes(WeightFormat::Fp8)
        }
        _ => {
            let bits = weights.get("num_bits").unwrap_or(&Value::Null);
            return Err(format!(
                "format {format} and weights of {bits} bits, type {:?}",
                kind.unwrap_or_default()
            ));
        }
    };
    for name in ["input_activations", "output_activations"] {
        let activations = group.get(name).unwrap_or(&Value::Null);
        let kept = activations.is_null()
            // Weights in FP8 may be multiplied with any activations; rounding them is for speed.
            || (name == "input_activations"
                && storage == Storage::Bytes(WeightFormat::Fp8)
                && text(activations, &["type"]).as_deref() == Some("float")
                && activations.get("num_bits").and_then(Value::as_u64) == Some(8));
        if !kept {
            return Err(format!("{name} of {} bits", activations.get("num_bits").unwrap_or(&Value::Null)));
        }
    }
    if weights.get("dynamic").is_some_and(|dynamic| *dynamic == Value::Bool(true)) {
        return Err("dynamic weights".to_owned());
    }
    let strategy = match (text(weights, &["strategy"]).as_deref(), number("group_size")) {
        (Some("tensor"), _) => Strategy::Tensor,
        (Some("channel"), _) | (None, None) => Strategy::Channel,
        (Some("group") | None, Some(size)) => Strategy::Group(size),
        (Some("block"), _) => {
            let found = weights.get("block_structure").unwrap_or(&Value::Null);
            Strategy::Block(block("compressed-tensors", found).map_err(|Refused(what)| what)?)
        }
        (found, _) => return Err(format!("strategy {found:?}")),
    };
    let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    Ok(Declared { storage, strategy, symmetric })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(quantization: Value) -> Result<Option<Scheme>, String> {
        let mut config = json!({"model_type": "llama", "quantization_config": quantization});
        let scheme = Scheme::take(&mut config, None).map_err(|Refused(what)| what);
        assert_eq!(config, json!({"model_type": "llama"}));
        scheme
    }

    fn group(format: &str, weights: Value, activations: Value) -> Value {
        json!({"quant_method": "compressed-tensors", "format": format, "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations},
        }})
    }

    #[test]
    fn what_each_tool_writes_is_understood() {
        let gptq = |bits, group_size, zeros_less_one, has_overrides| {
            Scheme::Gptq(Gptq { bits, group_size, zeros_less_one, has_overrides })
        };
        let declared = |storage, strategy, symmetric| {
            Scheme::CompressedTensors(vec![Declared { storage, strategy, symmetric }])
        };
        let cases = [
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true}),
                gptq(4, Some(128), true, false),
            ),
            (
                json!({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2",
                       "dynamic": {"-:.*down": {}}, "pack_dtype": "int32", "is_marlin_format": false, "adapter": null}),
                gptq(8, None, false, true),
            ),
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": true, "backend": "autoawq"}),
                Scheme::Awq { group_size: Some(64) },
            ),
            (
                json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
                       "weight_block_size": [128, 64]}),
                Scheme::Fp8 { block: Some([128, 64]) },
            ),
            (json!({"quant_method": "modelopt", "quant_algo": "FP8"}), Scheme::Fp8 { block: None }),
            (
                group(
                    "pack-quantized",
                    json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32,
                       "symmetric": false, "actorder": "weight"}),
                    Value::Null,
                ),
                declared(Storage::Packed(4), Strategy::Group(32), false),
            ),
            (
                group(
                    "int-quantized",
                    json!({"num_bits": 8, "type": "int", "strategy": "channel", "group_size": null}),
                    Value::Null,
                ),
                declared(Storage::Bytes(WeightFormat::Int8), Strategy::Channel, true),
            ),
            (
                group(
                    "float-quantized",
                    json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x64"}),
                    json!({"num_bits": 8, "type": "float", "dynamic": true}),
                ),
                declared(Storage::Bytes(WeightFormat::Fp8), Strategy::Block([128, 64]), true),
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(take(config.clone()), Ok(Some(expected)), "{config}");
        }
        assert_eq!(take(Value::Null), Ok(None));
    }

    #[test]
    fn modelopt_has_a_file_of_its_own() {
        let file = json!({"producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}});
        let scheme = Scheme::take(&mut json!({}), Some(&file)).unwrap();
        assert_eq!(scheme, Some(Scheme::Fp8 { block: None }));
    }

    #[test]
    fn what_is_not_read_is_refused_by_its_name() {
        let float = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
        let int = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
        let cases = [
            (json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
            (json!({}), "null"),
            (json!({"quant_method": "gptq", "bits": 3, "group_size": 128}), "3 bits"),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 0}), "groups of 0"),
            (json!({"quant_method": "gptq", "bits": 4}), "groups of null"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}),
                "marlin",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "is_marlin_format": true}),
                "is_marlin_format",
            ),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "pack_dtype": "int16"}), "int16"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "rotation": "hadamard"}),
                "rotation",
            ),
            (json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}), "gemv"),
            (json!({"quant_method": "awq", "bits": 8, "group_size": 128}), "8 bits"),
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": false}),
                "zero points",
            ),
            (json!({"quant_method": "fp8", "fmt": "e5m2"}), "e5m2"),
            (json!({"quant_method": "fp8", "weight_block_size": [128]}), "blocks"),
            (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "NVFP4"),
            (group("marlin-24", int.clone(), Value::Null), "marlin-24"),
            (
                group(
                    "pack-quantized",
                    json!({"num_bits": 2, "type": "int", "strategy": "channel"}),
                    Value::Null,
                ),
                "2 bits",
            ),
            (
                group("int-quantized", int.clone(), json!({"num_bits": 8, "type": "int", "dynamic": true})),
                "input_activations of 8",
            ),
            (
                group("float-quantized", float, json!({"num_bits": 8, "type": "int"})),
                "input_activations of 8",
            ),
            (
                group(
                    "pack-quantized",
                    json!({"num_bits": 4, "type": "int", "strategy": "tensor_group"}),
                    Value::Null,
                ),
                "tensor_group",
            ),
            (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), "config_groups"),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"format": "sparse-24-bitmask"}}),
                "sparse-24",
            ),
            (
                json!({"quant_method": "compressed-tensors", "config_groups": {}, "transform_config": {"config_groups": {}}}),
                "transform_config",
            ),
        ];
        for (config, expected) in cases {
            let refused = take(config.clone()).unwrap_err();
            assert!(refused.contains(expected), "{config}: {refused}");
        }
        let mut gpt2 = json!({"model_type": "gpt2", "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}});
        assert!(Scheme::take(&mut gpt2, None).unwrap_err().0.contains("gpt2"));
    }
}
