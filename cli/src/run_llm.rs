//! `run-llm`: compile, load and generate, with the flags of the tool that this one replaces.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use roundhouse_engine::Precision;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::speculative::Method;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, GenerateRequest, GetLoadRequest, LoadEngineRequest, LoadEngineResponse,
    LoadedEngine, PromptLookup, ResponseOptions, Speculative, StoppingOptions, TokenIds, TokenizeRequest,
    generate_request, tokenize_request,
};
use serde::Serialize;
use tonic::transport::Channel;

use crate::clients::ServiceArgs;
use crate::compile;
use crate::generate::{Generated, SamplingArgs, finish_reason_name, generate};
use crate::guided_args::GuidedArgs;
use crate::model_args::ModelArgs;
use crate::{kv_memory, output, pytorch};

/// `roundhouse run-llm`.
#[derive(Debug, Args)]
pub(crate) struct RunLlmArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    guided: GuidedArgs,
    /// End the output before this text; give the flag for each.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print what ended the output too.
    #[arg(long)]
    include_stop: bool,
    /// Guess up to so many tokens at a time from what followed the latest ones before.
    #[arg(long, value_name = "TOKENS")]
    prompt_lookup: Option<u32>,
    /// Only the last so many tokens of the prompt.
    #[arg(long, value_name = "TOKENS")]
    truncate_prompt_tokens: Option<u32>,
    /// The tokenizer; an engine carries its checkpoint's, so that nothing but the model's own is taken.
    #[arg(long)]
    tokenizer: Option<String>,
    /// Run the model by Transformers on PyTorch too, and compare tokens and times.
    #[arg(long)]
    enable_pytorch_run: bool,
    /// The Python of --enable-pytorch-run.
    #[arg(long, env = "ROUNDHOUSE_PYTHON", default_value = "python3")]
    python: String,
    /// The prompt.
    #[arg(long, default_value = "What is parallel programming ?")]
    prompt: String,
    /// Read the prompt from a file instead.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// New tokens.
    #[arg(long, default_value_t = 128)]
    num_tokens: u32,
    /// Give the prompt as it is, without the model's chat template.
    #[arg(long)]
    raw: bool,
    /// Go on through the end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
    /// Time generations from random tokens instead of printing text.
    #[arg(long)]
    benchmark: bool,
    /// Timed generations of a benchmark.
    #[arg(long, default_value_t = 5)]
    iterations: u32,
    /// Sequences at a time in a benchmark.
    #[arg(long, default_value_t = 1)]
    batch_size: u32,
    /// Prompt tokens of a benchmark.
    #[arg(long, default_value_t = 2048)]
    isl: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The JSON object of a run.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    engine_key: String,
    backend: String,
    precision: String,
    quantization: String,
    cache: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prompt_token_ids: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    output_token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    compile_s: f64,
    engine_reused: bool,
    load_s: f64,
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    compile_peak_memory_bytes: u64,
    peak_memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    benchmark: Option<Benchmark>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pytorch: Option<pytorch::Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs_match: Option<bool>,
}

/// Medians over the iterations of a benchmark.
#[derive(Debug, Serialize)]
struct Benchmark {
    iterations: u32,
    batch_size: u32,
    isl: u32,
    num_tokens: u32,
    median_ttft_ms: f64,
    p90_ttft_ms: f64,
    median_tpot_ms: f64,
    p90_tpot_ms: f64,
    median_latency_ms: f64,
    /// Tokens a second of all sequences together.
    decode_tokens_per_s: f64,
}

