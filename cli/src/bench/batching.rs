//! `bench batching`: what sessions at a time give over one alone, in turns; and how steady streams are while prompts
//! arrive.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use futures::future::try_join_all;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    GenerateRequest, GetLoadRequest, LoadEngineRequest, StoppingOptions, TokenIds, generate_request,
};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::histogram::{Histogram, Quantiles};
use super::{median, prompt_token};
use crate::clients::ServiceArgs;
use crate::compile;
use crate::model_args::ModelArgs;
use crate::output;

/// `roundhouse bench batching`.
#[derive(Debug, Args)]
pub(super) struct BatchingArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// Sessions at a time.
    #[arg(long, default_value_t = 16)]
    sessions: u32,
    /// Prompt tokens of each.
    #[arg(long, default_value_t = 32)]
    isl: u32,
    /// New tokens of each.
    #[arg(long, default_value_t = 128)]
    osl: u32,
    /// Turns of one session and of many; one more comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    iterations: u32,
    /// Prompts that arrive one after the other while the sessions stream; 0 leaves that part out.
    #[arg(long, default_value_t = 10)]
    arrivals: u32,
    /// Tokens of each of those.
    #[arg(long, default_value_t = 512)]
    arrival_tokens: u32,
    /// From one arrival to the next, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    arrival_interval_ms: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: String,
    sessions: u32,
    isl: u32,
    osl: u32,
    iterations: u32,
    /// Medians over the turns.
    alone_tokens_per_s: f64,
    alone_step_ms: f64,
    together_tokens_per_s: f64,
    /// The median of the ratios of each turn.
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    arrivals: Option<Arrivals>,
}

#[derive(Debug, Serialize)]
struct Arrivals {
    count: u32,
    tokens: u32,
    interval_ms: u64,
    inter_token_latency: Quantiles,
    time_to_first_token: Quantiles,
    /// The 99th percentile of the latency over the step of one session alone.
    p99_over_alone_step: f64,
}

/// When the tokens of a stream came.
type Times = Vec<Instant>;

