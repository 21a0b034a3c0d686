//! An executor that is killed in the middle of a conversation: another one goes on with it.

use std::path::Path;

use roundhouse_proto::executor::executor_client::ExecutorClient;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, CreateSessionRequest, GenerateRequest, GenerateResponse, LoadEngineRequest,
    StoppingOptions, generate_request,
};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::{Service, checkpoint, json, roundhouse};

const MAX_TOKENS: u32 = 48;

fn executor(folder: &Path) -> Service {
    let (cache, sessions) = (folder.join("executor"), folder.join("sessions"));
    let places = [cache.to_str().unwrap(), sessions.to_str().unwrap()];
    Service::start("executor", folder, &["--cache-dir", places[0], "--session-store", places[1]])
}

async fn connect(service: &Service) -> ExecutorClient<Channel> {
    ExecutorClient::connect(service.url.clone()).await.unwrap()
}

async fn session(client: &mut ExecutorClient<Channel>, engine: &str) -> String {
    client.load_engine(LoadEngineRequest { engine_key: engine.to_owned() }).await.unwrap();
    let request = CreateSessionRequest { engine: Some(engine.to_owned()), ..CreateSessionRequest::default() };
    client.create_session(request).await.unwrap().into_inner().id
}

async fn say(
    client: &mut ExecutorClient<Channel>,
    session: &str,
    content: &str,
) -> Streaming<GenerateResponse> {
    let message =
        ChatMessage { role: "user".to_owned(), content: content.to_owned(), ..ChatMessage::default() };
    let messages = ChatMessages { messages: vec![message], add_generation_prompt: None };
    let request = GenerateRequest {
        session_id: Some(session.to_owned()),
        input: Some(generate_request::Input::Messages(messages)),
        stopping: Some(StoppingOptions { max_tokens: Some(MAX_TOKENS), ..StoppingOptions::default() }),
        ..GenerateRequest::default()
    };
    client.generate(request).await.unwrap().into_inner()
}

async fn tokens(mut stream: Streaming<GenerateResponse>) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        tokens.extend(message.token_ids);
    }
    tokens
}

#[tokio::test]
async fn another_executor_goes_on_with_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Service::compiler(folder.path());
    let arguments = ["compile", "--json", "--compiler", &compiler.url, "--precision", "fp32", "--model"];
    let compiled = json(&roundhouse(&[&arguments[..], &[checkpoint().to_str().unwrap()]].concat()));
    let engine = compiled["engine_key"].as_str().unwrap();
    let questions = ["Tell me about the sea.", "And what lives in it?", "Which of them is the largest?"];

    let first = executor(folder.path());
    let mut client = connect(&first).await;
    let interrupted = session(&mut client, engine).await;
    let before = tokens(say(&mut client, &interrupted, questions[0]).await).await;
    // In the middle of the second turn.
    let mut stream = say(&mut client, &interrupted, questions[1]).await;
    let mut lost = stream.message().await.unwrap().unwrap().token_ids;
    lost.extend(stream.message().await.unwrap().unwrap().token_ids);
    first.signal("-KILL");
    while stream.message().await.is_ok_and(|message| message.is_some()) {}
    drop(first);

    // The client tries the turn again, in an executor that has no engine yet.
    let second = executor(folder.path());
    let mut client = connect(&second).await;
    let mut after = Vec::new();
    for question in &questions[1..] {
        after.push(tokens(say(&mut client, &interrupted, question).await).await);
    }
    assert!(after[0].starts_with(&lost), "{after:?} does not begin with {lost:?}");

    let whole = session(&mut client, engine).await;
    let mut expected = Vec::new();
    for question in questions {
        expected.push(tokens(say(&mut client, &whole, question).await).await);
    }
    assert_eq!([vec![before], after].concat(), expected);
    assert!(expected.iter().all(|answer| answer.len() > 4), "{expected:?}");
}
