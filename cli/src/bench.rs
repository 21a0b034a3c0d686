//! `bench`: speed, side by side with a peer in one run.
//!
//! Machines differ and are noisy, so a number by itself says little: both sides take turns, and the ratio of each
//! turn is what counts.

mod batching;
mod cold_start;
mod decode;
mod histogram;
mod serve;
mod sessions;

use std::io::{BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    GenerateRequest, GetLoadRequest, LoadEngineRequest, StoppingOptions, TokenIds, generate_request,
};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use crate::clients::ServiceArgs;
use crate::compile;
use crate::generate::generate;
use crate::model_args::ModelArgs;
use crate::output;

/// Bytes that the bandwidth measurement reads: more than the caches that a core has to itself.
const BANDWIDTH_BYTES: usize = 512 << 20;

/// `roundhouse bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// One session on the CPU backend: prefill and decode of the same tokens by both sides in turns.
    Cpu(CpuArgs),
    /// From the start of an executor's process to its first token.
    ColdStart(cold_start::ColdStartArgs),
    /// Sessions at a time against one alone, and streams while prompts arrive.
    Batching(batching::BatchingArgs),
    /// The whole way of tokens, gRPC included: load, first token, one stream, and sessions that decode together.
    Decode(decode::DecodeArgs),
    /// Many clients that behave in every way, for a time: every stream ends as it should and nothing is left.
    #[command(visible_alias = "soak")]
    Serve(serve::ServeArgs),
    /// What a turn costs whose history need not be computed.
    Sessions(sessions::SessionsArgs),
}

#[derive(Debug, Args)]
struct CpuArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// A peer's command line, which speaks the protocol of scripts/peers/line_protocol.py.
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// Prompt tokens.
    #[arg(long, default_value_t = 512)]
    isl: u32,
    /// New tokens.
    #[arg(long, default_value_t = 128)]
    osl: u32,
    /// Turns of each side; one more comes first and is not counted.
    #[arg(long, default_value_t = 9)]
    iterations: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The result of a run.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: String,
    threads: usize,
    isl: u32,
    osl: u32,
    iterations: u32,
    /// Of this machine with all threads, before and after the turns.
    read_bandwidth_gb_s: [f64; 2],
    weight_bytes: u64,
    peak_memory_bytes: u64,
    roundhouse: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_speed: Option<Side>,
    /// Medians of the ratios of each turn, Roundhouse over peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_ratio: Option<f64>,
    /// Of the tokens that both generated, how many are the same from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    common_tokens: Option<usize>,
}

/// Medians of one side.
#[derive(Debug, Serialize)]
struct Side {
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
}

/// One turn of one side.
struct Turn {
    prefill: Duration,
    decode: Duration,
    tokens: Vec<u32>,
}

pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Cpu(args) => cpu(args).await,
        BenchCommand::ColdStart(args) => cold_start::run(args).await,
        BenchCommand::Batching(args) => batching::run(args).await,
        BenchCommand::Decode(args) => decode::run(args).await,
        BenchCommand::Serve(args) => serve::run(args).await,
        BenchCommand::Sessions(args) => sessions::run(args).await,
    }
}

