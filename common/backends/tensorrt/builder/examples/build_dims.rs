//! Builds engines of Llama-3.2-1B or Llama-3.1-8B dimensions with random weights, by the whole path from the config to the
//! plan, and prints what it took:
//!
//! ```text
//! cargo run --release -p roundhouse-tensorrt-builder --example build_dims -- 1b separate
//! cargo run --release -p roundhouse-tensorrt-builder --example build_dims -- 1b embedded two sm_89
//! ```
//!
//! Arguments, in any order: `1b` or `8b`; `separate` or `embedded`; `one` or `two` profiles; `fp16`, `bf16` or `fp32`; a cache;
//! compute capabilities. TensorRT is looked for in `.roundhouse/tensorrt` and where `ROUNDHOUSE_TENSORRT_LIBRARY` says.

use std::error::Error;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roundhouse_backend::{BackendError, BuildProgress, Builder as _, WeightError, WeightSource};
use roundhouse_engine::{
    BackendKind, CacheKind, ComputeCapability, EngineOptions, Precision, Profiles, TensorRtOptions,
    WeightPlacement, WeightQuantization,
};
use roundhouse_tensorrt_builder::TensorRtBuilder;
use roundhouse_tensorrt_library::testing;

/// `config.json` of the two models, as far as the graph needs it.
const LLAMA_3_2_1B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": true
}"#;
const LLAMA_3_1_8B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": false
}"#;

/// A checkpoint of the family of Llama whose numbers are made when they are read.
struct RandomWeights {
    config: serde_json::Value,
}

impl RandomWeights {
    fn number(&self, field: &str) -> u64 {
        self.config[field].as_u64().unwrap_or(0)
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (hidden, head) = (self.number("hidden_size"), self.number("head_dim"));
        let (heads, kv_heads) = (self.number("num_attention_heads"), self.number("num_key_value_heads"));
        let (wide, vocab) = (self.number("intermediate_size"), self.number("vocab_size"));
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if self.config["tie_word_embeddings"] == false {
            tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        for layer in 0..self.number("num_hidden_layers") {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![heads * head, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head, hidden]),
                ("self_attn.o_proj", vec![hidden, heads * head]),
                ("mlp.gate_proj", vec![wide, hidden]),
                ("mlp.up_proj", vec![wide, hidden]),
                ("mlp.down_proj", vec![hidden, wide]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors
    }
}

impl WeightSource for RandomWeights {
    fn shape(&self, name: &str) -> Result<Vec<u64>, WeightError> {
        let found = self.tensors().into_iter().find(|(known, _)| known == name);
        found.map(|(_, shape)| shape).ok_or_else(|| WeightError::NotFound { name: name.to_owned() })
    }

    fn names(&self) -> Vec<String> {
        self.tensors().into_iter().map(|(name, _)| name).collect()
    }

    fn read_rows(&self, name: &str, rows: Range<u64>, out: &mut [f32]) -> Result<(), WeightError> {
        // Xorshift, begun at the name and row: TensorRT keeps equal weights once, so that none may be equal.
        let mut hasher = DefaultHasher::new();
        (name, rows.start).hash(&mut hasher);
        let mut state = hasher.finish() | 1;
        for value in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // The upper 16 bits, as a number in ±1/32.
            *value = f32::from((state >> 48) as i16) / 1_048_576.0;
        }
        Ok(())
    }
}

/// Prints the log, with the time since the start.
struct Print(Instant);

impl BuildProgress for Print {
    fn bytes(&self, _done: u64, _total: u64) -> Result<(), BackendError> {
        Ok(())
    }

    fn log(&self, line: &str) {
        println!("{:7.2} s  {line}", self.0.elapsed().as_secs_f64());
    }
}

/// Bytes of memory of this process that are not mapped files: `RssAnon`.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Samples the memory until it is stopped.
struct Peak {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Peak {
    fn start() -> Self {
        let peak = Self { bytes: Arc::default(), stop: Arc::default() };
        let (bytes, stop) = (Arc::clone(&peak.bytes), Arc::clone(&peak.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                bytes.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        peak
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.bytes.load(Ordering::Relaxed)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = LLAMA_3_2_1B;
    let mut tensorrt = TensorRtOptions { weights: WeightPlacement::Separate, ..TensorRtOptions::default() };
    let mut options = EngineOptions {
        precision: Precision::Fp16,
        cache: CacheKind::InPlace,
        backend: BackendKind::TensorRt,
        max_seq_len: 2048,
        max_batch_size: 1,
        all_logits: false,
        targets: Default::default(),
        quantization: WeightQuantization::None,
        tensorrt: None,
    };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "1b" => config = LLAMA_3_2_1B,
            "8b" => config = LLAMA_3_1_8B,
            other => {
                if let Ok(placement) = other.parse::<WeightPlacement>() {
                    tensorrt.weights = placement;
                } else if let Ok(profiles) = other.parse::<Profiles>() {
                    tensorrt.profiles = profiles;
                } else if let Ok(precision) = other.parse::<Precision>() {
                    options.precision = precision;
                } else if let Ok(cache) = other.parse::<CacheKind>() {
                    options.cache = cache;
                } else {
                    let target = other.parse::<ComputeCapability>()?;
                    options.targets = options.targets.iter().chain([target]).collect();
                }
            }
        }
    }
    options.tensorrt = Some(tensorrt);

    let weights = RandomWeights { config: serde_json::from_str(config)? };
    let model = roundhouse_models::build_graph("random", &weights.config, &weights, options.max_seq_len)?;
    let builder = TensorRtBuilder::open(&testing::library_search())?;
    let options = builder.resolve(&model.graph, options)?;
    let (graph, _) = roundhouse_lowering::lower(model.graph, &options)?;
    let (graph, reports) = builder.lower(graph, &options)?;
    println!("{:?}\n{:?}", reports.last(), builder.memory_plan(&graph, &options));

    let directory = tempfile::tempdir()?;
    let before = anonymous_bytes();
    let (start, peak) = (Instant::now(), Peak::start());
    let files = builder.build(&graph, &options, &weights, directory.path(), &Print(start))?;
    let (seconds, peak) = (start.elapsed().as_secs_f64(), peak.stop());
    println!("{seconds:.1} s, at most {:.2} GB of anonymous memory, {:.2} GB before", gb(peak), gb(before));
    for file in files {
        println!("{:>22}  {:.3} GB", file.name, gb(std::fs::metadata(file.path)?.len()));
    }
    Ok(())
}

/// Gigabytes.
fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
