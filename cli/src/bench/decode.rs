//! `bench decode`: the whole way of tokens, gRPC included: load, first token, one stream, and sessions that decode together.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use futures::future::try_join_all;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    CreateSessionRequest, DeleteSessionRequest, GenerateRequest, GetLoadRequest, LoadEngineRequest,
    StoppingOptions, TokenIds, TruncateSessionRequest, UnloadEngineRequest, generate_request,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::{median, prompt_token};
use crate::clients::ServiceArgs;
use crate::compile;
use crate::model_args::ModelArgs;
use crate::output;

/// Streams that one connection carries.
const STREAMS_OF_A_CONNECTION: u32 = 8;

/// `roundhouse bench decode`.
#[derive(Debug, Args)]
pub(super) struct DecodeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// How many sessions decode together: several numbers, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    sessions: Vec<u32>,
    /// Prompt tokens of each.
    #[arg(long, default_value_t = 512)]
    isl: u32,
    /// New tokens of each.
    #[arg(long, default_value_t = 128)]
    osl: u32,
    /// Turns of each measurement; one more comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    iterations: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: String,
    backend: String,
    isl: u32,
    osl: u32,
    iterations: u32,
    /// Of the call that first loads the engine, of a store on this machine: its files' digests are computed.
    load_s: f64,
    /// Of the call that loads it again, whose files are known.
    load_again_s: f64,
    /// Medians of a prompt by itself, from the call to the first token.
    first_token_ms: f64,
    /// Of the tokens after the first one.
    tokens_per_s: f64,
    together: Vec<Together>,
}

/// Sessions with the prompt in their history, that decode together.
#[derive(Debug, Serialize)]
struct Together {
    sessions: u32,
    /// Of all of them, while all of them decode: the median of the turns.
    tokens_per_s: f64,
    /// The longest time between two messages of a stream, in the median turn.
    longest_gap_ms: f64,
}

/// When the tokens of a stream came.
struct Stream {
    called: Instant,
    times: Vec<Instant>,
}

pub(super) async fn run(args: DecodeArgs) -> anyhow::Result<()> {
    ensure!(
        args.isl > 0 && args.osl > 2 && args.iterations > 0 && args.sessions.iter().all(|&count| count > 0),
        "--isl, --iterations and --sessions are at least 1, --osl 3"
    );
    let most = args.sessions.iter().copied().max().unwrap_or(1);
    let mut compiler = args.services.compiler().await?;
    let endpoints = args.services.executor_endpoints().await?;
    let endpoint = endpoints.into_iter().next().context("no executor service is named")?;
    let connections = (0..most.div_ceil(STREAMS_OF_A_CONNECTION)).map(|_| endpoint.connect());
    let connections: Vec<_> = try_join_all(connections).await?.into_iter().map(ExecutorClient::new).collect();
    let mut executor = connections.first().context("no connection")?.clone();
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let mut request = args.model.request_to_run(&runtimes);
    let options = request.options.get_or_insert_default();
    options.max_seq_len = options.max_seq_len.or(Some(args.isl + args.osl + 2));
    options.max_batch_size = options.max_batch_size.or(Some(most));
    let engine = compile::compile(&mut compiler, request).await?.engine.context("no engine in the answer")?;
    let mut load_times = [0.0; 2];
    let mut loaded = None;
    for seconds in &mut load_times {
        if loaded.is_some() {
            executor.unload_engine(UnloadEngineRequest { engine_key: engine.key.clone() }).await?;
        }
        let started = Instant::now();
        let load = LoadEngineRequest { engine_key: engine.key.clone() };
        loaded = executor.load_engine(load).await?.into_inner().engine;
        *seconds = started.elapsed().as_secs_f64();
    }
    let loaded = loaded.context("no engine in the answer")?;
    let [load_s, load_again_s] = load_times;
    let bench = Bench { connections, engine: engine.key, vocab_size: loaded.vocab_size };

    let (mut first_tokens, mut alone) = (Vec::new(), Vec::new());
    for turn in 0..=args.iterations {
        let stream = bench.stream(0, None, turn * args.isl..(turn + 1) * args.isl, args.osl).await?;
        let (first, last) =
            stream.times.first().zip(stream.times.last()).context("a stream without tokens")?;
        if turn > 0 {
            first_tokens.push((*first - stream.called).as_secs_f64() * 1e3);
            alone.push((stream.times.len() - 1) as f64 / (*last - *first).as_secs_f64());
        }
    }
    let mut together = Vec::new();
    for &sessions in &args.sessions {
        together.push(bench.together(sessions, &args).await?);
    }
    let report = Report {
        model: loaded.model,
        precision: loaded.precision,
        backend: loaded.backend,
        isl: args.isl,
        osl: args.osl,
        iterations: args.iterations,
        load_s,
        load_again_s,
        first_token_ms: median(first_tokens),
        tokens_per_s: median(alone),
        together,
    };
    if args.json {
        return output::print_json(&report);
    }
    println!(
        "{} {} on {}: prompts of {}, {} new tokens, medians of {} turns",
        report.model, report.precision, report.backend, report.isl, report.osl, report.iterations
    );
    println!("loaded in            {:9.2} s, again in {:.2} s", report.load_s, report.load_again_s);
    println!("first token          {:9.2} ms", report.first_token_ms);
    println!("alone                {:9.1} tokens/s", report.tokens_per_s);
    for Together { sessions, tokens_per_s, longest_gap_ms } in &report.together {
        println!(
            "{sessions:3} sessions         {tokens_per_s:9.1} tokens/s, longest gap {longest_gap_ms:.1} ms"
        );
    }
    Ok(())
}