async fn cpu(args: CpuArgs) -> anyhow::Result<()> {
    ensure!(
        args.isl > 0 && args.osl > 1 && args.iterations > 0,
        "--isl and --iterations are at least 1, --osl 2"
    );
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let mut request = args.model.request();
    let options = request.options.get_or_insert_default();
    options.max_seq_len = options.max_seq_len.or(Some(args.isl + args.osl));
    let engine = compile::compile(&mut compiler, request).await?.engine.context("no engine in the answer")?;
    let loaded =
        executor.load_engine(LoadEngineRequest { engine_key: engine.key.clone() }).await?.into_inner();
    let loaded = loaded.engine.context("no engine in the answer")?;
    let mut peer = args.peer.as_deref().map(Peer::start).transpose()?;
    let vocab_size = peer.as_ref().map_or(Ok(loaded.vocab_size), Peer::vocab_size)?;
    let prompt: Vec<u32> = (0..args.isl).map(|index| prompt_token(index, vocab_size)).collect();
    let threads =
        args.services.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));

    let before = read_bandwidth(threads);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..=args.iterations {
        let of_us = own_turn(&mut executor, &engine.key, &prompt, args.osl).await?;
        let of_peer = peer.as_mut().map(|peer| peer.turn(args.isl, args.osl)).transpose()?;
        if turn > 0 {
            ours.push(of_us);
            theirs.extend(of_peer);
        }
    }
    let after = read_bandwidth(threads);
    let ratio = |of: fn(&Turn) -> Duration| {
        let ratios =
            ours.iter().zip(&theirs).map(|(ours, theirs)| of(theirs).as_secs_f64() / of(ours).as_secs_f64());
        (!theirs.is_empty()).then(|| median(ratios.collect()))
    };
    let report = Report {
        model: loaded.model,
        precision: loaded.precision,
        threads,
        isl: args.isl,
        osl: args.osl,
        iterations: args.iterations,
        read_bandwidth_gb_s: [before, after],
        weight_bytes: loaded.weight_bytes,
        peak_memory_bytes: executor.get_load(GetLoadRequest {}).await?.into_inner().peak_memory_bytes,
        roundhouse: side(&ours, &args),
        peer_speed: (!theirs.is_empty()).then(|| side(&theirs, &args)),
        prefill_ratio: ratio(|turn| turn.prefill),
        decode_ratio: ratio(|turn| turn.decode),
        common_tokens: ours.first().zip(theirs.first()).map(|(ours, theirs)| {
            ours.tokens.iter().zip(&theirs.tokens).take_while(|(ours, theirs)| ours == theirs).count()
        }),
        peer: peer.as_ref().map(|peer| peer.description.clone()),
    };
    if args.json { output::print_json(&report) } else { show(&report) }
}

fn show(report: &Report) -> anyhow::Result<()> {
    println!(
        "{} {}, {} threads, prompt {}, {} new tokens, medians of {} turns",
        report.model, report.precision, report.threads, report.isl, report.osl, report.iterations
    );
    let [before, after] = report.read_bandwidth_gb_s;
    println!("memory read bandwidth  {before:.1} GB/s before, {after:.1} GB/s after");
    println!("                       prefill tokens/s   decode tokens/s");
    let line = |name: &str, side: &Side| {
        println!("{name:22} {:17.1} {:17.1}", side.prefill_tokens_per_s, side.decode_tokens_per_s);
    };
    line("roundhouse", &report.roundhouse);
    if let (Some(peer), Some(side)) = (&report.peer, &report.peer_speed) {
        let text = |field: &str| peer.get(field).and_then(|value| value.as_str()).unwrap_or("?").to_owned();
        line(&text("peer"), side);
        println!("peer: {}, {}", text("version"), text("precision"));
    }
    if let (Some(prefill), Some(decode)) = (report.prefill_ratio, report.decode_ratio) {
        println!("{:22} {prefill:17.2} {decode:17.2}", "ratio");
    }
    let streamed = report.weight_bytes as f64 * report.roundhouse.decode_tokens_per_s / 1e9;
    println!(
        "decode streams the weights at {streamed:.1} GB/s; peak memory {}",
        output::bytes(report.peak_memory_bytes)
    );
    Ok(())
}

