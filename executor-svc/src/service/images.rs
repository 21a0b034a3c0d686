//! The images of a call: from the parts of its messages to what its sequence gets.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use roundhouse_proto::executor::{
    ChatMessage, ChatMessages, GenerateRequest, GenerateVlmRequest, content_part, generate_request, image,
};
use roundhouse_rpc::{Failure, reason};
use roundhouse_vision::ImageSource;
use tonic::Code;

use super::{ExecutorService, failure};
use crate::engine::LoadedEngine;
use crate::images::EncodedImage;
use crate::session::Session;

/// An image of a call, and the field that it is in.
struct NamedImage {
    field: String,
    source: Option<image::Source>,
}

impl ExecutorService {
    /// The new images of a call, in order, whose sources are taken out of it. They are fetched side by side with other work,
    /// and computed one after the other off the runtime's threads. Who drops this stops it after the image that is being
    /// computed.
    pub(super) async fn take_images(
        &self,
        message: &mut GenerateRequest,
        engine: &Arc<LoadedEngine>,
        session: Option<&Arc<Session>>,
        deadline: Option<Instant>,
    ) -> Result<Vec<EncodedImage>, Failure> {
        let images = named_images(message);
        let Some(first) = images.first() else { return Ok(Vec::new()) };
        let unsupported =
            |why: String| Failure::new(Code::FailedPrecondition, reason::IMAGES_NOT_SUPPORTED, why);
        if let Err(why) = engine.images() {
            return Err(unsupported(why.to_string()).at_field(&first.field));
        }
        if session.is_some() && self.sessions.archive().is_some() {
            let why = "this executor stores its sessions, and stored sessions have no images: send them outside of one";
            return Err(unsupported(why.to_owned()).at_field(&first.field));
        }
        let most = self.images.config().max_per_request;
        if images.len() > most {
            let message = format!("{} images: expected at most {most}", images.len());
            return Err(Failure::invalid_field(&first.field, message));
        }
        if message.truncate_prompt_tokens.is_some() {
            let message = "truncate_prompt_tokens is set: a conversation with images is not cut";
            return Err(Failure::invalid_field("truncate_prompt_tokens", message));
        }
        let room = session.map_or(engine.max_seq_len(), |session| session.capacity());
        let encoding = self.encode_images(images, engine, room);
        match deadline {
            None => encoding.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline.into(), encoding).await.unwrap_or_else(|_elapsed| {
                    let message = "the deadline passed while the images were being read";
                    Err(Failure::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, message))
                })
            }
        }
    }

    async fn encode_images(
        &self,
        images: Vec<NamedImage>,
        engine: &Arc<LoadedEngine>,
        mut room: usize,
    ) -> Result<Vec<EncodedImage>, Failure> {
        let mut encoded = Vec::with_capacity(images.len());
        for NamedImage { field, source } in images {
            let image = self.encode_image(source, engine, room).await;
            let image = image.map_err(|failure| failure.at_field(field))?;
            room = room.saturating_sub(image.tokens());
            encoded.push(image);
        }
        Ok(encoded)
    }

    async fn encode_image(
        &self,
        source: Option<image::Source>,
        engine: &Arc<LoadedEngine>,
        room: usize,
    ) -> Result<EncodedImage, Failure> {
        let internal = |message: String| Failure::new(Code::Internal, reason::INTERNAL, message);
        let source = match source {
            Some(image::Source::Data(bytes)) => ImageSource::Bytes(Bytes::from(bytes)),
            Some(image::Source::Url(url)) => {
                ImageSource::from_url(&url).map_err(|error| failure::of_vision(&error))?
            }
            None => {
                return Err(Failure::new(
                    Code::InvalidArgument,
                    reason::INVALID_FIELD,
                    "the image has neither data nor a URL",
                ));
            }
        };
        let fetched = self.images.fetcher().fetch(&source).await;
        let bytes = fetched.map_err(|error| failure::of_vision(&error))?;
        let permit = Arc::clone(self.images.permits()).acquire_owned().await;
        let permit = permit.map_err(|error| internal(error.to_string()))?;
        let (images, engine) = (Arc::clone(&self.images), Arc::clone(engine));
        let encoding = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let input = engine.images().map_err(|why| internal(why.to_string()))?;
            let encoded = images.encode(&bytes, room, &engine.manifest().key, input, engine.model());
            encoded.map_err(|error| failure::of_image(&error))
        });
        encoding.await.map_err(|error| Failure::new(Code::Internal, reason::INTERNAL, error.to_string()))?
    }
}

/// The images of a call's messages, in order; they stay there without their sources.
fn named_images(message: &mut GenerateRequest) -> Vec<NamedImage> {
    let Some(generate_request::Input::Messages(messages)) = &mut message.input else { return Vec::new() };
    let mut images = Vec::new();
    for (index, message) in messages.messages.iter_mut().enumerate() {
        for (place, part) in message.parts.iter_mut().enumerate() {
            if let Some(content_part::Part::Image(image)) = &mut part.part {
                let field = format!("messages.messages[{index}].parts[{place}].image");
                images.push(NamedImage { field, source: image.source.take() });
            }
        }
    }
    images
}

/// A call with one user's turn as a call with messages.
pub(super) fn as_messages(request: GenerateVlmRequest) -> GenerateRequest {
    let GenerateVlmRequest { engine, session_id, request_id, prompt, sampling, stopping, response } = request;
    let message = ChatMessage { role: "user".to_owned(), parts: prompt, ..ChatMessage::default() };
    let messages = ChatMessages { messages: vec![message], add_generation_prompt: None };
    GenerateRequest {
        engine,
        session_id,
        request_id,
        input: Some(generate_request::Input::Messages(messages)),
        sampling,
        stopping,
        response,
        ..GenerateRequest::default()
    }
}
