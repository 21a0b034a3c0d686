//! `eval perplexity`: the perplexity of a text, of one engine or of several side by side.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    GenerateRequest, GetLoadRequest, ListEnginesRequest, LoadEngineRequest, LoadedEngine, ResponseOptions,
    Runtime, StoppingOptions, TokenIds, TokenizeRequest, UnloadEngineRequest, generate_request,
    tokenize_request,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::variant::Variant;
use super::windows::{Window, windows};
use crate::clients::{Compiler, ServiceArgs};
use crate::model_args::ModelArgs;
use crate::{compile, output};

/// What is scored unless a file is named.
const TEXT: &str = include_str!("../../texts/alice.txt");
const TEXT_NAME: &str = "Alice's Adventures in Wonderland (built in)";

/// `roundhouse eval perplexity`.
#[derive(Debug, Args)]
pub(super) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// A text of UTF-8; without it the beginning of Alice's Adventures in Wonderland.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a window, those before the text included.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    context: usize,
    /// Tokens of the text from one window to the next; half of --context by default.
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Only the first so many windows.
    #[arg(long, value_name = "WINDOWS")]
    windows: Option<usize>,
    /// Ways to keep the weights, each in an engine of its own, compared with the first: fp32, fp16, bf16, checkpoint (as
    /// it has them quantised), int8, int4, fp8, or with a group size int4:64, or without offsets int4:64:symmetric.
    /// Comma-separated.
    #[arg(long, value_delimiter = ',', value_name = "VARIANT,…")]
    compare: Vec<Variant>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The JSON object of a run.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    text: String,
    context: usize,
    stride: usize,
    /// One an engine, in the order asked for.
    runs: Vec<Run>,
}

/// What one engine scored.
#[derive(Debug, Serialize)]
struct Run {
    engine_key: String,
    backend: String,
    precision: String,
    quantization: String,
    cache: String,
    weight_bytes: u64,
    compile_s: f64,
    engine_reused: bool,
    /// Tokens of the whole text.
    text_tokens: usize,
    /// Tokens that were counted.
    tokens: usize,
    mean_nll: f64,
    perplexity: f64,
    /// Over the first run's perplexity.
    ratio: f64,
    /// Tokens of windows, those that only are context included, a second.
    tokens_per_s: f64,
    windows: Vec<Score>,
}

/// What a window scored.
#[derive(Debug, Clone, Serialize)]
struct Score {
    tokens: usize,
    counted: usize,
    /// The sum of the counted tokens' negative log-likelihoods.
    nll_sum: f64,
}

pub(super) async fn run(args: PerplexityArgs) -> anyhow::Result<()> {
    let (name, text) = match &args.text {
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            (name, text)
        }
        None => (TEXT_NAME.to_owned(), TEXT.to_owned()),
    };
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let variants: Vec<Option<Variant>> = match args.compare.as_slice() {
        [] => vec![None],
        variants => variants.iter().copied().map(Some).collect(),
    };
    let mut report = Report {
        model: args.model.model.clone(),
        text: name,
        context: args.context,
        stride: stride(&args),
        runs: Vec::new(),
    };
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    // All before the first is scored: what cannot be compiled is known at once.
    let mut compiled = Vec::new();
    for variant in variants {
        compiled.push(compile_variant(&args, variant, &runtimes, &mut compiler).await?);
    }
    for compiled in compiled {
        let mut run = run_variant(&args, compiled, &text, &mut executor).await?;
        let first = report.runs.first().map_or(run.perplexity, |first| first.perplexity);
        run.ratio = run.perplexity / first;
        report.runs.push(run);
    }
    if args.json {
        return output::print_json(&report);
    }
    show(&report);
    Ok(())
}

fn stride(args: &PerplexityArgs) -> usize {
    args.stride.unwrap_or((args.context / 2).max(1))
}

/// An engine in the store.
struct Compiled {
    variant: Option<Variant>,
    engine_key: String,
    compile_s: f64,
    reused: bool,
}

