//! The golden files of `tests/golden`: what Hugging Face Transformers computes in float32 (its `README.md` has the
//! formats and the program that makes them).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// How many of the largest logits [`GoldenPrompt`] keeps at each step.
pub const TOP: usize = 5;

/// The checkpoints with random weights, with what the names of their golden files go on with.
const TINY_MODELS: [(&str, &str); 18] = [
    ("tiny-gemma-3", ""),
    ("tiny-gemma-3-soft-caps", ""),
    ("tiny-gpt-2", ""),
    ("tiny-llama-2", ""),
    ("tiny-llama-3.1", ""),
    ("tiny-llama-bias-yarn", ""),
    ("tiny-llama-linear", ""),
    ("tiny-mistral", ""),
    ("tiny-mixtral", ""),
    ("tiny-olmo-2", ""),
    // `longrope` has one set of factors for engines of short sequences and another for those of long ones.
    ("tiny-phi-4-mini", ".long"),
    ("tiny-phi-4-mini", ".short"),
    ("tiny-qwen-1.5-moe", ""),
    ("tiny-qwen-2-moe", ""),
    ("tiny-qwen-2.5", ""),
    ("tiny-qwen-3", ""),
    ("tiny-qwen-3-moe", ""),
    ("tiny-smollm-3", ""),
];

/// A published model: which file the reference read, and what it generated.
#[derive(Clone, Debug, Deserialize)]
pub struct PublishedModel {
    /// File name of the GGUF checkpoint; [`checkpoint`](Self::checkpoint) finds it.
    pub model: String,
    /// Lower-case hexadecimal digest of that file.
    pub model_sha256: String,
    /// The token that begins a sequence.
    pub bos_token_id: u32,
    /// The token that ends one.
    pub eos_token_id: u32,
    /// Length of a logits row.
    pub vocab_size: usize,
    /// All prompts, in the file's order.
    pub prompts: Vec<GoldenPrompt>,
}

/// One message of a chat.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A prompt and its greedy continuation, which goes on after the end-of-sequence token.
#[derive(Clone, Debug, Deserialize)]
pub struct GoldenPrompt {
    /// Unique within the file.
    pub name: String,
    /// The chat, or `None` where the prompt is plain text.
    pub messages: Option<Vec<Message>>,
    /// What is tokenised: the chat template's output with the generation prompt, or the plain text.
    pub text: String,
    /// `text` tokenised, as the model wants it: with nothing around it (SmolLM2), after the beginning-of-sequence token
    /// (Gemma 3).
    pub prompt_token_ids: Vec<u32>,
    /// One token a step.
    pub output_token_ids: Vec<u32>,
    /// `output_token_ids` decoded, special tokens included.
    pub output_text: String,
    /// The first step that gave the end-of-sequence token, if any did.
    pub first_eos_step: Option<usize>,
    /// `[steps][5]`, largest logit first.
    pub top_token_ids: Vec<[u32; TOP]>,
    /// The logits of `top_token_ids`.
    pub top_logits: Vec<[f32; TOP]>,
    /// Largest logit minus second largest, one a step.
    pub margins: Vec<f32>,
    /// Over the whole vocabulary, one a step: a top logit minus this is a log-probability.
    pub log_sum_exp: Vec<f32>,
}

/// A checkpoint with random weights and what the reference computes with it.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Name of the golden file, without `.golden.safetensors`.
    pub name: String,
    /// The checkpoint: `config.json`, weights, tokenizer.
    pub checkpoint: PathBuf,
    /// The same weights as a GGUF file, where there is one.
    pub gguf: Option<PathBuf>,
    /// The longest sequence of the engines that this is the reference of; `None` where it makes no difference.
    pub max_seq_len: Option<u32>,
    /// Prompts of different lengths, the shortest first.
    pub cases: Vec<TinyCase>,
}

