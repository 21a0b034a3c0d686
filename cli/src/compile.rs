//! `compile`: a model into an engine, with progress.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message as _;
use roundhouse_proto::compiler::{
    CompileEngineRequest, CompileEngineResponse, PassReport, Stage, StageProgress, WatchCompileRequest,
    compile_event,
};
use roundhouse_proto::google::longrunning::operation;

use crate::clients::{Compiler, ServiceArgs};
use crate::model_args::ModelArgs;
use crate::quantization::{self, Losses};
use crate::{dump, kv_memory, output};

/// `roundhouse compile`.
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// Report the graph coverage and memory plan, and build nothing.
    #[arg(long)]
    dry_run: bool,
    /// Build even if the engine exists.
    #[arg(long)]
    force: bool,
    /// Write the engine's graphs to this folder, as text, DOT and JSON: the model's own before any pass
    /// (graph.source), and the one that the backend built (graph).
    #[arg(long, value_name = "DIR", conflicts_with = "dry_run")]
    dump_graph: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: CompileArgs) -> anyhow::Result<()> {
    let mut compiler = args.services.compiler().await?;
    let mut request = args.model.request();
    request.validate_only = Some(args.dry_run);
    request.force = Some(args.force);
    let response = compile(&mut compiler, request).await?;
    let engine = response.engine.context("the compiler's answer has no engine")?;
    let plan = kv_memory::planned(&response.memory_plan.clone().unwrap_or_default());
    let options = engine.options.clone().unwrap_or_default();
    let weights = quantization::name(options.quantization.as_ref());
    let losses = Losses::of(&response.passes);
    let size: u64 = engine.blobs.iter().map(|blob| blob.size).sum();
    if let Some(folder) = &args.dump_graph {
        dump::graphs(&mut compiler, &engine, folder).await?;
    }
    if args.json {
        return output::print_json(&serde_json::json!({
            "engine_key": engine.key,
            "model": engine.model,
            "architecture": engine.architecture,
            "target": engine.target,
            "quantization": weights,
            "quantization_losses": losses,
            "reused": response.reused,
            "compile_s": response.compile_ms as f64 / 1e3,
            "weight_bytes": plan.weight_bytes,
            "kv_bytes_per_token": plan.kv_bytes_per_token,
            "kv_rings": kv_memory::rings_json(&plan),
            "kv_bytes_per_sequence": plan.kv_bytes(options.max_seq_len().into()),
            "workspace_bytes": plan.workspace_bytes,
            "peak_memory_bytes": response.peak_memory_bytes,
            "engine_bytes": size,
            "passes": passes(&response.passes),
            "ops": response.ops,
        }));
    }
    for pass in &response.passes {
        println!("pass       {}: {}", pass.pass, counts(&quantization::other_counts(&pass.counts)));
    }
    println!("engine     {}", engine.key);
    println!("model      {} ({})", engine.model, engine.architecture);
    println!("target     {}", engine.target);
    println!("weights    {weights}");
    losses.iter().flat_map(Losses::lines).for_each(|line| println!("           {line}"));
    if !response.ops.is_empty() {
        println!("ops        {}", counts(&response.ops));
    }
    let how = match (args.dry_run, response.reused) {
        (true, _) => "not built: dry run".to_owned(),
        (false, true) => "reused: the store had it".to_owned(),
        (false, false) => format!("built in {:.2} s", response.compile_ms as f64 / 1e3),
    };
    println!("result     {how}");
    if size > 0 {
        println!("size       {}", output::bytes(size));
    }
    println!(
        "memory     weights {}, KV cache {}, workspace {}",
        output::bytes(plan.weight_bytes),
        kv_memory::describe(&plan, options.max_seq_len()),
        output::bytes(plan.workspace_bytes),
    );
    Ok(())
}

/// Counts by name: `add 4, mul 2`.
fn counts(counts: &HashMap<String, u64>) -> String {
    let sorted: BTreeMap<_, _> = counts.iter().collect();
    sorted.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn passes(reports: &[PassReport]) -> serde_json::Value {
    reports.iter().map(|report| serde_json::json!({ "pass": report.pass, "counts": report.counts })).collect()
}

/// Compiles, with a progress bar a stage on a terminal. Interrupted by Ctrl-C, it cancels the operation.
pub(crate) async fn compile(
    compiler: &mut Compiler,
    request: CompileEngineRequest,
) -> anyhow::Result<CompileEngineResponse> {
    let operation = compiler.client.compile_engine(request).await?.into_inner();
    let name = operation.name.clone();
    let watching = watch(compiler.clone(), name.clone());
    let operation = tokio::select! {
        operation = watching => operation?,
        _ = tokio::signal::ctrl_c() => {
            let name = roundhouse_proto::google::longrunning::CancelOperationRequest { name };
            compiler.operations.cancel_operation(name).await?;
            bail!("cancelled");
        }
    };
    match operation.result {
        Some(operation::Result::Response(any)) => {
            Ok(CompileEngineResponse::decode(any.value.as_slice()).context("the compiler's answer")?)
        }
        Some(operation::Result::Error(status)) => {
            let details = status.encode_to_vec().into();
            Err(tonic::Status::with_details(status.code.into(), status.message, details).into())
        }
        None => bail!("the operation {} ended without a result", operation.name),
    }
}

async fn watch(
    mut compiler: Compiler,
    operation: String,
) -> anyhow::Result<roundhouse_proto::google::longrunning::Operation> {
    let mut events = compiler.client.watch_compile(WatchCompileRequest { operation }).await?.into_inner();
    let mut bars = StageBars::default();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(compile_event::Event::Progress(progress)) => bars.show(progress),
            Some(compile_event::Event::Log(line)) => tracing::info!("{line}"),
            Some(compile_event::Event::Pass(pass)) => {
                tracing::debug!(pass = pass.pass, counts = ?pass.counts)
            }
            Some(compile_event::Event::Done(operation)) => {
                bars.end();
                return Ok(operation);
            }
            None => {}
        }
    }
    bail!("the compiler ended the stream before the operation")
}

/// One bar for the stage that runs; finished stages leave nothing behind.
#[derive(Default)]
struct StageBars {
    stage: Option<Stage>,
    bar: Option<ProgressBar>,
}

impl StageBars {
    fn show(&mut self, progress: StageProgress) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        if self.stage != Some(progress.stage()) {
            self.end();
            self.stage = Some(progress.stage());
            let bar = ProgressBar::no_length().with_style(style(progress.stage()));
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar = Some(bar.with_message(stage_name(progress.stage())));
        }
        if let Some(bar) = &self.bar {
            if let Some(total) = progress.total {
                bar.set_length(total);
            }
            bar.set_position(progress.done);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "working",
        Stage::Queued => "waiting",
        Stage::Download => "fetching the checkpoint",
        Stage::Lower => "lowering",
        Stage::Build => "building",
        Stage::Upload => "uploading",
    }
}

fn style(stage: Stage) -> ProgressStyle {
    let template = match stage {
        Stage::Download | Stage::Build | Stage::Upload => {
            "{msg:24} {bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        }
        Stage::Unspecified | Stage::Queued | Stage::Lower => "{msg:24} {spinner} {elapsed}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
