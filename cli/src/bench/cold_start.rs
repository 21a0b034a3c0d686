//! From the start of an executor's process to its first token, the engine being in the local cache.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, GenerateRequest, LoadEngineRequest, StoppingOptions, generate_request,
};
use serde::Serialize;

use crate::clients::ServiceArgs;
use crate::compile;
use crate::generate::generate;
use crate::model_args::ModelArgs;
use crate::run_llm::quantile;
use crate::{output, serve};

/// How long a process may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// `roundhouse bench cold-start`.
#[derive(Debug, Args)]
pub(super) struct ColdStartArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// The prompt.
    #[arg(long, default_value = "What is the capital of France?")]
    prompt: String,
    /// Processes that are started; one more comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    iterations: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Medians in milliseconds, each from the start of the process.
#[derive(Debug, Serialize)]
struct Report {
    iterations: u32,
    listening_ms: f64,
    loaded_ms: f64,
    first_token_ms: f64,
}

pub(super) async fn run(args: ColdStartArgs) -> anyhow::Result<()> {
    let mut compiler = args.services.compiler().await?;
    let engine = compile::compile(&mut compiler, args.model.request())
        .await?
        .engine
        .context("no engine in the answer")?;
    let (mut listening, mut loaded, mut first_token) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=args.iterations {
        let times = start(&args, &engine.key).await?;
        if turn > 0 {
            listening.push(times[0]);
            loaded.push(times[1]);
            first_token.push(times[2]);
        }
    }
    let median = |values: &mut [Duration]| quantile(values, 0.5).as_secs_f64() * 1e3;
    let report = Report {
        iterations: args.iterations,
        listening_ms: median(&mut listening),
        loaded_ms: median(&mut loaded),
        first_token_ms: median(&mut first_token),
    };
    if args.json {
        return output::print_json(&report);
    }
    println!("medians of {} cold starts of an executor's process", report.iterations);
    println!("listening    after {:7.1} ms", report.listening_ms);
    println!("engine ready after {:7.1} ms", report.loaded_ms);
    println!("first token  after {:7.1} ms", report.first_token_ms);
    Ok(())
}

/// An executor's process, killed when dropped.
struct Executor(Child);

impl Drop for Executor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn start(args: &ColdStartArgs, engine_key: &str) -> anyhow::Result<[Duration; 3]> {
    let folder = tempfile::tempdir()?;
    let address_file = folder.path().join("address");
    let (store, cache_dir) = serve::embedded_executor_places(&args.services);
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["executor", "--address", "127.0.0.1:0", "--store", &store, "--address-file"])
        .arg(&address_file);
    if let Some(library) = &args.services.library.tensorrt_library {
        command.arg("--tensorrt-library").arg(library);
    }
    command.arg("--cache-dir").arg(cache_dir).stderr(Stdio::null());
    let mut process = Executor(command.spawn()?);
    let address = loop {
        if let Ok(address) = std::fs::read_to_string(&address_file) {
            break address;
        }
        if let Some(status) = process.0.try_wait()? {
            bail!("the executor ended: {status}");
        }
        if started.elapsed() > PATIENCE {
            bail!("the executor did not listen after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let listening = started.elapsed();
    let mut executor = ExecutorClient::connect(format!("http://{address}")).await?;
    executor.load_engine(LoadEngineRequest { engine_key: engine_key.to_owned() }).await?;
    let loaded = started.elapsed();
    let message =
        ChatMessage { role: "user".to_owned(), content: args.prompt.clone(), ..ChatMessage::default() };
    let request = GenerateRequest {
        input: Some(generate_request::Input::Messages(ChatMessages {
            messages: vec![message],
            add_generation_prompt: None,
        })),
        stopping: Some(StoppingOptions { max_tokens: Some(1), ..StoppingOptions::default() }),
        ..GenerateRequest::default()
    };
    generate(&mut executor, request, |_| {}).await?;
    Ok([listening, loaded, started.elapsed()])
}