/// A prompt for a [`TinyModel`] and its greedy continuation, which goes on after the end-of-sequence token.
#[derive(Clone, Debug)]
pub struct TinyCase {
    /// Random ordinary tokens.
    pub prompt_token_ids: Vec<u32>,
    /// Of every position of the prompt; `None` for the longest prompts.
    pub prompt_logits: Option<Logits>,
    /// One token a step.
    pub output_token_ids: Vec<u32>,
    /// Row `s` chose `output_token_ids[s]`: row 0 belongs to the prompt's last position.
    pub step_logits: Logits,
}

/// A float32 matrix, `[positions, vocab_size]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    vocab_size: usize,
    values: Vec<f32>,
}

impl Logits {
    /// Length of a row.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// All rows, one a position.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.vocab_size)
    }

    /// Largest logit minus second largest, one a row.
    pub fn margins(&self) -> Vec<f32> {
        self.rows().map(margin).collect()
    }
}

fn margin(row: &[f32]) -> f32 {
    let (first, second) =
        row.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), &logit| {
            if logit > first { (logit, first) } else { (first, second.max(logit)) }
        });
    first - second
}

impl PublishedModel {
    /// The GGUF file that the reference read. Fails with what to do where it has not been fetched.
    pub fn checkpoint(&self) -> Result<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roundhouse/models").join(&self.model);
        path.canonicalize().with_context(|| {
            format!("{}: run `python3 scripts/fetch_models.py smollm2 gemma3` first", path.display())
        })
    }
}

/// The golden file of SmolLM2-135M-Instruct.
pub fn smollm2() -> Result<PublishedModel> {
    published("smollm2-135m-instruct.json")
}

/// The golden file of Gemma 3 270M.
pub fn gemma3() -> Result<PublishedModel> {
    published("gemma-3-270m.json")
}

fn published(file: &str) -> Result<PublishedModel> {
    let path = folder().join(file);
    let golden: PublishedModel =
        serde_json::from_slice(&read(&path)?).with_context(|| path.display().to_string())?;
    for prompt in &golden.prompts {
        let steps = prompt.output_token_ids.len();
        ensure!(
            [
                prompt.top_token_ids.len(),
                prompt.top_logits.len(),
                prompt.margins.len(),
                prompt.log_sum_exp.len()
            ] == [steps; 4],
            "{}: prompt {} has {steps} output tokens, but not as many rows of logits",
            path.display(),
            prompt.name
        );
    }
    Ok(golden)
}

/// The GGUF file that [`smollm2`] was made from. Fails with what to do where it has not been fetched.
pub fn smollm2_checkpoint() -> Result<PathBuf> {
    smollm2()?.checkpoint()
}

/// The checkpoints with random weights, and their logits.
pub fn tiny_models() -> Result<Vec<TinyModel>> {
    TINY_MODELS.into_iter().map(tiny_model).collect()
}

/// Those of an architecture, the first of `architectures` of their configs.
pub fn tiny_models_of(architecture: &str) -> Result<Vec<TinyModel>> {
    let mut models = Vec::new();
    for model in tiny_models()? {
        if model.architecture()? == architecture {
            models.push(model);
        }
    }
    Ok(models)
}

impl TinyModel {
    /// The first of `architectures` of its config.
    pub fn architecture(&self) -> Result<String> {
        let path = self.checkpoint.join("config.json");
        let config: serde_json::Value =
            serde_json::from_slice(&read(&path)?).with_context(|| path.display().to_string())?;
        let architecture = config["architectures"][0].as_str();
        Ok(architecture.with_context(|| format!("{} has no architecture", path.display()))?.to_owned())
    }
}