async fn compile_variant(
    args: &PerplexityArgs,
    variant: Option<Variant>,
    runtimes: &[Runtime],
    compiler: &mut Compiler,
) -> anyhow::Result<Compiled> {
    let mut request = args.model.request_to_run(runtimes);
    let options = request.options.get_or_insert_default();
    let context = u32::try_from(args.context).context("--context is larger than any engine's")?;
    let max_seq_len = *options.max_seq_len.get_or_insert(context);
    ensure!(max_seq_len >= context, "--max-seq-len {max_seq_len} is shorter than --context {context}");
    options.all_logits = Some(true);
    if let Some(variant) = variant {
        variant.apply(options);
    }
    let started = Instant::now();
    let response = compile::compile(compiler, request).await?;
    let compile_s = started.elapsed().as_secs_f64();
    let engine_key = response.engine.context("the compiler's answer has no engine")?.key;
    Ok(Compiled { variant, engine_key, compile_s, reused: response.reused })
}

/// Loads an engine, scores the text, and unloads the engine unless it was loaded before.
async fn run_variant(
    args: &PerplexityArgs,
    compiled: Compiled,
    text: &str,
    executor: &mut ExecutorClient<Channel>,
) -> anyhow::Result<Run> {
    let Compiled { variant, engine_key, compile_s, reused } = compiled;
    let loaded_before = executor.list_engines(ListEnginesRequest {}).await?.into_inner().engines;
    let is_ours = loaded_before.iter().all(|engine| engine.engine_key != engine_key);
    let request = LoadEngineRequest { engine_key: engine_key.clone() };
    let engine = executor.load_engine(request).await?.into_inner().engine;
    let engine = engine.context("the executor's answer has no engine")?;
    let scored = match variant.map_or(Ok(()), |variant| variant.check(&engine)) {
        Ok(()) => score_text(args, &engine, text, executor).await,
        Err(error) => Err(error),
    };
    if is_ours {
        executor.unload_engine(UnloadEngineRequest { engine_key }).await?;
    }
    let Scored { text_tokens, windows, tokens_per_s } = scored?;
    let tokens = windows.iter().map(|score| score.counted).sum();
    ensure!(tokens > 0, "the text has no token that another one comes before");
    let mean_nll = windows.iter().map(|score| score.nll_sum).sum::<f64>() / tokens as f64;
    Ok(Run {
        engine_key: engine.engine_key,
        backend: engine.backend,
        precision: engine.precision,
        quantization: engine.quantization,
        cache: engine.cache,
        weight_bytes: engine.weight_bytes,
        compile_s,
        engine_reused: reused,
        text_tokens,
        tokens,
        mean_nll,
        perplexity: mean_nll.exp(),
        ratio: 1.0,
        tokens_per_s,
        windows,
    })
}

/// The scores of a text.
struct Scored {
    text_tokens: usize,
    windows: Vec<Score>,
    tokens_per_s: f64,
}

