//! Images in requests: the answers are those of the engine's processor, components and language model run by hand, in one
//! turn and in several, however much of the conversation is found in caches.

use std::time::Duration;

use roundhouse_executor::prefix_cache::BLOCK_TOKENS;
use roundhouse_proto::executor::{
    CreateSessionRequest, FinishReason, ForkSessionRequest, GenerateRequest, GenerateVlmRequest,
    GetSessionRequest, Session, TruncateSessionRequest,
};
use roundhouse_tests::harness::{Generated, eventually};

use crate::pictures::{Part, Picture, Prompt, Served, ask, picture, served, served_behind_gates, user};

const STEPS: u32 = 24;

async fn session(served: &Served) -> Session {
    let request =
        CreateSessionRequest { engine: Some(served.engine.key.clone()), ..CreateSessionRequest::default() };
    served.executor.client.clone().create_session(request).await.unwrap().into_inner()
}

async fn get(served: &Served, session: &Session) -> Session {
    let request = GetSessionRequest { session_id: session.id.clone() };
    served.executor.client.clone().get_session(request).await.unwrap().into_inner()
}

fn in_session(session: &Session, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { session_id: Some(session.id.clone()), ..request }
}

/// The second turn of a conversation whose first one was answered.
async fn second_turn(served: &Served, first: &[Part], answer: &Generated, second: &[Part]) -> Prompt {
    let rendered = format!(
        "<s>{}[assistant] {}{}[assistant] ",
        served.turn(first),
        answer.text().trim(),
        served.turn(second)
    );
    let pictures = first.iter().chain(second).filter_map(|part| match part {
        Part::Image(picture) => Some(picture.clone()),
        Part::Text(_) => None,
    });
    served.prompt(&rendered, &pictures.collect::<Vec<Picture>>()).await
}

fn question(picture: &Picture) -> [Part; 2] {
    [Part::Image(picture.clone()), Part::Text("what is it?")]
}

#[tokio::test]
async fn images_between_texts_are_answered_as_by_hand() {
    for served in served(|_| {}).await {
        let pictures = [picture(1, 40, 24), picture(2, 24, 16), picture(3, 56, 9)];
        let one = vec![Part::Text("look: "), Part::Image(pictures[0].clone()), Part::Text("what is it?")];
        let three = vec![
            Part::Image(pictures[0].clone()),
            Part::Text("and"),
            Part::Image(pictures[1].clone()),
            Part::Image(pictures[2].clone()),
            Part::Text("which is it?"),
        ];
        for parts in [one, three] {
            let prompt = served.first_turn(&parts).await;
            let answer = served.engine.generate(ask(vec![user(&parts)], STEPS)).await.unwrap();
            assert_eq!(answer.echo.unwrap().token_ids, prompt.tokens, "{}", served.golden.name);
            assert_eq!(answer.token_ids, served.by_hand(&prompt, STEPS as usize), "{}", served.golden.name);
        }
        assert_eq!(served.image_cache().await, (4, 1));
        served.executor.becomes_idle().await.unwrap();
    }
}

#[tokio::test]
async fn a_turn_of_generate_vlm_is_a_message_of_generate() {
    for served in served(|_| {}).await {
        let parts = question(&picture(4, 24, 24));
        let request = ask(vec![user(&parts)], STEPS);
        let expected = served.engine.generate(request.clone()).await.unwrap();
        let request = GenerateVlmRequest {
            engine: Some(served.engine.key.clone()),
            prompt: user(&parts).parts,
            stopping: request.stopping,
            response: request.response,
            ..GenerateVlmRequest::default()
        };
        let mut client = served.executor.client.clone();
        let answer = Generated::read(&mut client.generate_vlm(request).await.unwrap().into_inner()).await;
        let answer = answer.unwrap();
        assert_eq!((answer.token_ids, answer.echo), (expected.token_ids, expected.echo));
    }
}

