//! `compile`: a model into an engine, with progress.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message as _;
use roundhouse_engine::{BackendKind, CacheKind, Precision};
use roundhouse_proto::compiler::{
    self, CompileEngineRequest, CompileEngineResponse, CompileOptions, PassReport, Stage, StageProgress,
    WatchCompileRequest, compile_event,
};
use roundhouse_proto::google::longrunning::operation;

use crate::clients::{Compiler, ServiceArgs};
use crate::output;

/// What to compile and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A hub ID, a folder or GGUF file, or an object-store URL.
    #[arg(long)]
    pub(crate) model: String,
    /// A branch, tag or commit of a hub ID.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// fp32, fp16 or bf16.
    #[arg(long, alias = "model-precision", default_value = "fp16", ignore_case = true)]
    pub(crate) precision: Precision,
    /// none, static_v1, static_v2 or in_place.
    #[arg(long, default_value = "in_place")]
    pub(crate) cache: CacheKind,
    /// tensorrt, cuda or cpu; the best that can be by default.
    #[arg(long)]
    pub(crate) backend: Option<BackendKind>,
    /// Prompt and new tokens of one sequence together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_seq_len: Option<u32>,
    /// Sequences in one step.
    #[arg(long, value_name = "SEQUENCES")]
    pub(crate) max_batch_size: Option<u32>,
}

impl ModelArgs {
    /// The request.
    pub(crate) fn request(&self) -> CompileEngineRequest {
        let precision = match self.precision {
            Precision::Fp32 => compiler::Precision::Fp32,
            Precision::Fp16 => compiler::Precision::Fp16,
            Precision::Bf16 => compiler::Precision::Bf16,
        };
        let cache = match self.cache {
            CacheKind::None => compiler::CacheKind::None,
            CacheKind::StaticV1 => compiler::CacheKind::StaticV1,
            CacheKind::StaticV2 => compiler::CacheKind::StaticV2,
            CacheKind::InPlace => compiler::CacheKind::InPlace,
        };
        let backend = self.backend.map(|backend| match backend {
            BackendKind::TensorRt => compiler::Backend::Tensorrt,
            BackendKind::Cuda => compiler::Backend::Cuda,
            BackendKind::Cpu => compiler::Backend::Cpu,
        });
        CompileEngineRequest {
            model: self.model.clone(),
            revision: self.revision.clone(),
            options: Some(CompileOptions {
                precision: Some(precision.into()),
                cache: Some(cache.into()),
                backend: backend.map(Into::into),
                max_seq_len: self.max_seq_len,
                max_batch_size: self.max_batch_size,
                all_logits: None,
            }),
            validate_only: None,
            force: None,
        }
    }
}

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
    let plan = response.memory_plan.unwrap_or_default();
    if args.json {
        return output::print_json(&serde_json::json!({
            "engine_key": engine.key,
            "model": engine.model,
            "architecture": engine.architecture,
            "target": engine.target,
            "reused": response.reused,
            "compile_s": response.compile_ms as f64 / 1e3,
            "weight_bytes": plan.weight_bytes,
            "kv_bytes_per_token": plan.kv_bytes_per_token,
            "workspace_bytes": plan.workspace_bytes,
            "peak_memory_bytes": response.peak_memory_bytes,
            "passes": passes(&response.passes),
        }));
    }
    for pass in &response.passes {
        let counts: Vec<String> = pass.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("pass       {}: {}", pass.pass, counts.join(", "));
    }
    println!("engine     {}", engine.key);
    println!("model      {} ({})", engine.model, engine.architecture);
    println!("target     {}", engine.target);
    let how = match (args.dry_run, response.reused) {
        (true, _) => "not built: dry run".to_owned(),
        (false, true) => "reused: the store had it".to_owned(),
        (false, false) => format!("built in {:.2} s", response.compile_ms as f64 / 1e3),
    };
    println!("result     {how}");
    println!(
        "memory     weights {}, KV cache {} a token, workspace {}",
        output::bytes(plan.weight_bytes),
        output::bytes(plan.kv_bytes_per_token),
        output::bytes(plan.workspace_bytes),
    );
    Ok(())
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