pub(crate) async fn run(args: RunLlmArgs) -> anyhow::Result<()> {
    if let Some(tokenizer) =
        args.tokenizer.as_deref().filter(|name| !name.is_empty() && *name != args.model.model)
    {
        bail!(
            "--tokenizer {tokenizer}: an engine carries the tokenizer of its checkpoint; save another one into it"
        );
    }
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let mut request = args.model.request_to_run(&runtimes);
    if args.benchmark {
        let options = request.options.get_or_insert_default();
        options.max_seq_len = options.max_seq_len.or(Some(args.isl + args.num_tokens));
        options.max_batch_size = options.max_batch_size.or(Some(args.batch_size));
    }
    let started = Instant::now();
    let compiled = compile::compile(&mut compiler, request).await?;
    let compile_s = started.elapsed().as_secs_f64();
    let engine_key = compiled.engine.context("the compiler's answer has no engine")?.key;
    let loaded =
        executor.load_engine(LoadEngineRequest { engine_key: engine_key.clone() }).await?.into_inner();
    announce(&args, compiled.reused, compile_s, &loaded);

    let (generated, prompt_token_ids, benchmark) = if args.benchmark {
        let vocab_size = loaded.engine.as_ref().map_or(0, |engine| engine.vocab_size);
        let (generated, benchmark) = run_benchmark(&args, &executor, &engine_key, vocab_size).await?;
        (generated, Vec::new(), Some(benchmark))
    } else {
        let (generated, prompt) = run_prompt(&args, &mut executor, &engine_key).await?;
        (generated, prompt, None)
    };
    let load = executor.get_load(GetLoadRequest {}).await?.into_inner();
    let engine = loaded.engine.unwrap_or_default();
    let pytorch = match args.enable_pytorch_run {
        true => Some(compare(&args, &engine, &prompt_token_ids).await?),
        false => None,
    };
    let tpot = generated.time_per_output_token();
    let report = Report {
        model: engine.model,
        engine_key,
        backend: engine.backend,
        precision: engine.precision,
        quantization: engine.quantization,
        cache: engine.cache,
        prompt_token_ids,
        output_token_ids: generated.token_ids.clone(),
        text: generated.text.clone(),
        finish_reason: finish_reason_name(generated.finish_reason),
        compile_s,
        engine_reused: compiled.reused,
        load_s: loaded.load_ms as f64 / 1e3,
        ttft_ms: millis(generated.time_to_first_token),
        tpot_ms: tpot.map(millis),
        decode_tokens_per_s: tpot.map(|tpot| 1.0 / tpot.as_secs_f64()),
        compile_peak_memory_bytes: compiled.peak_memory_bytes,
        peak_memory_bytes: load.peak_memory_bytes,
        benchmark,
        outputs_match: pytorch.as_ref().map(|pytorch| pytorch.output_token_ids == generated.token_ids),
        pytorch,
    };
    if args.json {
        return output::print_json(&report);
    }
    summarise(&report, &generated);
    Ok(())
}

/// The same generation by Transformers.
async fn compare(
    args: &RunLlmArgs,
    engine: &LoadedEngine,
    prompt: &[u32],
) -> anyhow::Result<pytorch::Answer> {
    let prompt: Vec<u32> = match args.benchmark {
        true => (0..args.isl).map(|index| pseudo_random_token(0, index, engine.vocab_size)).collect(),
        false => prompt.to_vec(),
    };
    let dtype = match args.model.precision {
        Precision::Fp32 => "float32",
        Precision::Fp16 => "float16",
        Precision::Bf16 => "bfloat16",
    };
    let (python, model, eos_token_ids) =
        (args.python.clone(), args.model.model.clone(), engine.eos_token_ids.clone());
    let (num_tokens, ignore_eos) = (args.num_tokens, args.ignore_eos || args.benchmark);
    let iterations = if args.benchmark { args.iterations } else { 1 };
    let running = tokio::task::spawn_blocking(move || {
        pytorch::run(
            &python,
            &pytorch::Request {
                model: &model,
                dtype,
                prompt_token_ids: &prompt,
                num_tokens,
                ignore_eos,
                eos_token_ids: &eos_token_ids,
                iterations,
            },
        )
    });
    running.await?
}

