//! `eval json-schema`: whether outputs guided by JSON Schemas parse and validate.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args;
use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, FinishReason, GenerateRequest, GetLoadRequest, LoadEngineRequest,
    SamplingOptions, StoppingOptions, TokenizeRequest, generate_request, tokenize_request,
};
use roundhouse_rpc::reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::clients::ServiceArgs;
use crate::generate::{finish_reason_name, generate};
use crate::model_args::ModelArgs;
use crate::{compile, output};

/// The schemas and what they are asked about.
const TASKS: &str = include_str!("../../evals/json_schemas.json");

/// `roundhouse eval json-schema`.
#[derive(Debug, Args)]
pub(super) struct JsonSchemaArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// How many prompts.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// New tokens of an output; the schemas bound what they allow, and an output that is cut is a failure.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    max_tokens: u32,
    /// The temperature of every second prompt; the others are greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// The seed of the first prompt; each has its own.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Outputs at a time.
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
    subjects: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Task {
    name: String,
    instruction: String,
    schema: Value,
}

/// The JSON object of a run.
#[derive(Debug, Default, Serialize)]
struct Report {
    model: String,
    engine_key: String,
    precision: String,
    quantization: String,
    prompts: usize,
    /// Outputs that ended by themselves.
    finished: usize,
    /// Outputs that are JSON.
    parsed: usize,
    /// Outputs that their schema describes.
    valid: usize,
    output_tokens: usize,
    /// Of all outputs together.
    tokens_per_s: f64,
    /// What is not valid.
    failures: Vec<Outcome>,
}

/// One output.
#[derive(Debug, Serialize)]
struct Outcome {
    task: String,
    prompt: String,
    temperature: f32,
    seed: u64,
    finish_reason: &'static str,
    #[serde(skip)]
    is_finished: bool,
    #[serde(skip)]
    is_parsed: bool,
    #[serde(skip)]
    output_tokens: usize,
    text: String,
    /// Why it is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn run(args: JsonSchemaArgs) -> anyhow::Result<()> {
    let tasks: Tasks = serde_json::from_str(TASKS).context("the built-in tasks")?;
    ensure!(args.concurrency > 0, "--concurrency is at least 1");
    let mut compiler = args.services.compiler().await?;
    let mut executor = args.services.executor().await?;
    let runtimes = executor.get_load(GetLoadRequest {}).await?.into_inner().runtimes;
    let compiled = compile::compile(&mut compiler, args.model.request_to_run(&runtimes)).await?;
    let engine_key = compiled.engine.context("the compiler's answer has no engine")?.key;
    let load = LoadEngineRequest { engine_key: engine_key.clone() };
    let engine = executor.load_engine(load).await?.into_inner().engine.unwrap_or_default();

    let has_chat_template = has_chat_template(&mut executor, &engine_key).await?;
    let begun = Instant::now();
    let places = Arc::new(Semaphore::new(args.concurrency));
    let tasks = Arc::new(tasks);
    let mut running = JoinSet::new();
    for index in 0..args.prompts {
        let (executor, engine_key, tasks) = (executor.clone(), engine_key.clone(), Arc::clone(&tasks));
        let temperature = if index % 2 == 0 { 0.0 } else { args.temperature };
        let seed = args.seed.wrapping_add(index as u64);
        let (places, max_tokens) = (Arc::clone(&places), args.max_tokens);
        running.spawn(async move {
            let _place = places.acquire_owned().await?;
            // Every task meets greedy and sampled outputs, and subject after subject.
            let task = &tasks.tasks[index / 2 % tasks.tasks.len()];
            let subject = &tasks.subjects[index % tasks.subjects.len()];
            let prompt = task.instruction.replace("{subject}", subject);
            let sampling = SamplingOptions {
                temperature: Some(temperature),
                seed: Some(seed),
                ..SamplingOptions::default()
            };
            let request = GenerateRequest {
                engine: Some(engine_key),
                input: Some(input(&prompt, has_chat_template)),
                sampling: Some(sampling),
                stopping: Some(StoppingOptions {
                    max_tokens: Some(max_tokens),
                    ..StoppingOptions::default()
                }),
                guided: Some(generate_request::Guided::JsonSchema(task.schema.to_string())),
                ..GenerateRequest::default()
            };
            answer(executor, task, prompt, request).await
        });
    }
    let mut report = Report {
        model: engine.model,
        engine_key,
        precision: engine.precision,
        quantization: engine.quantization,
        prompts: args.prompts,
        ..Report::default()
    };
    while let Some(outcome) = running.join_next().await {
        let outcome = outcome??;
        report.finished += usize::from(outcome.is_finished);
        report.parsed += usize::from(outcome.is_parsed);
        report.valid += usize::from(outcome.error.is_none());
        report.output_tokens += outcome.output_tokens;
        if outcome.error.is_some() {
            report.failures.push(outcome);
        }
    }
    report.tokens_per_s = report.output_tokens as f64 / begun.elapsed().as_secs_f64();
    match args.json {
        true => output::print_json(&report)?,
        false => show(&report),
    }
    ensure!(
        report.failures.is_empty(),
        "{} of {} outputs are not valid",
        report.failures.len(),
        report.prompts
    );
    Ok(())
}

