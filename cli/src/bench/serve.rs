//! `bench serve`: a load test. Many clients at a time with prompts and outputs of random lengths read their streams, read
//! them slowly, cancel, leave, break their connections and set deadlines; every stream must end as it should, and the
//! executor must hold nothing afterwards.

mod plan;
mod report;
mod stream;
mod watch;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use roundhouse_proto::executor::LoadEngineRequest;
use tokio::sync::mpsc;
use tonic::Code;

use crate::clients::ServiceArgs;
use crate::compile;
use crate::model_args::ModelArgs;
use crate::output;
use plan::{Ranges, StreamPlan};
use report::{Surroundings, Tally};
use stream::{End, Outcome, Target};
use watch::Watched;

/// Streams that one connection carries: below the limit that servers have for one.
const STREAMS_OF_A_CONNECTION: usize = 25;
/// How long a client that met a full executor waits.
const REFUSED: Duration = Duration::from_millis(200);

/// `roundhouse bench serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// Streams at a time.
    #[arg(long, default_value_t = 200)]
    streams: usize,
    /// How long new streams begin, in minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How long new streams begin, in seconds.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,
    /// Of everything that is random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The most prompt tokens of a turn.
    #[arg(long, default_value_t = 256)]
    max_prompt_tokens: u32,
    /// The most new tokens of a turn.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: u32,
    /// How many seconds a stream may take.
    #[arg(long, default_value_t = 120)]
    bound_seconds: u64,
    /// Every client leaves: cancels, drops its stream, breaks its connection or deletes its session.
    #[arg(long)]
    only_leaving: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    ensure!(
        args.streams > 0 && args.max_prompt_tokens > 0 && args.max_new_tokens > 0,
        "--streams, --max-prompt-tokens and --max-new-tokens are at least 1"
    );
    let mut compiler = args.services.compiler().await?;
    let endpoints = args.services.executor_endpoints().await?;
    let endpoint = endpoints.into_iter().next().context("no executor service is named")?;
    let engine = compile::compile(&mut compiler, args.model.request()).await?;
    let engine_key = engine.engine.context("no engine in the answer")?.key;
    let connections = args.streams.div_ceil(STREAMS_OF_A_CONNECTION);
    let target = Target::connect(endpoint, connections, engine_key.clone()).await?;
    let request = LoadEngineRequest { engine_key: engine_key.clone() };
    let loaded = target.control().load_engine(request).await?.into_inner();
    let loaded = loaded.engine.context("no engine in the answer")?;
    // Two turns and what a session keeps between them must fit.
    let half = loaded.max_seq_len / 2;
    let up_to = |asked: u32| -> RangeInclusive<u32> { 1..=asked.min(half / 2).max(1) };
    let ranges = Ranges {
        seed: args.seed,
        vocab_size: loaded.vocab_size,
        prompt_tokens: up_to(args.max_prompt_tokens),
        new_tokens: up_to(args.max_new_tokens),
        only_leaving: args.only_leaving,
    };

    let held_before = watch::held(&mut target.control()).await?;
    let mut watched = Watched::default();
    let started = Instant::now();
    let loading = load(&target, &ranges, &args);
    let mut tally = tokio::select! {
        tally = loading => tally,
        status = watched.watch(target.control()) => {
            status.context("the executor does not tell its load")?;
            Tally::default()
        }
    };
    let elapsed = started.elapsed();
    let patience = Duration::from_secs(args.bound_seconds);
    let held_after = watch::settled(&mut target.control(), held_before, patience).await?;
    let (resident, scheduler) = watch::end(&mut target.control()).await?;
    if watched.most().running == 0 {
        tally.fault("nothing ran whenever the executor was asked".to_owned());
    }
    let report = tally.report(Surroundings {
        model: loaded.model,
        engine_key,
        seed: args.seed,
        concurrency: args.streams,
        elapsed,
        most: watched.most(),
        held_before,
        held_after,
        memory: watched.memory(resident),
        scheduler,
    });
    if args.json {
        output::print_json(&report)?;
    } else {
        report.show();
    }
    ensure!(report.fault_count == 0, "{} faults: {}", report.fault_count, report.faults.join("; "));
    Ok(())
}

/// Runs streams, as many at a time as asked for, until the time is over and the last one has ended.
async fn load(target: &Target, ranges: &Ranges, args: &ServeArgs) -> Tally {
    let end = Instant::now() + Duration::from_secs(args.seconds.unwrap_or(args.minutes.saturating_mul(60)));
    let bound = Duration::from_secs(args.bound_seconds);
    let next = AtomicU64::new(0);
    let (sender, mut outcomes) = mpsc::channel::<(StreamPlan, Outcome)>(args.streams);
    let client = |sender: mpsc::Sender<_>| {
        let next = &next;
        async move {
            while Instant::now() < end {
                let plan = ranges.plan(next.fetch_add(1, Ordering::Relaxed));
                let outcome = target.run(&plan, bound).await;
                let refused =
                    matches!(&outcome.end, End::Status(status) if status.code() == Code::ResourceExhausted);
                // The receiver lives until every client is done.
                let _ = sender.send((plan, outcome)).await;
                if refused {
                    tokio::time::sleep(REFUSED).await;
                }
            }
        }
    };
    let clients = futures::future::join_all((0..args.streams).map(|_| client(sender.clone())));
    drop(sender);
    let tallying = async {
        let mut tally = Tally::default();
        while let Some((plan, outcome)) = outcomes.recv().await {
            tally.add(&plan, outcome);
        }
        tally
    };
    tokio::join!(clients, tallying).1
}
