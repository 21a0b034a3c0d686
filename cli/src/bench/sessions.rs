//! What a turn costs whose history need not be computed: the time to its first token beside that of the whole sequence.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    CreateSessionRequest, DeleteSessionRequest, ForkSessionRequest, GenerateRequest, LoadEngineRequest,
    StoppingOptions, TokenIds, generate_request,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::{median, prompt_token};
use crate::clients::ServiceArgs;
use crate::compile;
use crate::generate::{Generated, generate};
use crate::model_args::ModelArgs;
use crate::output;

/// `roundhouse bench sessions`.
#[derive(Debug, Args)]
pub(super) struct SessionsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// Tokens of the history.
    #[arg(long, default_value_t = 1000)]
    history: u32,
    /// Tokens of the turn after it.
    #[arg(long, default_value_t = 20)]
    turn: u32,
    /// Rounds; one more comes first and is not counted.
    #[arg(long, default_value_t = 7)]
    iterations: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: String,
    history_tokens: u32,
    turn_tokens: u32,
    iterations: u32,
    /// History and turn as a new sequence of which nothing is known.
    whole_ttft_ms: f64,
    second_turn: Part,
    prefix_hit: Part,
    fork: Part,
}

/// A turn whose history was computed before.
#[derive(Debug, Serialize)]
struct Part {
    ttft_ms: f64,
    /// Of the whole sequence's time in the same round.
    ratio: f64,
    /// Tokens that were not computed again.
    cached_tokens: u32,
}

/// One round's times to the first token.
struct Round {
    whole: Duration,
    parts: [Generated; 3],
}

pub(super) async fn run(args: SessionsArgs) -> anyhow::Result<()> {
    ensure!(
        args.history > 0 && args.turn > 0 && args.iterations > 0,
        "--history, --turn and --iterations are at least 1"
    );
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let mut request = args.model.request();
    let options = request.options.get_or_insert_default();
    options.max_seq_len = options.max_seq_len.or(Some(args.history + args.turn + 8));
    let engine = compile::compile(&mut compiler, request).await?.engine.context("no engine in the answer")?;
    let loaded = executor.load_engine(LoadEngineRequest { engine_key: engine.key.clone() }).await?;
    let loaded = loaded.into_inner().engine.context("no engine in the answer")?;
    let mut rounds = Vec::new();
    for index in 0..=args.iterations {
        let round = round(&mut executor, &args, &engine.key, loaded.vocab_size, index).await?;
        if index > 0 {
            rounds.push(round);
        }
    }
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let part = |which: usize| {
        let ttft = |round: &Round| round.parts[which].time_to_first_token;
        Part {
            ttft_ms: median(rounds.iter().map(|round| millis(ttft(round))).collect()),
            ratio: median(rounds.iter().map(|round| ttft(round).div_duration_f64(round.whole)).collect()),
            cached_tokens: rounds
                .iter()
                .map(|round| round.parts[which].usage.cached_tokens)
                .min()
                .unwrap_or(0),
        }
    };
    let report = Report {
        model: loaded.model,
        precision: loaded.precision,
        history_tokens: args.history,
        turn_tokens: args.turn,
        iterations: args.iterations,
        whole_ttft_ms: median(rounds.iter().map(|round| millis(round.whole)).collect()),
        second_turn: part(0),
        prefix_hit: part(1),
        fork: part(2),
    };
    if args.json {
        return output::print_json(&report);
    }
    println!(
        "{} {}: {} tokens after {}, medians of {} rounds",
        report.model, report.precision, report.turn_tokens, report.history_tokens, report.iterations
    );
    println!("                 first token ms    of the whole   tokens not computed");
    println!("whole sequence   {:14.1}", report.whole_ttft_ms);
    for (name, part) in
        [("second turn", &report.second_turn), ("shared prefix", &report.prefix_hit), ("fork", &report.fork)]
    {
        let percent = part.ratio * 100.0;
        println!("{name:16} {:14.1} {percent:14.1}% {:17}", part.ttft_ms, part.cached_tokens);
    }
    Ok(())
}

/// All four of a history that no round before had.
async fn round(
    executor: &mut ExecutorClient<Channel>,
    args: &SessionsArgs,
    engine: &str,
    vocab_size: u32,
    index: u32,
) -> anyhow::Result<Round> {
    let tokens = |first: u32, count: u32| -> Vec<u32> {
        (first..first + count).map(|place| prompt_token(place, vocab_size)).collect()
    };
    let length = args.history + args.turn;
    let history = tokens(index * 3 * length, args.history);
    let turns: Vec<_> =
        (1..4).map(|part| tokens(index * 3 * length + part * length - args.turn, args.turn)).collect();
    let salt = format!("round {index}");
    let request = |ids: Vec<u32>| GenerateRequest {
        engine: Some(engine.to_owned()),
        cache_salt: Some(salt.clone()),
        input: Some(generate_request::Input::TokenIds(TokenIds { ids })),
        stopping: Some(StoppingOptions {
            max_tokens: Some(1),
            ignore_eos: Some(true),
            ..StoppingOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let alone =
        GenerateRequest { bypass_prefix_cache: Some(true), ..request([&history[..], &turns[0]].concat()) };
    let whole = generate(executor, alone, |_| {}).await?.time_to_first_token;

    let create = CreateSessionRequest { engine: Some(engine.to_owned()), ..CreateSessionRequest::default() };
    let session = executor.create_session(create).await?.into_inner().id;
    let in_session = |session: &str, ids: Vec<u32>| GenerateRequest {
        session_id: Some(session.to_owned()),
        ..request(ids)
    };
    generate(executor, in_session(&session, history.clone()), |_| {}).await?;
    let fork = ForkSessionRequest { session_id: session.clone(), ..ForkSessionRequest::default() };
    let fork = executor.fork_session(fork).await?.into_inner().id;
    let second_turn = generate(executor, in_session(&session, turns[0].clone()), |_| {}).await?;
    let prefix_hit = generate(executor, request([&history[..], &turns[1]].concat()), |_| {}).await?;
    let forked = generate(executor, in_session(&fork, turns[2].clone()), |_| {}).await?;
    for session_id in [session, fork] {
        executor.delete_session(DeleteSessionRequest { session_id }).await?;
    }
    Ok(Round { whole, parts: [second_turn, prefix_hit, forked] })
}
