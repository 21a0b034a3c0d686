//! The golden files of `tests/golden`: what Hugging Face Transformers computes in float32 (its `README.md` has the
//! formats and the program that makes them).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// How many of the largest logits [`GoldenPrompt`] keeps at each step.
pub const TOP: usize = 5;

const TINY_LLAMAS: [&str; 4] =
    ["tiny-llama-2", "tiny-llama-3.1", "tiny-llama-bias-yarn", "tiny-llama-linear"];
const TINY_PROMPT_LENGTHS: [usize; 4] = [1, 7, 33, 130];

/// SmolLM2-135M-Instruct: which file the reference read, and what it generated.
#[derive(Clone, Debug, Deserialize)]
pub struct SmolLm2 {
    /// File name of the GGUF checkpoint; [`smollm2_checkpoint`] finds it.
    pub model: String,
    /// Lower-case hexadecimal digest of that file.
    pub model_sha256: String,
    /// `<|im_start|>`.
    pub bos_token_id: u32,
    /// `<|im_end|>`.
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
    /// `text` tokenised, with nothing added around it.
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
pub struct TinyLlama {
    /// Name of the checkpoint's folder.
    pub name: &'static str,
    /// The checkpoint: `config.json`, weights, tokenizer.
    pub checkpoint: PathBuf,
    /// One a prompt length: 1, 7, 33, 130.
    pub cases: Vec<TinyCase>,
}

/// A prompt for a [`TinyLlama`] and its greedy continuation, which goes on after the end-of-sequence token.
#[derive(Clone, Debug)]
pub struct TinyCase {
    /// Random ordinary tokens.
    pub prompt_token_ids: Vec<u32>,
    /// Of every position of the prompt; `None` for the longest prompt.
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

/// The golden file of SmolLM2-135M-Instruct.
pub fn smollm2() -> Result<SmolLm2> {
    let path = folder().join("smollm2-135m-instruct.json");
    let golden: SmolLm2 =
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
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../.roundhouse/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    path.canonicalize()
        .with_context(|| format!("{}: run `python3 scripts/fetch_models.py` first", path.display()))
}

/// The checkpoints with random weights, and their logits.
pub fn tiny_llamas() -> Result<Vec<TinyLlama>> {
    TINY_LLAMAS.into_iter().map(tiny_llama).collect()
}

fn tiny_llama(name: &'static str) -> Result<TinyLlama> {
    let path = folder().join(format!("{name}.golden.safetensors"));
    let bytes = read(&path)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let cases = TINY_PROMPT_LENGTHS
        .into_iter()
        .map(|length| {
            tiny_case(&tensors, length).with_context(|| format!("{}: length {length}", path.display()))
        })
        .collect::<Result<_>>()?;
    Ok(TinyLlama { name, checkpoint: folder().join(name), cases })
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

fn token_ids(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<u32>> {
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::I64, "{name} has dtype {:?}, expected I64", tensor.dtype());
    let (values, _) = tensor.data().as_chunks::<8>();
    values.iter().map(|value| Ok(u32::try_from(i64::from_le_bytes(*value))?)).collect()
}

fn logits(tensors: &SafeTensors<'_>, name: &str) -> Result<Logits> {
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::F32, "{name} has dtype {:?}, expected F32", tensor.dtype());
    let &[_, vocab_size] = tensor.shape() else {
        anyhow::bail!("{name} has shape {:?}, expected [positions, vocab_size]", tensor.shape());
    };
    ensure!(vocab_size > 0, "{name} has empty rows");
    let (values, _) = tensor.data().as_chunks::<4>();
    Ok(Logits { vocab_size, values: values.iter().map(|value| f32::from_le_bytes(*value)).collect() })
}

fn folder() -> PathBuf {
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
    fn smollm2_prompts_cover_what_the_tests_rely_on() {
        let golden = smollm2().unwrap();
        let names: HashSet<_> = golden.prompts.iter().map(|prompt| &prompt.name).collect();
        assert_eq!(names.len(), golden.prompts.len());
        assert!(golden.prompts.len() >= 9);
        assert!(golden.prompts.iter().all(|prompt| prompt.output_token_ids.len() == 64));
        assert!(golden.prompts.iter().any(|prompt| prompt.prompt_token_ids.len() > 1000));
        assert!(golden.prompts.iter().any(|prompt| prompt.messages.is_none()));
        assert!(
            golden.prompts.iter().any(|prompt| prompt.messages.as_ref().is_some_and(|chat| chat.len() == 4))
        );
    }

    #[test]
    fn smollm2_steps_agree_with_their_own_logits() {
        let golden = smollm2().unwrap();
        for prompt in &golden.prompts {
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
    fn tiny_llama_tokens_are_the_largest_of_their_logits() {
        for model in tiny_llamas().unwrap() {
            assert_eq!(
                model.cases.iter().map(|case| case.prompt_token_ids.len()).collect::<Vec<_>>(),
                [1, 7, 33, 130]
            );
            for case in &model.cases {
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
    fn tiny_llama_prompt_logits_end_where_the_steps_begin() {
        for model in tiny_llamas().unwrap() {
            let with_prompt: Vec<_> =
                model.cases.iter().filter(|case| case.prompt_logits.is_some()).collect();
            assert_eq!(with_prompt.len(), 3, "{}", model.name);
            for case in with_prompt {
                let prompt = case.prompt_logits.as_ref().unwrap();
                assert_eq!(prompt.rows().len(), case.prompt_token_ids.len());
                let (last, first) =
                    (prompt.rows().next_back().unwrap(), case.step_logits.rows().next().unwrap());
                // The reference computed one with its cache and one without.
                assert!(last.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-4), "{}", model.name);
            }
        }
    }

    #[test]
    fn tiny_llama_checkpoints_are_complete() {
        for model in tiny_llamas().unwrap() {
            for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
                let value: serde_json::Value =
                    serde_json::from_slice(&fs::read(model.checkpoint.join(file)).unwrap()).unwrap();
                assert!(value.is_object(), "{} {file}", model.name);
            }
            let config: serde_json::Value =
                serde_json::from_slice(&fs::read(model.checkpoint.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["vocab_size"], model.cases[0].step_logits.vocab_size(), "{}", model.name);
            let sharded = model.checkpoint.join("model.safetensors.index.json").exists();
            assert_eq!(sharded, model.name == "tiny-llama-linear");
            assert_ne!(sharded, model.checkpoint.join("model.safetensors").exists());
        }
    }
}