/// An engine in an executor, and connections to it, of which there is at least one.
struct Bench {
    connections: Vec<ExecutorClient<Channel>>,
    engine: String,
    vocab_size: u32,
}

impl Bench {
    fn client(&self, index: u32) -> ExecutorClient<Channel> {
        self.connections[index as usize % self.connections.len()].clone()
    }

    /// So many sessions with a prompt each, that decode at the same time, turn after turn from the same history.
    async fn together(&self, sessions: u32, args: &DecodeArgs) -> anyhow::Result<Together> {
        let begin = |index: u32| async move {
            let create =
                CreateSessionRequest { engine: Some(self.engine.clone()), ..CreateSessionRequest::default() };
            let session = self.client(index).create_session(create).await?.into_inner().id;
            self.stream(index, Some(&session), index * 101..index * 101 + args.isl, 1).await?;
            anyhow::Ok(session)
        };
        let ids = try_join_all((0..sessions).map(begin)).await?;
        let (mut speeds, mut gaps) = (Vec::new(), Vec::new());
        for turn in 0..=args.iterations {
            // The last token of the prompt is given again: a turn has at least one.
            let keep = args.isl - 1;
            let rewind = (0..).zip(&ids).map(|(index, session)| async move {
                let truncate = TruncateSessionRequest { session_id: session.clone(), num_tokens: keep };
                self.client(index).truncate_session(truncate).await
            });
            try_join_all(rewind).await?;
            let streams = (0..).zip(&ids).map(|(index, session)| {
                let last = index * 101 + keep;
                self.stream(index, Some(session), last..last + 1, args.osl)
            });
            let streams = try_join_all(streams).await?;
            if turn > 0 {
                speeds.push(tokens_per_s(&streams)?);
                gaps.push(longest_gap(&streams).as_secs_f64() * 1e3);
            }
        }
        let delete = (0..).zip(ids).map(|(index, session_id)| async move {
            self.client(index).delete_session(DeleteSessionRequest { session_id }).await
        });
        try_join_all(delete).await?;
        Ok(Together { sessions, tokens_per_s: median(speeds), longest_gap_ms: median(gaps) })
    }

    /// A generation, of tokens of these places, that takes nothing from other prompts.
    async fn stream(
        &self,
        index: u32,
        session: Option<&String>,
        places: std::ops::Range<u32>,
        osl: u32,
    ) -> anyhow::Result<Stream> {
        let ids = places.map(|place| prompt_token(place, self.vocab_size)).collect();
        let request = GenerateRequest {
            engine: session.is_none().then(|| self.engine.clone()),
            session_id: session.cloned(),
            bypass_prefix_cache: Some(true),
            input: Some(generate_request::Input::TokenIds(TokenIds { ids })),
            stopping: Some(StoppingOptions {
                max_tokens: Some(osl),
                ignore_eos: Some(true),
                ..StoppingOptions::default()
            }),
            ..GenerateRequest::default()
        };
        let called = Instant::now();
        let mut stream = self.client(index).generate(request).await?.into_inner();
        let mut times = Vec::with_capacity(osl as usize);
        while let Some(message) = stream.message().await? {
            times.extend(std::iter::repeat_n(Instant::now(), message.token_ids.len()));
        }
        Ok(Stream { called, times })
    }
}

/// Tokens a second of all streams, while all of them decode.
fn tokens_per_s(streams: &[Stream]) -> anyhow::Result<f64> {
    let start = streams.iter().filter_map(|stream| stream.times.first()).max();
    let end = streams.iter().filter_map(|stream| stream.times.last()).min();
    let (&start, &end) = start.zip(end).context("a stream without tokens")?;
    ensure!(end > start, "the sessions did not decode at the same time: give more new tokens");
    let all = streams.iter().flat_map(|stream| &stream.times);
    let counted = all.filter(|&&time| time > start && time <= end).count();
    Ok(counted as f64 / (end - start).as_secs_f64())
}

fn longest_gap(streams: &[Stream]) -> Duration {
    let gaps = streams.iter().flat_map(|stream| stream.times.windows(2).map(|pair| pair[1] - pair[0]));
    gaps.max().unwrap_or_default()
}
