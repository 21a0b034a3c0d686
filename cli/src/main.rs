//! The `roundhouse` command line: everything the services do, and both of them in one process.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod clients;
mod compile;
mod doctor;
mod dump;
mod engines;
mod eval;
mod failover;
mod generate;
mod guided_args;
mod image_args;
mod kv_memory;
mod model_args;
mod output;
mod pytorch;
mod quantization;
mod run_llm;
mod run_vlm;
mod serve;
mod sessions;
mod tensorrt_library;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use roundhouse_telemetry::{LogFormat, Telemetry, TelemetryConfig};

/// Compiles Hugging Face models into engines and serves them over gRPC.
#[derive(Debug, Parser)]
#[command(name = "roundhouse", version)]
struct Cli {
    /// What to log, e.g. `info` or `warn,roundhouse_executor=debug`.
    #[arg(long, global = true, env = "ROUNDHOUSE_LOG")]
    log: Option<String>,
    /// Log JSON lines instead of text.
    #[arg(long, global = true)]
    log_json: bool,
    /// Send spans to this OTLP gRPC endpoint, e.g. http://localhost:4317.
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run both services in one process.
    Up(serve::UpArgs),
    /// Run the compiler service.
    Compiler(serve::CompilerArgs),
    /// Run the executor service.
    Executor(serve::ExecutorArgs),
    /// Compile a model into an engine.
    Compile(compile::CompileArgs),
    /// Compile a model, load it and generate from a prompt.
    RunLlm(run_llm::RunLlmArgs),
    /// Compile a vision-language model, load it and ask it about images.
    RunVlm(run_vlm::RunVlmArgs),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArgs),
    /// List, show and delete engines.
    Engines(engines::EnginesArgs),
    /// List, show and delete an executor's sessions.
    Sessions(sessions::SessionsArgs),
    /// Measure speed, side by side with a peer.
    Bench(bench::BenchArgs),
    /// Measure quality.
    Eval(eval::EvalArgs),
    /// Say what this machine can build and run, and what to install.
    Doctor(doctor::DoctorArgs),
}

impl Command {
    /// Services log what they do; commands say what the user asked for and log only what goes wrong.
    fn default_filter(&self) -> &'static str {
        match self {
            Self::Up(_) | Self::Compiler(_) | Self::Executor(_) => "info",
            _ => "warn",
        }
    }

    fn service(&self) -> &'static str {
        match self {
            Self::Compiler(_) => "roundhouse-compiler",
            Self::Executor(_) => "roundhouse-executor",
            _ => "roundhouse",
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::normalise(std::env::args_os()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(&TelemetryConfig {
        service: cli.command.service(),
        filter: cli.log.unwrap_or_else(|| cli.command.default_filter().to_owned()),
        format: if cli.log_json { LogFormat::Json } else { LogFormat::Text },
        otlp_endpoint: cli.otlp_endpoint,
    })?;
    let result = match cli.command {
        Command::Up(args) => serve::up(args).await,
        Command::Compiler(args) => serve::compiler(args).await,
        Command::Executor(args) => serve::executor(args).await,
        Command::Compile(args) => compile::run(args).await,
        Command::RunLlm(args) => run_llm::run(args).await,
        Command::RunVlm(args) => run_vlm::run(args).await,
        Command::Chat(args) => chat::run(args).await,
        Command::Engines(args) => engines::run(args).await,
        Command::Sessions(args) => sessions::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Eval(args) => eval::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
    };
    // The exporter waits for its last batch, which must not hold up the runtime's threads.
    tokio::task::spawn_blocking(move || drop(telemetry)).await?;
    result
}