fn announce(args: &RunLlmArgs, reused: bool, compile_s: f64, loaded: &LoadEngineResponse) {
    if args.json {
        return;
    }
    let engine = loaded.engine.clone().unwrap_or_default();
    let how =
        if reused { "engine reused".to_owned() } else { format!("engine compiled in {compile_s:.2} s") };
    println!("{how}, loaded in {:.2} s ({})", loaded.load_ms as f64 / 1e3, engine.engine_key);
    println!(
        "{} {} {}, quantization {}, cache {}: weights {}, KV cache {}, workspace {}",
        engine.model,
        engine.backend,
        engine.precision,
        engine.quantization,
        engine.cache,
        output::bytes(engine.weight_bytes),
        kv_memory::describe(&kv_memory::loaded(&engine), engine.max_seq_len),
        output::bytes(engine.workspace_bytes),
    );
}

async fn run_prompt(
    args: &RunLlmArgs,
    executor: &mut ExecutorClient<Channel>,
    engine: &str,
) -> anyhow::Result<(Generated, Vec<u32>)> {
    let prompt = match &args.prompt_file {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => args.prompt.clone(),
    };
    let messages = ChatMessages {
        messages: vec![ChatMessage {
            role: "user".to_owned(),
            content: prompt.clone(),
            ..ChatMessage::default()
        }],
        add_generation_prompt: None,
    };
    let to_tokenize = if args.raw {
        tokenize_request::Input::Prompt(prompt)
    } else {
        tokenize_request::Input::Messages(messages)
    };
    let tokenize = TokenizeRequest {
        engine: Some(engine.to_owned()),
        input: Some(to_tokenize),
        add_special_tokens: None,
    };
    let prompt_token_ids = executor.tokenize(tokenize).await?.into_inner().token_ids;
    let input = generate_request::Input::TokenIds(TokenIds { ids: prompt_token_ids.clone() });
    let request = generation(args, engine, input)?;
    if !args.json {
        println!();
    }
    let generated = generate(executor, request, |text| {
        if !args.json {
            print!("{text}");
            // A closed standard output ends the program at the next print.
            let _ = std::io::stdout().flush();
        }
    })
    .await?;
    Ok((generated, prompt_token_ids))
}

fn generation(
    args: &RunLlmArgs,
    engine: &str,
    input: generate_request::Input,
) -> anyhow::Result<GenerateRequest> {
    Ok(GenerateRequest {
        engine: Some(engine.to_owned()),
        session_id: None,
        request_id: None,
        input: Some(input),
        sampling: Some(args.sampling.options()),
        stopping: Some(StoppingOptions {
            max_tokens: Some(args.num_tokens),
            ignore_eos: Some(args.ignore_eos || args.benchmark),
            stop: args.stop.clone(),
            include_stop_in_output: Some(args.include_stop),
            ..StoppingOptions::default()
        }),
        response: Some(ResponseOptions::default()),
        truncate_prompt_tokens: args.truncate_prompt_tokens,
        guided: args.guided.guided()?,
        speculative: args.prompt_lookup.map(|tokens| {
            let lookup = PromptLookup { max_ngram: None, num_draft_tokens: Some(tokens) };
            Speculative { method: Some(Method::PromptLookup(lookup)) }
        }),
        ..GenerateRequest::default()
    })
}