#[tokio::test]
async fn a_second_question_about_an_image_runs_no_vision_tower() {
    for served in served(|_| {}).await {
        let shown = picture(5, 32, 24);
        for (text, found) in [("what is it?", 0), ("and what more", 1), ("is that all", 2)] {
            let parts = [Part::Image(shown.clone()), Part::Text(text)];
            let answer = served.engine.generate(ask(vec![user(&parts)], STEPS)).await.unwrap();
            assert_eq!(served.image_cache().await, (found + 1, found));
            let prompt = served.first_turn(&parts).await;
            assert_eq!(answer.token_ids, served.by_hand(&prompt, STEPS as usize), "{text}");
        }
    }
}

#[tokio::test]
async fn features_that_do_not_fit_are_computed_again() {
    for served in served(|config| config.images.feature_cache_bytes = 0).await {
        let parts = question(&picture(6, 32, 24));
        let request = ask(vec![user(&parts)], STEPS);
        let first = served.engine.generate(request.clone()).await.unwrap();
        let second = served.engine.generate(request).await.unwrap();
        assert_eq!(first.token_ids, second.token_ids);
        assert_eq!(served.image_cache().await, (2, 0));
    }
}

#[tokio::test]
async fn images_of_one_size_share_nothing_from_where_they_begin() {
    for served in served(|_| {}).await {
        let long =
            "a text that is long enough for more than one block of the prefix cache, before the image comes";
        let shown = [picture(7, 40, 24), picture(8, 40, 24)];
        let turns = shown.map(|shown| [Part::Text(long), Part::Image(shown), Part::Text("what is it?")]);
        let mut expected = Vec::new();
        for parts in &turns {
            expected.push(served.by_hand(&served.first_turn(parts).await, STEPS as usize));
        }
        assert_ne!(expected[0], expected[1], "{}: the model does not look", served.golden.name);
        let prompt = served.first_turn(&turns[0]).await;
        let before = prompt.images[0].0 / BLOCK_TOKENS * BLOCK_TOKENS;
        let whole = prompt.tokens.len() / BLOCK_TOKENS * BLOCK_TOKENS;
        assert!(before > 0 && whole > before && whole < prompt.tokens.len());
        for (index, cached) in [(0, 0), (1, before), (0, whole), (1, whole)] {
            let answer = served.engine.generate(ask(vec![user(&turns[index])], STEPS)).await.unwrap();
            assert_eq!(answer.token_ids, expected[index], "{} {index}", served.golden.name);
            assert_eq!(answer.usage.cached_tokens as usize, cached, "{} {index}", served.golden.name);
        }
    }
}

#[tokio::test]
async fn a_conversation_goes_on_with_its_images_and_with_more() {
    for served in served(|_| {}).await {
        let session = session(&served).await;
        let first = question(&picture(9, 40, 24));
        let answer = served.engine.generate(in_session(&session, ask(vec![user(&first)], STEPS))).await;
        let answer = answer.unwrap();
        let second = [Part::Text("and "), Part::Image(picture(10, 24, 24)), Part::Text("this one?")];
        let prompt = second_turn(&served, &first, &answer, &second).await;
        let found = served.engine.generate(in_session(&session, ask(vec![user(&second)], STEPS))).await;
        let found = found.unwrap();
        assert_eq!(found.usage.prompt_tokens as usize, prompt.tokens.len());
        let shown = prompt.images[0].0 + 1;
        assert!(found.usage.cached_tokens as usize > shown, "the first image is computed again");
        assert_eq!(found.token_ids, served.by_hand(&prompt, STEPS as usize), "{}", served.golden.name);
        assert_eq!(served.image_cache().await, (2, 0));
    }
}