async fn own_turn(
    executor: &mut ExecutorClient<Channel>,
    engine: &str,
    prompt: &[u32],
    osl: u32,
) -> anyhow::Result<Turn> {
    let request = GenerateRequest {
        engine: Some(engine.to_owned()),
        input: Some(generate_request::Input::TokenIds(TokenIds { ids: prompt.to_vec() })),
        stopping: Some(StoppingOptions {
            max_tokens: Some(osl),
            ignore_eos: Some(true),
            ..StoppingOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let generated = generate(executor, request, |_| {}).await?;
    ensure!(
        generated.token_ids.len() == osl as usize,
        "{} tokens instead of {osl}",
        generated.token_ids.len()
    );
    Ok(Turn {
        prefill: Duration::from_micros(generated.timings.prefill_us),
        decode: Duration::from_micros(generated.timings.decode_us),
        tokens: generated.token_ids,
    })
}

fn side(turns: &[Turn], args: &CpuArgs) -> Side {
    let speed = |tokens: u32, of: fn(&Turn) -> Duration| {
        f64::from(tokens) / median(turns.iter().map(|turn| of(turn).as_secs_f64()).collect())
    };
    Side {
        prefill_tokens_per_s: speed(args.isl, |turn| turn.prefill),
        decode_tokens_per_s: speed(args.osl - 1, |turn| turn.decode),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// As `prompt_token_ids` of the line protocol.
fn prompt_token(index: u32, vocab_size: u32) -> u32 {
    let token = 100 + u64::from(index) * 7907 % u64::from(vocab_size.saturating_sub(100).max(1));
    u32::try_from(token).unwrap_or(100)
}

/// A peer's process.
struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    description: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct Answer {
    seconds: Option<f64>,
    #[serde(default)]
    token_ids: Vec<u32>,
    error: Option<String>,
}

impl Peer {
    fn start(command: &str) -> anyhow::Result<Self> {
        let mut words = command.split_whitespace();
        let program = words.next().context("--peer is empty")?;
        let mut process = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("peer {command:?}"))?;
        let (input, output) =
            process.stdin.take().zip(process.stdout.take()).context("the peer has no pipes")?;
        let mut output = BufReader::new(output);
        let description = serde_json::from_str(&read_line(&mut output)?).context("the peer's first line")?;
        Ok(Self { process, input, output, description })
    }

    fn vocab_size(&self) -> anyhow::Result<u32> {
        let size = self.description.get("vocab_size").and_then(serde_json::Value::as_u64);
        size.and_then(|size| u32::try_from(size).ok())
            .filter(|&size| size > 100)
            .context("the peer's vocab_size")
    }

    fn turn(&mut self, isl: u32, osl: u32) -> anyhow::Result<Turn> {
        let (prefill, mut tokens) = self.ask(&format!("prefill {isl}"))?;
        let (decode, rest) = self.ask(&format!("decode {}", osl - 1))?;
        tokens.extend(rest);
        Ok(Turn { prefill, decode, tokens })
    }

    fn ask(&mut self, request: &str) -> anyhow::Result<(Duration, Vec<u32>)> {
        writeln!(self.input, "{request}").context("the peer has gone")?;
        let answer: Answer = serde_json::from_str(&read_line(&mut self.output)?)?;
        match answer {
            Answer { seconds: Some(seconds), token_ids, .. } => {
                Ok((Duration::try_from_secs_f64(seconds)?, token_ids))
            }
            Answer { error, .. } => bail!("the peer: {}", error.unwrap_or_default()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read_line(output: &mut impl std::io::BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    ensure!(output.read_line(&mut line)? > 0, "the peer ended");
    Ok(line)
}

/// Reads a buffer with all threads, three times: the best in GB/s.
fn read_bandwidth(threads: usize) -> f64 {
    let buffer: Vec<u64> = (0..BANDWIDTH_BYTES as u64 / 8).collect();
    let chunk = buffer.len().div_ceil(threads.max(1));
    let best = (0..3).map(|_| {
        let start = Instant::now();
        let sum = std::thread::scope(|scope| {
            let readers: Vec<_> = buffer.chunks(chunk).map(|part| scope.spawn(move || sum(part))).collect();
            readers.into_iter().filter_map(|reader| reader.join().ok()).fold(0_u64, u64::wrapping_add)
        });
        std::hint::black_box(sum);
        start.elapsed()
    });
    best.min().map_or(f64::NAN, |best| BANDWIDTH_BYTES as f64 / best.as_secs_f64() / 1e9)
}

/// The sum in independent lanes, which the compiler turns into vector loads.
fn sum(part: &[u64]) -> u64 {
    let mut lanes = [0_u64; 32];
    for block in part.chunks_exact(32) {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(*value);
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}