async fn run_benchmark(
    args: &RunLlmArgs,
    executor: &ExecutorClient<Channel>,
    engine: &str,
    vocab_size: u32,
) -> anyhow::Result<(Generated, Benchmark)> {
    ensure!(args.num_tokens > 1, "a benchmark needs --num-tokens of at least 2");
    ensure!(
        args.batch_size > 0 && args.iterations > 0 && args.isl > 0,
        "--batch-size, --iterations and --isl are at least 1"
    );
    let (mut ttft, mut tpot, mut latency) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    // The first round warms up and is not counted.
    for round in 0..=args.iterations {
        let mut running = Vec::new();
        let start = Instant::now();
        for sequence in 0..args.batch_size {
            let ids = (0..args.isl).map(|index| pseudo_random_token(sequence, index, vocab_size)).collect();
            let request = generation(args, engine, generate_request::Input::TokenIds(TokenIds { ids }))?;
            let mut executor = executor.clone();
            running.push(tokio::spawn(async move { generate(&mut executor, request, |_| {}).await }));
        }
        for task in running {
            let generated = task.await??;
            let Some(per_token) = generated.time_per_output_token() else {
                bail!("a generation made no tokens")
            };
            if round > 0 {
                ttft.push(generated.time_to_first_token);
                tpot.push(per_token);
            }
            last = Some(generated);
        }
        if round > 0 {
            latency.push(start.elapsed());
        }
    }
    let median_tpot = quantile(&mut tpot, 0.5);
    let benchmark = Benchmark {
        iterations: args.iterations,
        batch_size: args.batch_size,
        isl: args.isl,
        num_tokens: args.num_tokens,
        median_ttft_ms: millis(quantile(&mut ttft, 0.5)),
        p90_ttft_ms: millis(quantile(&mut ttft, 0.9)),
        median_tpot_ms: millis(median_tpot),
        p90_tpot_ms: millis(quantile(&mut tpot, 0.9)),
        median_latency_ms: millis(quantile(&mut latency, 0.5)),
        decode_tokens_per_s: f64::from(args.batch_size) / median_tpot.as_secs_f64(),
    };
    Ok((last.context("no generation ran")?, benchmark))
}

/// Token IDs in 1..10000, as far as the vocabulary has them; the same in every run.
fn pseudo_random_token(sequence: u32, index: u32, vocab_size: u32) -> u32 {
    let count = vocab_size.saturating_sub(1).clamp(1, 9999);
    1 + index.wrapping_add(sequence.wrapping_mul(104_729)).wrapping_mul(7919) % count
}

/// The `q` quantile by nearest rank.
pub(crate) fn quantile(values: &mut [Duration], q: f64) -> Duration {
    values.sort_unstable();
    let rank = ((values.len() as f64 * q).ceil() as usize).clamp(1, values.len().max(1));
    values.get(rank - 1).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn summarise(report: &Report, generated: &Generated) {
    if let Some(benchmark) = &report.benchmark {
        println!(
            "{} iterations, batch {}, {} prompt and {} new tokens",
            benchmark.iterations, benchmark.batch_size, benchmark.isl, benchmark.num_tokens
        );
        println!("TTFT       median {:.2} ms, p90 {:.2} ms", benchmark.median_ttft_ms, benchmark.p90_ttft_ms);
        println!("TPOT       median {:.2} ms, p90 {:.2} ms", benchmark.median_tpot_ms, benchmark.p90_tpot_ms);
        println!("latency    median {:.2} ms", benchmark.median_latency_ms);
        println!("decode     {:.1} tokens/s", benchmark.decode_tokens_per_s);
    } else {
        let speed =
            report.decode_tokens_per_s.map(|speed| format!(", {speed:.1} tokens/s")).unwrap_or_default();
        println!(
            "\n\n{} prompt and {} new tokens, {}: first after {:.0} ms{speed}",
            generated.usage.prompt_tokens,
            generated.usage.output_tokens,
            report.finish_reason,
            report.ttft_ms
        );
    }
    if let (Some(pytorch), Some(outputs_match)) = (&report.pytorch, report.outputs_match) {
        let (ttft, tpot) = (pytorch.ttft_ms, pytorch.tpot_ms);
        println!("PyTorch: TTFT {ttft:.1} ms, TPOT {tpot:.2} ms ({})", pytorch.version);
        println!("PyTorch and Roundhouse outputs match: {outputs_match}");
    }
    println!("peak memory of the executor {}", output::bytes(report.peak_memory_bytes));
}