fn tiny_model((checkpoint, suffix): (&str, &str)) -> Result<TinyModel> {
    let name = format!("{checkpoint}{suffix}");
    let path = folder().join(format!("{name}.golden.safetensors"));
    let context = || path.display().to_string();
    let bytes = read(&path)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(context)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).with_context(context)?;
    let max_seq_len = metadata.metadata().as_ref().and_then(|metadata| metadata.get("max_seq_len"));
    let max_seq_len = max_seq_len.map(|text| text.parse()).transpose().with_context(context)?;
    let length = |name: &str| name.strip_prefix("prompt.")?.strip_suffix(".input_ids")?.parse().ok();
    let mut lengths: Vec<usize> = tensors.names().into_iter().filter_map(length).collect();
    lengths.sort_unstable();
    let case =
        |length| tiny_case(&tensors, length).with_context(|| format!("{}: length {length}", context()));
    let cases = lengths.into_iter().map(case).collect::<Result<_>>()?;
    let gguf = Some(folder().join(format!("{checkpoint}.gguf"))).filter(|path| path.exists());
    Ok(TinyModel { name, checkpoint: folder().join(checkpoint), gguf, max_seq_len, cases })
}

fn tiny_case(tensors: &SafeTensors<'_>, length: usize) -> Result<TinyCase> {
    let prompt_logits = format!("prompt.{length}.prompt_logits");
    Ok(TinyCase {
        prompt_token_ids: token_ids(tensors, &format!("prompt.{length}.input_ids"))?,
        prompt_logits: match tensors.names().contains(&prompt_logits.as_str()) {
            true => Some(logits(tensors, &prompt_logits)?),
            false => None,
        },
        output_token_ids: token_ids(tensors, &format!("prompt.{length}.output_ids"))?,
        step_logits: logits(tensors, &format!("prompt.{length}.step_logits"))?,
    })
}

pub(crate) fn token_ids(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<u32>> {
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::I64, "{name} has dtype {:?}, expected I64", tensor.dtype());
    let (values, _) = tensor.data().as_chunks::<8>();
    values.iter().map(|value| Ok(u32::try_from(i64::from_le_bytes(*value))?)).collect()
}

