//! `run-vlm`: compile, load and answer a question about images, with the flags of the tool that this one replaces.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use roundhouse_proto::executor::{
    ContentPart, GenerateVlmRequest, GetLoadRequest, Image, LoadEngineRequest, ResponseOptions,
    StoppingOptions, content_part, image,
};
use serde::Serialize;

use crate::clients::ServiceArgs;
use crate::generate::{SamplingArgs, finish_reason_name, gather};
use crate::model_args::ModelArgs;
use crate::{compile, output};

/// `roundhouse run-vlm`.
#[derive(Debug, Args)]
pub(crate) struct RunVlmArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// An image: PNG, JPEG, WebP or GIF; give the flag for each, in their order.
    #[arg(long, value_name = "FILE", required = true)]
    image_path: Vec<PathBuf>,
    /// The question, which follows the images.
    #[arg(long, default_value = "Describe this image.")]
    prompt: String,
    /// New tokens.
    #[arg(long, default_value_t = 128)]
    num_tokens: u32,
    /// Go on through the end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The JSON object of a run.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    engine_key: String,
    backend: String,
    precision: String,
    cache: String,
    images: usize,
    /// Those of the images included.
    prompt_tokens: u32,
    output_token_ids: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    compile_s: f64,
    engine_reused: bool,
    load_s: f64,
    /// Reading, processing and encoding of the images included.
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    peak_memory_bytes: u64,
}

pub(crate) async fn run(args: RunVlmArgs) -> anyhow::Result<()> {
    let mut prompt = Vec::with_capacity(args.image_path.len() + 1);
    for path in &args.image_path {
        let bytes = tokio::fs::read(path).await.with_context(|| path.display().to_string())?;
        let image = Image { source: Some(image::Source::Data(bytes)) };
        prompt.push(ContentPart { part: Some(content_part::Part::Image(image)) });
    }
    prompt.push(ContentPart { part: Some(content_part::Part::Text(args.prompt.clone())) });

    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let started = Instant::now();
    let compiled = compile::compile(&mut compiler, args.model.request_to_run(&runtimes)).await?;
    let compile_s = started.elapsed().as_secs_f64();
    let engine_key = compiled.engine.context("the compiler's answer has no engine")?.key;
    let request = LoadEngineRequest { engine_key: engine_key.clone() };
    let loaded = executor.load_engine(request).await?.into_inner();

    let request = GenerateVlmRequest {
        engine: Some(engine_key.clone()),
        prompt,
        sampling: Some(args.sampling.options()),
        stopping: Some(StoppingOptions {
            max_tokens: Some(args.num_tokens),
            ignore_eos: Some(args.ignore_eos),
            ..StoppingOptions::default()
        }),
        response: Some(ResponseOptions::default()),
        ..GenerateVlmRequest::default()
    };
    let start = Instant::now();
    let stream = executor.generate_vlm(request).await?.into_inner();
    let generated = gather(stream, start, |text| {
        if !args.json {
            print!("{text}");
            // A closed standard output ends the program at the next print.
            let _ = std::io::stdout().flush();
        }
    })
    .await?;
    let load = executor.get_load(GetLoadRequest {}).await?.into_inner();
    let engine = loaded.engine.unwrap_or_default();
    let tpot = generated.time_per_output_token();
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    let report = Report {
        model: engine.model,
        engine_key,
        backend: engine.backend,
        precision: engine.precision,
        cache: engine.cache,
        images: args.image_path.len(),
        prompt_tokens: generated.usage.prompt_tokens,
        output_token_ids: generated.token_ids.clone(),
        text: generated.text.clone(),
        finish_reason: finish_reason_name(generated.finish_reason),
        compile_s,
        engine_reused: compiled.reused,
        load_s: loaded.load_ms as f64 / 1e3,
        ttft_ms: millis(generated.time_to_first_token),
        tpot_ms: tpot.map(millis),
        decode_tokens_per_s: tpot.map(|tpot| 1.0 / tpot.as_secs_f64()),
        peak_memory_bytes: load.peak_memory_bytes,
    };
    if args.json {
        return output::print_json(&report);
    }
    println!(
        "\n\n{} images, {} prompt and {} new tokens, {}: first after {:.0} ms",
        report.images,
        report.prompt_tokens,
        generated.usage.output_tokens,
        report.finish_reason,
        report.ttft_ms
    );
    println!("peak memory of the executor {}", output::bytes(report.peak_memory_bytes));
    Ok(())
}