/// Whether the model's tokenizer renders conversations.
async fn has_chat_template(executor: &mut ExecutorClient<Channel>, engine: &str) -> anyhow::Result<bool> {
    let messages = tokenize_request::Input::Messages(messages("Hello"));
    let request = TokenizeRequest {
        engine: Some(engine.to_owned()),
        input: Some(messages),
        ..TokenizeRequest::default()
    };
    match executor.tokenize(request).await {
        Ok(_) => Ok(true),
        Err(status) => {
            let details = status.get_error_details();
            let reason = details.error_info().map(|info| info.reason.as_str());
            if reason == Some(reason::NO_CHAT_TEMPLATE) { Ok(false) } else { Err(status.into()) }
        }
    }
}

/// A question: a conversation, or a text that the answer follows where the model knows no conversations.
fn input(prompt: &str, has_chat_template: bool) -> generate_request::Input {
    if has_chat_template {
        generate_request::Input::Messages(messages(prompt))
    } else {
        generate_request::Input::Prompt(format!("{prompt}\n\n"))
    }
}

fn messages(prompt: &str) -> ChatMessages {
    let message =
        ChatMessage { role: "user".to_owned(), content: prompt.to_owned(), ..ChatMessage::default() };
    ChatMessages { messages: vec![message], add_generation_prompt: None }
}

/// Asks for one output and looks whether it is what its schema says.
async fn answer(
    mut executor: ExecutorClient<Channel>,
    task: &Task,
    prompt: String,
    request: GenerateRequest,
) -> anyhow::Result<Outcome> {
    let sampling = request.sampling.as_ref();
    let (temperature, seed) =
        (sampling.map_or(0.0, SamplingOptions::temperature), sampling.map_or(0, SamplingOptions::seed));
    let generated = generate(&mut executor, request, |_| {}).await?;
    let reason = generated.finish_reason;
    let is_finished = matches!(reason, FinishReason::StopToken | FinishReason::GrammarComplete);
    let validator = jsonschema::validator_for(&task.schema).map_err(|error| error.to_owned());
    let validator = validator.with_context(|| format!("the schema {}", task.name))?;
    let parsed = serde_json::from_str::<Value>(&generated.text);
    let error = match &parsed {
        Err(error) => Some(error.to_string()),
        Ok(value) => validator.validate(value).err().map(|error| error.to_string()),
    };
    let cut = (!is_finished).then(|| "it did not end by itself".to_owned());
    Ok(Outcome {
        task: task.name.clone(),
        prompt,
        temperature,
        seed,
        finish_reason: finish_reason_name(reason),
        is_finished,
        is_parsed: parsed.is_ok(),
        output_tokens: generated.token_ids.len(),
        text: generated.text,
        error: error.or(cut),
    })
}

fn show(report: &Report) {
    println!("model      {} ({}, weights {})", report.model, report.precision, report.quantization);
    println!(
        "outputs    {}: {} ended by themselves, {} are JSON, {} are valid",
        report.prompts, report.finished, report.parsed, report.valid
    );
    println!("tokens     {}, {:.1} a second", report.output_tokens, report.tokens_per_s);
    for failure in &report.failures {
        println!(
            "\n{} (temperature {}, seed {}, {}): {}\n{}\n{}",
            failure.task,
            failure.temperature,
            failure.seed,
            failure.finish_reason,
            failure.error.as_deref().unwrap_or_default(),
            failure.prompt,
            failure.text
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_tasks_have_subjects_and_valid_schemas() {
        let tasks: Tasks = serde_json::from_str(TASKS).unwrap();
        assert!(tasks.tasks.len() >= 6 && tasks.subjects.len() >= 34);
        for task in &tasks.tasks {
            assert!(jsonschema::validator_for(&task.schema).is_ok(), "{}", task.name);
            assert!(task.instruction.contains("{subject}"), "{}", task.name);
        }
    }
}