pub(crate) fn logits(tensors: &SafeTensors<'_>, name: &str) -> Result<Logits> {
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::F32, "{name} has dtype {:?}, expected F32", tensor.dtype());
    let &[_, vocab_size] = tensor.shape() else {
        anyhow::bail!("{name} has shape {:?}, expected [positions, vocab_size]", tensor.shape());
    };
    ensure!(vocab_size > 0, "{name} has empty rows");
    let (values, _) = tensor.data().as_chunks::<4>();
    Ok(Logits { vocab_size, values: values.iter().map(|value| f32::from_le_bytes(*value)).collect() })
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn prompts_cover_what_the_tests_rely_on() {
        for golden in [smollm2().unwrap(), gemma3().unwrap()] {
            let names: HashSet<_> = golden.prompts.iter().map(|prompt| &prompt.name).collect();
            assert_eq!(names.len(), golden.prompts.len());
            assert!(golden.prompts.len() >= 8);
            assert!(golden.prompts.iter().all(|prompt| prompt.output_token_ids.len() == 64));
            assert!(golden.prompts.iter().any(|prompt| prompt.prompt_token_ids.len() > 1000));
            assert!(golden.prompts.iter().any(|prompt| prompt.messages.is_none()));
        }
        let golden = smollm2().unwrap();
        assert!(
            golden.prompts.iter().any(|prompt| prompt.messages.as_ref().is_some_and(|chat| chat.len() == 4))
        );
    }

    #[test]
    fn steps_agree_with_their_own_logits() {
        for (golden, prompt) in [smollm2().unwrap(), gemma3().unwrap()]
            .iter()
            .flat_map(|golden| golden.prompts.iter().map(move |prompt| (golden, prompt)))
        {
            let eos = prompt.output_token_ids.iter().position(|&token| token == golden.eos_token_id);
            assert_eq!(prompt.first_eos_step, eos, "{}", prompt.name);
            for (step, (&token, ids)) in prompt.output_token_ids.iter().zip(&prompt.top_token_ids).enumerate()
            {
                let logits = prompt.top_logits[step];
                assert_eq!(token, ids[0], "{} step {step}", prompt.name);
                assert!(ids.iter().all(|&id| (id as usize) < golden.vocab_size));
                assert!(logits.is_sorted_by(|larger, smaller| larger >= smaller));
                // Bit for bit: the decimals in the file read back as the float32 that were written.
                assert_eq!(prompt.margins[step], logits[0] - logits[1], "{} step {step}", prompt.name);
                // Over the whole vocabulary it is at least that over the five largest, to float32 rounding.
                let of_top =
                    logits[0] + logits.iter().map(|logit| (logit - logits[0]).exp()).sum::<f32>().ln();
                assert!(prompt.log_sum_exp[step] >= of_top - 1e-5, "{} step {step}", prompt.name);
            }
        }
    }

    #[test]
    fn tiny_models_are_all_that_the_folder_has() {
        let golden = |entry: std::io::Result<fs::DirEntry>| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".golden.safetensors").map(str::to_owned)
        };
        let models = tiny_models().unwrap();
        let found: HashSet<_> = fs::read_dir(folder()).unwrap().filter_map(golden).collect();
        assert_eq!(found, models.iter().map(|model| model.name.clone()).collect());
        let ggufs: HashSet<_> = models.iter().filter_map(|model| model.gguf.as_ref()).collect();
        assert_eq!(ggufs.len(), 6, "{ggufs:?}");
    }

    #[test]
    fn tiny_model_tokens_are_the_largest_of_their_logits() {
        for model in tiny_models().unwrap() {
            assert!(model.cases.len() >= 2, "{}", model.name);
            for case in &model.cases {
                assert_eq!(case.output_token_ids.len(), 32);
                assert_eq!(case.step_logits.rows().len(), case.output_token_ids.len());
                for ((row, &token), margin) in
                    case.step_logits.rows().zip(&case.output_token_ids).zip(case.step_logits.margins())
                {
                    let mut descending = row.to_vec();
                    descending.sort_by(|a, b| b.total_cmp(a));
                    assert_eq!(row[token as usize], descending[0], "{}", model.name);
                    assert_eq!(margin, descending[0] - descending[1]);
                }
            }
        }
    }

    #[test]
    fn tiny_model_sequences_outgrow_their_windows() {
        for model in tiny_models().unwrap() {
            let config = config(&model);
            let Some(window) = config["sliding_window"].as_u64() else { continue };
            let longest = model.cases.last().unwrap();
            let tokens = (longest.prompt_token_ids.len() + longest.output_token_ids.len()) as u64;
            assert!(tokens > window + 8, "{}", model.name);
        }
    }

    #[test]
    fn tiny_model_prompt_logits_end_where_the_steps_begin() {
        for model in tiny_models().unwrap() {
            for case in &model.cases {
                let length = case.prompt_token_ids.len();
                assert_eq!(case.prompt_logits.is_some(), length <= 33, "{} {length}", model.name);
                let Some(prompt) = &case.prompt_logits else { continue };
                assert_eq!(prompt.rows().len(), length);
                let (last, first) =
                    (prompt.rows().next_back().unwrap(), case.step_logits.rows().next().unwrap());
                // The reference computed one with its cache and one without.
                assert!(last.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-4), "{}", model.name);
            }
        }
    }

    fn config(model: &TinyModel) -> serde_json::Value {
        serde_json::from_slice(&fs::read(model.checkpoint.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn tiny_model_checkpoints_are_complete() {
        for model in tiny_models().unwrap() {
            for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
                let value: serde_json::Value =
                    serde_json::from_slice(&fs::read(model.checkpoint.join(file)).unwrap()).unwrap();
                assert!(value.is_object(), "{} {file}", model.name);
            }
            let vocab_size = model.cases[0].step_logits.vocab_size();
            assert_eq!(config(&model)["vocab_size"], vocab_size, "{}", model.name);
            let sharded = model.checkpoint.join("model.safetensors.index.json").exists();
            assert_eq!(sharded, model.name == "tiny-llama-linear");
            assert_ne!(sharded, model.checkpoint.join("model.safetensors").exists());
        }
    }
}