pub(super) async fn run(args: BatchingArgs) -> anyhow::Result<()> {
    ensure!(
        args.sessions > 0 && args.isl > 0 && args.osl > 2 && args.iterations > 0,
        "--sessions, --isl and --iterations are at least 1, --osl 3"
    );
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let mut request = args.model.request_to_run(&runtimes);
    let options = request.options.get_or_insert_default();
    // Sessions stream for as long as prompts arrive.
    let longest = (args.isl + args.osl).max(args.arrival_tokens + 1).max(2048);
    options.max_seq_len = options.max_seq_len.or(Some(longest));
    options.max_batch_size = options.max_batch_size.or(Some(args.sessions + 8));
    let engine = compile::compile(&mut compiler, request).await?.engine.context("no engine in the answer")?;
    let load = LoadEngineRequest { engine_key: engine.key.clone() };
    let loaded = executor.load_engine(load).await?.into_inner().engine.context("no engine in the answer")?;
    let bench = Bench {
        executor,
        engine: engine.key,
        vocab_size: loaded.vocab_size,
        max_seq_len: loaded.max_seq_len,
    };

    let (mut alone, mut steps, mut together, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=args.iterations {
        let one = bench.tokens_per_s(1, args.isl, args.osl).await?;
        let many = bench.tokens_per_s(args.sessions, args.isl, args.osl).await?;
        if turn > 0 {
            alone.push(one);
            steps.push(1e3 / one);
            together.push(many);
            ratios.push(many / one);
        }
    }
    let alone_step_ms = median(steps);
    let arrivals = if args.arrivals > 0 { Some(arrivals(&bench, &args, alone_step_ms).await?) } else { None };
    let report = Report {
        model: loaded.model,
        precision: loaded.precision,
        sessions: args.sessions,
        isl: args.isl,
        osl: args.osl,
        iterations: args.iterations,
        alone_tokens_per_s: median(alone),
        alone_step_ms,
        together_tokens_per_s: median(together),
        ratio: median(ratios),
        arrivals,
    };
    if args.json {
        return output::print_json(&report);
    }
    show(&report);
    Ok(())
}

fn show(report: &Report) {
    println!(
        "{} {}, prompts of {}, {} new tokens, medians of {} turns",
        report.model, report.precision, report.isl, report.osl, report.iterations
    );
    println!("1 session            {:9.1} tokens/s", report.alone_tokens_per_s);
    println!("{:<3}sessions          {:9.1} tokens/s", report.sessions, report.together_tokens_per_s);
    println!("ratio                {:9.2}", report.ratio);
    if let Some(arrivals) = &report.arrivals {
        println!(
            "while {} prompts of {} tokens arrive, one every {} ms:",
            arrivals.count, arrivals.tokens, arrivals.interval_ms
        );
        arrivals.inter_token_latency.show("inter-token latency");
        arrivals.time_to_first_token.show("time to first token");
        println!(
            "p99 over the step of one session ({:.2} ms): {:.2}",
            report.alone_step_ms, arrivals.p99_over_alone_step
        );
    }
}

/// An engine in an executor.
#[derive(Clone)]
struct Bench {
    executor: ExecutorClient<Channel>,
    engine: String,
    vocab_size: u32,
    max_seq_len: u32,
}

impl Bench {
    /// Tokens a second of so many sessions, while all of them decode.
    async fn tokens_per_s(&self, sessions: u32, isl: u32, osl: u32) -> anyhow::Result<f64> {
        let streams = try_join_all((0..sessions).map(|index| self.stream(index, isl, osl, None))).await?;
        let start = streams.iter().filter_map(|times| times.first()).max().copied();
        let end = streams.iter().filter_map(|times| times.last()).min().copied();
        let (start, end) = start.zip(end).context("a stream without tokens")?;
        ensure!(end > start, "the sessions did not decode at the same time: give more new tokens");
        let counted = streams.iter().flatten().filter(|&&time| time > start && time <= end).count();
        Ok(counted as f64 / (end - start).as_secs_f64())
    }

    /// When the tokens of a generation come, until it or `until` is over.
    async fn stream(
        &self,
        index: u32,
        isl: u32,
        osl: u32,
        until: Option<watch::Receiver<bool>>,
    ) -> anyhow::Result<Times> {
        let first = index * 101;
        let ids = (first..first + isl).map(|index| prompt_token(index, self.vocab_size)).collect();
        let request = GenerateRequest {
            engine: Some(self.engine.clone()),
            input: Some(generate_request::Input::TokenIds(TokenIds { ids })),
            stopping: Some(StoppingOptions {
                max_tokens: Some(osl),
                ignore_eos: Some(true),
                ..StoppingOptions::default()
            }),
            ..GenerateRequest::default()
        };
        let mut stream = self.executor.clone().generate(request).await?.into_inner();
        let mut times = Vec::with_capacity(osl as usize);
        while let Some(message) = stream.message().await? {
            times.extend(std::iter::repeat_n(Instant::now(), message.token_ids.len()));
            if until.as_ref().is_some_and(|until| *until.borrow()) {
                break;
            }
        }
        Ok(times)
    }
}

/// Lets sessions stream while prompts arrive.
async fn arrivals(bench: &Bench, args: &BatchingArgs, alone_step_ms: f64) -> anyhow::Result<Arrivals> {
    let (over, until) = watch::channel(false);
    let mut sessions = JoinSet::new();
    for index in 0..args.sessions {
        let (bench, until, isl) = (bench.clone(), until.clone(), args.isl);
        let longest = bench.max_seq_len.saturating_sub(isl).max(1);
        sessions.spawn(async move {
            // One that is full before the last prompt has arrived begins anew.
            let mut streams = Vec::new();
            while !*until.borrow() {
                streams.push(bench.stream(index, isl, longest, Some(until.clone())).await?);
            }
            anyhow::Ok(streams)
        });
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(args.arrival_interval_ms));
    // The sessions have an interval to begin in.
    ticks.tick().await;
    ticks.tick().await;
    let begun = Instant::now();
    let mut arriving = JoinSet::new();
    for index in 0..args.arrivals {
        let (bench, tokens) = (bench.clone(), args.arrival_tokens);
        arriving.spawn(async move {
            let start = Instant::now();
            let times = bench.stream(1000 + index, tokens, 1, None).await?;
            anyhow::Ok(times.first().map(|first| *first - start))
        });
        ticks.tick().await;
    }
    let mut first_tokens = Histogram::default();
    while let Some(arrived) = arriving.join_next().await {
        first_tokens.add(arrived??.context("a prompt without a token")?);
    }
    let ended = Instant::now();
    // Sessions that have ended by themselves do not listen any more.
    let _ = over.send(true);
    let mut gaps = Histogram::default();
    while let Some(streams) = sessions.join_next().await {
        for times in streams?? {
            let counted = times.windows(2).filter(|pair| pair[0] >= begun && pair[1] <= ended);
            counted.for_each(|pair| gaps.add(pair[1] - pair[0]));
        }
    }
    let inter_token_latency = gaps.quantiles();
    Ok(Arrivals {
        count: args.arrivals,
        tokens: args.arrival_tokens,
        interval_ms: args.arrival_interval_ms,
        inter_token_latency,
        time_to_first_token: first_tokens.quantiles(),
        p99_over_alone_step: inter_token_latency.p99_ms / alone_step_ms,
    })
}