#[tokio::test]
async fn a_dropped_cache_is_computed_again_with_its_images() {
    for served in served(|config| config.session_cache_timeout = Duration::ZERO).await {
        let session = session(&served).await;
        let first = question(&picture(11, 40, 24));
        let bypassing = |parts: &[Part]| {
            let request = ask(vec![user(parts)], STEPS);
            in_session(&session, GenerateRequest { bypass_prefix_cache: Some(true), ..request })
        };
        let answer = served.engine.generate(bypassing(&first)).await.unwrap();
        eventually("the cache to be dropped", async || {
            Ok((get(&served, &session).await.kv_bytes == 0).then_some(()))
        })
        .await
        .unwrap();
        let second = [Part::Text("and what more?")];
        let prompt = second_turn(&served, &first, &answer, &second).await;
        let found = served.engine.generate(bypassing(&second)).await.unwrap();
        assert_eq!(found.usage.cached_tokens, 0);
        assert_eq!(found.token_ids, served.by_hand(&prompt, STEPS as usize), "{}", served.golden.name);
        assert_eq!(served.image_cache().await, (1, 0));
    }
}

#[tokio::test]
async fn a_cancelled_answer_leaves_the_image_in_its_session() {
    for (served, gate) in served_behind_gates().await {
        let session = session(&served).await;
        let first = question(&picture(12, 24, 24));
        let request = GenerateRequest {
            request_id: Some("stopped".to_owned()),
            ..in_session(&session, ask(vec![user(&first)], 150))
        };
        gate.close();
        let mut stream = served.engine.stream(request).await.unwrap();
        gate.pass_one().await;
        served.executor.cancel("stopped").await.unwrap();
        gate.open();
        let stopped = Generated::read(&mut stream).await.unwrap();
        assert_eq!(stopped.finish_reason, FinishReason::Cancelled);
        assert!(!stopped.token_ids.is_empty());

        let second = [Part::Text("go on")];
        let prompt = second_turn(&served, &first, &stopped, &second).await;
        let found = served.engine.generate(in_session(&session, ask(vec![user(&second)], STEPS))).await;
        assert_eq!(found.unwrap().token_ids, served.by_hand(&prompt, STEPS as usize));
        assert_eq!(served.image_cache().await, (1, 0));
    }
}

#[tokio::test]
async fn several_outputs_and_forks_have_the_image() {
    for served in served(|_| {}).await {
        let first = question(&picture(13, 40, 24));
        let prompt = served.first_turn(&first).await;
        let expected = served.by_hand(&prompt, STEPS as usize);
        let mut request = ask(vec![user(&first)], STEPS);
        request.sampling.get_or_insert_default().n = Some(3);
        let outputs = served.engine.generate_all(request).await.unwrap();
        assert_eq!(outputs.len(), 3);
        assert!(outputs.iter().all(|output| output.token_ids == expected), "{}", served.golden.name);

        let session = session(&served).await;
        let answer = served.engine.generate(in_session(&session, ask(vec![user(&first)], STEPS))).await;
        let fork = ForkSessionRequest { session_id: session.id.clone(), ..ForkSessionRequest::default() };
        let mut client = served.executor.client.clone();
        let fork = client.fork_session(fork).await.unwrap().into_inner();
        let second = [Part::Text("and?")];
        let prompt = second_turn(&served, &first, &answer.unwrap(), &second).await;
        let found = served.engine.generate(in_session(&fork, ask(vec![user(&second)], STEPS))).await;
        assert_eq!(found.unwrap().token_ids, served.by_hand(&prompt, STEPS as usize));
    }
}

#[tokio::test]
async fn a_session_is_cut_before_an_image_and_goes_on_with_another_one() {
    for served in served(|_| {}).await {
        let session = session(&served).await;
        let [old, new] = [14, 15].map(|seed| question(&picture(seed, 40, 24)));
        let request = in_session(&session, ask(vec![user(&old)], STEPS));
        served.engine.generate(request).await.unwrap();
        let prompt = served.first_turn(&new).await;
        let first = prompt.images[0].0;
        let cut = TruncateSessionRequest {
            session_id: session.id.clone(),
            num_tokens: u32::try_from(first + 2).unwrap(),
        };
        let cut = served.executor.client.clone().truncate_session(cut).await.unwrap().into_inner();
        assert_eq!(cut.num_tokens as usize, first);
        let found = served.engine.generate(in_session(&session, ask(vec![user(&new)], STEPS))).await.unwrap();
        assert_eq!(found.token_ids, served.by_hand(&prompt, STEPS as usize), "{}", served.golden.name);
    }
}
