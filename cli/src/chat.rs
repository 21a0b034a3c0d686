//! `chat`: a conversation in the terminal, streaming.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use clap::Args;
use roundhouse_proto::executor::{
    CancelRequest, ChatMessage, ChatMessages, CreateSessionRequest, DeleteSessionRequest, FinishReason,
    GenerateRequest, GetLoadRequest, LoadEngineRequest, StoppingOptions, generate_request,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::clients::ServiceArgs;
use crate::compile;
use crate::failover::Turn;
use crate::generate::SamplingArgs;
use crate::model_args::ModelArgs;

/// `roundhouse chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A system message to begin with.
    #[arg(long)]
    system: Option<String>,
    /// New tokens of one answer.
    #[arg(long, default_value_t = 512)]
    num_tokens: u32,
}

pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<()> {
    let mut compiler = args.services.compiler().await?;
    let executors = args.services.executors().await?;
    let mut executor = executors.client();
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let request = args.model.request_to_run(&runtimes);
    let compiled = compile::compile(&mut compiler, request).await?;
    let engine_key = compiled.engine.context("the compiler's answer has no engine")?.key;
    executor.load_engine(LoadEngineRequest { engine_key: engine_key.clone() }).await?;
    let create = CreateSessionRequest { engine: Some(engine_key.clone()), ..CreateSessionRequest::default() };
    let session = executor.create_session(create).await?.into_inner();
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("Type a message; Ctrl-C stops an answer, Ctrl-D ends the conversation.");
    }

    let mut num_tokens = session.num_tokens;
    let mut system = args.system;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        if interactive {
            eprint!("> ");
        }
        let Some(line) = lines.next_line().await? else { break };
        if line.trim().is_empty() {
            continue;
        }
        let message =
            |role: &str, content| ChatMessage { role: role.to_owned(), content, ..ChatMessage::default() };
        let mut messages: Vec<_> =
            system.take().map(|content| message("system", content)).into_iter().collect();
        messages.push(message("user", line));
        let mut sampling = args.sampling.options();
        // Another executor that takes the turn over chooses the same tokens.
        sampling.seed.get_or_insert_with(rand::random);
        let request_id = format!("chat-{}-{}", std::process::id(), session.id);
        let request = GenerateRequest {
            engine: Some(engine_key.clone()),
            session_id: Some(session.id.clone()),
            request_id: Some(request_id.clone()),
            input: Some(generate_request::Input::Messages(ChatMessages {
                messages,
                add_generation_prompt: None,
            })),
            sampling: Some(sampling),
            stopping: Some(StoppingOptions {
                max_tokens: Some(args.num_tokens),
                ..StoppingOptions::default()
            }),
            response: None,
            ..GenerateRequest::default()
        };
        let turn = Turn { engine: &engine_key, session: &session.id, num_tokens };
        let answering = executors.turn(&turn, &request, |text| {
            print!("{text}");
            // A closed standard output ends the program at the next print.
            let _ = std::io::stdout().flush();
        });
        tokio::pin!(answering);
        let answer = tokio::select! {
            answer = &mut answering => answer?,
            _ = tokio::signal::ctrl_c() => {
                executors.client().cancel(CancelRequest { request_id, keep_session: Some(true) }).await?;
                answering.await?
            }
        };
        println!();
        num_tokens = answer.usage.prompt_tokens + answer.usage.output_tokens;
        if answer.finish_reason == FinishReason::CacheFull {
            eprintln!("The conversation has filled the engine's {} tokens.", session.max_seq_len);
            break;
        }
    }
    executors.client().delete_session(DeleteSessionRequest { session_id: session.id }).await?;
    Ok(())
}
