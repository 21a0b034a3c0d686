//! What cannot be an image, or not here, is refused by a reason and the field before anything runs.

use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::executor::{
    ChatMessage, ContentPart, CreateSessionRequest, GenerateRequest, Image, content_part, image,
};
use roundhouse_rpc::reason as reasons;
use roundhouse_tests::golden_images::vision_language_models;
use roundhouse_tests::harness::{
    compile_options, compile_request, field, reason, shared, tiny_llama_request,
};
use tonic::Code;

use crate::pictures::{Part, ask, data, picture, served, user};

/// Where the image of [`about`] is.
const FIELD: &str = "messages.messages[0].parts[1].image";

fn about(image: Image) -> GenerateRequest {
    let parts = [content_part::Part::Text("what is it?".to_owned()), content_part::Part::Image(image)];
    let parts = parts.map(|part| ContentPart { part: Some(part) }).to_vec();
    ask(vec![ChatMessage { role: "user".to_owned(), parts, ..ChatMessage::default() }], 4)
}

fn at(url: &str) -> Image {
    Image { source: Some(image::Source::Url(url.to_owned())) }
}

/// The PNG with other sides in its header, which its checksum is made to fit.
fn with_sides(png: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut png = png.to_vec();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = png[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    png
}

#[tokio::test]
async fn images_that_are_none_are_refused_by_their_reason() {
    for served in served(|_| {}).await {
        let png = picture(1, 40, 24).png;
        for (image, expected) in [
            (data(&[]), reasons::IMAGE_EMPTY),
            (data(b"no image"), reasons::IMAGE_FORMAT_UNSUPPORTED),
            (data(&png[..png.len() / 2]), reasons::IMAGE_TRUNCATED),
            (data(&with_sides(&png, 100_000, 100_000)), reasons::IMAGE_TOO_LARGE),
            (data(&with_sides(&png, 0, 24)), reasons::IMAGE_CORRUPT),
            (at("file:///etc/passwd"), reasons::IMAGE_SOURCE_REFUSED),
            (at("/etc/passwd"), reasons::IMAGE_SOURCE_REFUSED),
            (at("https://127.0.0.1/a.png"), reasons::IMAGE_SOURCE_REFUSED),
            (at("data:text/html,a"), reasons::IMAGE_SOURCE_INVALID),
            (Image { source: None }, reasons::INVALID_FIELD),
        ] {
            let status = served.engine.generate(about(image)).await.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::InvalidArgument, expected),
                "{status}"
            );
            assert_eq!(field(&status), FIELD);
        }
        assert_eq!(served.image_cache().await, (0, 0), "something was looked for");
        served.engine.generate(about(data(&png))).await.unwrap();
        served.executor.becomes_idle().await.unwrap();
    }
}

#[tokio::test]
async fn an_image_in_a_data_url_is_the_same_image() {
    let served = served(|_| {}).await.remove(0);
    let png = picture(2, 24, 24).png;
    let encoded: String = png.iter().map(|byte| format!("%{byte:02x}")).collect();
    let expected = served.engine.generate(about(data(&png))).await.unwrap();
    let found = served.engine.generate(about(at(&format!("data:image/png,{encoded}")))).await.unwrap();
    assert_eq!(found.token_ids, expected.token_ids);
    assert_eq!(served.image_cache().await, (2, 1));
}