/// Scores the windows of a text, as many at a time as the engine runs in one step.
async fn score_text(
    args: &PerplexityArgs,
    engine: &LoadedEngine,
    text: &str,
    executor: &ExecutorClient<Channel>,
) -> anyhow::Result<Scored> {
    let with_special = tokenize(executor, engine, text, true).await?;
    let ids = tokenize(executor, engine, text, false).await?;
    ensure!(!ids.is_empty(), "the text has no tokens");
    let before = with_special.windows(ids.len()).position(|part| part == ids);
    let prefix = &with_special[..before.context("special tokens change the tokens of the text")?];
    let mut parts = windows(ids.len(), prefix.len(), args.context, stride(args))?;
    parts.truncate(args.windows.unwrap_or(usize::MAX));
    let bar = progress_bar(parts.len());
    let started = Instant::now();
    let mut waiting = parts.iter().cloned().enumerate();
    let mut running = JoinSet::new();
    let mut scores: Vec<Option<Score>> = vec![None; parts.len()];
    loop {
        while running.len() < (engine.max_batch_size as usize).max(1)
            && let Some((index, window)) = waiting.next()
        {
            let sequence = [prefix, &ids[window.tokens.clone()]].concat();
            let (executor, key) = (executor.clone(), engine.engine_key.clone());
            running.spawn(async move { (index, score_window(executor, key, sequence, window).await) });
        }
        let Some(done) = running.join_next().await else { break };
        let (index, score) = done?;
        scores[index] = Some(score?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let elapsed = started.elapsed().as_secs_f64();
    let windows: Vec<Score> = scores.into_iter().flatten().collect();
    let computed: usize = windows.iter().map(|score| score.tokens).sum();
    Ok(Scored { text_tokens: ids.len(), tokens_per_s: computed as f64 / elapsed, windows })
}

async fn tokenize(
    executor: &ExecutorClient<Channel>,
    engine: &LoadedEngine,
    text: &str,
    add_special_tokens: bool,
) -> anyhow::Result<Vec<u32>> {
    let request = TokenizeRequest {
        engine: Some(engine.engine_key.clone()),
        input: Some(tokenize_request::Input::Prompt(text.to_owned())),
        add_special_tokens: Some(add_special_tokens),
    };
    Ok(executor.clone().tokenize(request).await?.into_inner().token_ids)
}

/// Scores one window, which is `sequence` with what comes before the text.
async fn score_window(
    mut executor: ExecutorClient<Channel>,
    engine_key: String,
    sequence: Vec<u32>,
    window: Window,
) -> anyhow::Result<Score> {
    let tokens = sequence.len();
    let request = GenerateRequest {
        engine: Some(engine_key),
        input: Some(generate_request::Input::TokenIds(TokenIds { ids: sequence })),
        stopping: Some(StoppingOptions { max_tokens: Some(0), ..StoppingOptions::default() }),
        response: Some(ResponseOptions { prompt_logprobs: Some(0), ..ResponseOptions::default() }),
        ..GenerateRequest::default()
    };
    let mut stream = executor.generate(request).await?.into_inner();
    let mut logprobs = Vec::with_capacity(tokens);
    while let Some(message) = stream.message().await? {
        logprobs.extend(message.prompt_logprobs.iter().map(|token| f64::from(token.logprob)));
    }
    ensure!(
        logprobs.len() + 1 == tokens,
        "the executor sent {} log-probabilities of {tokens} tokens",
        logprobs.len()
    );
    let counted = logprobs.iter().rev().take(window.counted);
    Ok(Score { tokens, counted: window.counted, nll_sum: -counted.sum::<f64>() })
}

/// A bar of windows, where somebody sees it.
fn progress_bar(windows: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("scoring windows {bar:40} {pos}/{len} {eta}");
    ProgressBar::new(windows as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(report: &Report) {
    let Some(first) = report.runs.first() else { return };
    println!("model      {} ({}, cache {})", report.model, first.backend, first.cache);
    println!(
        "text       {}: {} tokens, {} windows of {} every {}",
        report.text,
        first.text_tokens,
        first.windows.len(),
        report.context,
        report.stride
    );
    println!(
        "\n{:20} {:>11} {:>8} {:>10} {:>11} {:>8} {:>10}",
        "engine", "weights", "tokens", "mean NLL", "perplexity", "ratio", "tokens/s"
    );
    for run in &report.runs {
        let weights = match run.quantization.as_str() {
            "" | "none" => String::new(),
            quantization => format!(" {quantization}"),
        };
        println!(
            "{:20} {:>11} {:>8} {:>10.5} {:>11.4} {:>8.5} {:>10.1}",
            format!("{}{weights}", run.precision),
            output::bytes(run.weight_bytes),
            run.tokens,
            run.mean_nll,
            run.perplexity,
            run.ratio,
            run.tokens_per_s
        );
    }
}
