//! `engines`: list, show and delete what is in the store.

use clap::{Args, Subcommand};
use roundhouse_proto::compiler::{
    DeleteEngineRequest, Engine, GetEngineRequest, ListEnginesRequest, Precision, TensorRtOptions,
};

use crate::clients::ServiceArgs;
use crate::{output, quantization};

/// `roundhouse engines`.
#[derive(Debug, Args)]
pub(crate) struct EnginesArgs {
    #[command(subcommand)]
    command: EnginesCommand,
    #[command(flatten)]
    services: ServiceArgs,
    /// Print JSON, one object an engine.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum EnginesCommand {
    /// List the engines.
    List {
        /// Only of this model.
        #[arg(long)]
        model: Option<String>,
    },
    /// Show one engine.
    Get {
        /// Its key.
        key: String,
    },
    /// Delete an engine, and the blobs that no other engine uses.
    Delete {
        /// Its key.
        key: String,
    },
}

pub(crate) async fn run(args: EnginesArgs) -> anyhow::Result<()> {
    let mut compiler = args.services.compiler().await?.client;
    match args.command {
        EnginesCommand::List { model } => {
            let mut page_token = None;
            loop {
                let request = ListEnginesRequest { model: model.clone(), page_size: None, page_token };
                let page = compiler.list_engines(request).await?.into_inner();
                for engine in &page.engines {
                    if args.json { print_json(engine)? } else { print_line(engine) }
                }
                if page.next_page_token.is_empty() {
                    return Ok(());
                }
                page_token = Some(page.next_page_token);
            }
        }
        EnginesCommand::Get { key } => {
            let engine = compiler.get_engine(GetEngineRequest { key }).await?.into_inner();
            if args.json {
                return print_json(&engine);
            }
            print_line(&engine);
            for blob in &engine.blobs {
                println!("  {:28} {:>12}  sha256:{}", blob.name, output::bytes(blob.size), blob.sha256);
            }
        }
        EnginesCommand::Delete { key } => {
            compiler.delete_engine(DeleteEngineRequest { key: key.clone() }).await?;
            if !args.json {
                println!("deleted {key}");
            }
        }
    }
    Ok(())
}

fn names(engine: &Engine) -> (&'static str, &'static str, &'static str) {
    let options = engine.options.clone().unwrap_or_default();
    let precision = match options.precision() {
        Precision::Unspecified => "?",
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
    };
    (
        precision,
        options.cache().as_str_name().trim_start_matches("CACHE_KIND_"),
        options.backend().as_str_name().trim_start_matches("BACKEND_"),
    )
}

/// How its weights are kept.
fn quantization_of(engine: &Engine) -> String {
    quantization::name(engine.options.as_ref().and_then(|options| options.quantization.as_ref()))
}

fn print_line(engine: &Engine) {
    let (precision, cache, backend) = names(engine);
    let size: u64 = engine.blobs.iter().map(|blob| blob.size).sum();
    println!(
        "{}  {}  {} {} {} {}  {}  {}",
        engine.key,
        engine.model,
        backend.to_lowercase(),
        precision,
        quantization_of(engine),
        cache.to_lowercase(),
        engine.target,
        output::bytes(size)
    );
}

fn print_json(engine: &Engine) -> anyhow::Result<()> {
    let (precision, cache, backend) = names(engine);
    let options = engine.options.clone().unwrap_or_default();
    let blobs: Vec<_> = engine
        .blobs
        .iter()
        .map(|blob| serde_json::json!({ "name": blob.name, "sha256": blob.sha256, "size": blob.size }))
        .collect();
    output::print_json(&serde_json::json!({
        "key": engine.key,
        "model": engine.model,
        "revision": engine.revision,
        "architecture": engine.architecture,
        "backend": backend.to_lowercase(),
        "precision": precision,
        "quantization": quantization_of(engine),
        "cache": cache.to_lowercase(),
        "max_seq_len": options.max_seq_len,
        "max_batch_size": options.max_batch_size,
        "targets": options.targets,
        "tensorrt": options.tensorrt.as_ref().map(tensorrt_json),
        "target": engine.target,
        "compiler_version": engine.compiler_version,
        "created_unix_s": engine.create_time.as_ref().map(|time| time.seconds),
        "blobs": blobs,
    }))
}

fn tensorrt_json(options: &TensorRtOptions) -> serde_json::Value {
    let name = |name: &str, prefix: &str| match name.trim_start_matches(prefix) {
        "UNSPECIFIED" => "auto".to_owned(),
        name => name.to_lowercase(),
    };
    serde_json::json!({
        "fp32_accumulation": options.fp32_accumulation,
        "attention": name(options.attention().as_str_name(), "ATTENTION_FORM_"),
        "weights": name(options.weights().as_str_name(), "WEIGHT_PLACEMENT_"),
        "weight_streaming": options.weight_streaming,
        "profiles": name(options.profiles().as_str_name(), "PROFILES_"),
    })
}