#[tokio::test]
async fn images_that_do_not_fit_the_sequence_are_refused_before_they_are_processed() {
    for served in served(|config| config.images.max_per_request = 2).await {
        let request = CreateSessionRequest {
            engine: Some(served.engine.key.clone()),
            max_seq_len: Some(24),
            ..CreateSessionRequest::default()
        };
        let mut client = served.executor.client.clone();
        let session = client.create_session(request).await.unwrap().into_inner();
        let large = picture(3, 64, 64);
        let parts = [Part::Image(large.clone()), Part::Image(large)];
        let request = GenerateRequest { session_id: Some(session.id), ..ask(vec![user(&parts)], 4) };
        let status = served.engine.generate(request).await.unwrap_err();
        let found = (status.code(), reason(&status));
        assert_eq!(found, (Code::InvalidArgument, reasons::PROMPT_TOO_LONG.to_owned()), "{status}");

        let small = [4, 5, 6].map(|seed| Part::Image(picture(seed, 8, 8)));
        let status = served.engine.generate(ask(vec![user(&small)], 4)).await.unwrap_err();
        let found = (status.code(), reason(&status));
        assert_eq!(found, (Code::InvalidArgument, reasons::INVALID_FIELD.to_owned()), "{status}");
        assert!(status.message().contains("at most 2"), "{status}");
    }
}

#[tokio::test]
async fn a_text_that_spells_the_placeholder_is_refused() {
    for served in served(|_| {}).await {
        let spelt = match served.golden.architecture {
            "Eagle2ChatModel" => "<IMG_CONTEXT>",
            _ => "<|image_pad|>",
        };
        for parts in [vec![Part::Text(spelt)], vec![Part::Image(picture(7, 8, 8)), Part::Text(spelt)]] {
            let status = served.engine.generate(ask(vec![user(&parts)], 4)).await.unwrap_err();
            let found = (status.code(), field(&status));
            assert_eq!(found, (Code::InvalidArgument, "messages".to_owned()), "{status}");
        }
        let both = ChatMessage { content: "text".to_owned(), ..user(&[Part::Text("text")]) };
        let status = served.engine.generate(ask(vec![both], 4)).await.unwrap_err();
        assert_eq!(field(&status), "messages.messages[0]", "{status}");
    }
}

#[tokio::test]
async fn who_takes_no_images_says_so() {
    let shared = shared().await.unwrap();
    let request = tiny_llama_request("tiny-llama-2", Precision::Fp32, CacheKind::InPlace);
    let engine = shared.executor.engine(&shared.compiler.key(request).await.unwrap()).await.unwrap();
    let status = engine.generate(about(data(&picture(8, 8, 8).png))).await.unwrap_err();
    let found = (status.code(), reason(&status));
    assert_eq!(found, (Code::FailedPrecondition, reasons::IMAGES_NOT_SUPPORTED.to_owned()), "{status}");

    // Sessions are stored without images.
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().display().to_string();
    let served = served(|config| config.session_store = Some(store.clone())).await.remove(0);
    let request =
        CreateSessionRequest { engine: Some(served.engine.key.clone()), ..CreateSessionRequest::default() };
    let session = served.executor.client.clone().create_session(request).await.unwrap().into_inner();
    let asked = about(data(&picture(8, 8, 8).png));
    let in_session = GenerateRequest { session_id: Some(session.id), ..asked.clone() };
    let status = served.engine.generate(in_session).await.unwrap_err();
    let found = (status.code(), reason(&status));
    assert_eq!(found, (Code::FailedPrecondition, reasons::IMAGES_NOT_SUPPORTED.to_owned()), "{status}");
    served.engine.generate(asked).await.unwrap();
}

#[tokio::test]
async fn a_processor_with_an_unknown_field_fails_the_load_by_name() {
    let shared = shared().await.unwrap();
    let golden = vision_language_models().unwrap().remove(0);
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&golden.checkpoint).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("preprocessor_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["do_something_else"] = true.into();
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let request = compile_request(folder.path(), compile_options(Precision::Fp32, CacheKind::InPlace));
    let key = shared.compiler.key(request).await.unwrap();
    let status = shared.executor.load(&key).await.unwrap_err();
    let found = (status.code(), reason(&status));
    assert_eq!(
        found,
        (Code::FailedPrecondition, reasons::IMAGE_PROCESSOR_UNSUPPORTED.to_owned()),
        "{status}"
    );
    assert!(status.message().contains("do_something_else"), "{status}");
}
