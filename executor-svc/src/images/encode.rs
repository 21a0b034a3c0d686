//! From the bytes of an image to what stands for its tokens.

use std::sync::Arc;

use roundhouse_backend::{Model, POSITION_AXES};
use roundhouse_engine::EngineKey;
use roundhouse_image_tokens::EncodeError;
use roundhouse_vision::{Fetcher, ImageDigest, ImageLimits, VisionError, decode};
use tokio::sync::Semaphore;

use super::{FeatureCache, FeatureKey, ImageInput};
use crate::config::ImageConfig;

/// An image as a sequence has it, wherever in it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedImage {
    /// Of its pixels and their processing.
    pub digest: ImageDigest,
    /// What its tokens' embeddings are, `[tokens, hidden_size]`, row-major.
    pub features: Arc<[f32]>,
    /// Its tokens' places along time, height and width, from where it begins.
    pub places: Arc<[[u32; POSITION_AXES]]>,
    /// How many positions it takes.
    pub extent: u32,
}

impl EncodedImage {
    /// How many tokens stand for it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.places.len()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (size_of_val(&*self.features) + size_of_val(&*self.places)) as u64
    }
}

/// Why there is nothing to put into a sequence.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image.
    #[error(transparent)]
    Vision(#[from] VisionError),
    /// It is longer than the sequence.
    #[error("the image becomes {tokens} tokens, and {room} fit")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Those that the sequence may still have.
        room: usize,
    },
    /// The vision side.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The images of an executor's requests.
pub struct Images {
    config: ImageConfig,
    fetcher: Fetcher,
    cache: FeatureCache,
    permits: Arc<Semaphore>,
}

impl Images {
    /// # Errors
    /// [`VisionError::InvalidPolicy`].
    pub fn new(config: ImageConfig) -> Result<Self, VisionError> {
        Ok(Self {
            fetcher: Fetcher::new(config.fetch.clone(), config.limits)?,
            cache: FeatureCache::new(config.feature_cache_bytes),
            permits: Arc::new(Semaphore::new(config.max_concurrent.max(1))),
            config,
        })
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Gets their bytes.
    #[must_use]
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The features that are kept.
    #[must_use]
    pub fn cache(&self) -> &FeatureCache {
        &self.cache
    }

    /// One for each image that is decoded and encoded at a time.
    #[must_use]
    pub fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// Decodes an image, and encodes it for an engine unless its features are kept. It computes: call it off the asynchronous
    /// runtime. `room` is how many tokens it may have.
    ///
    /// # Errors
    /// [`ImageError`], before anything is processed where the image is too large or too long.
    pub fn encode(
        &self,
        bytes: &[u8],
        room: usize,
        engine: &EngineKey,
        input: &ImageInput,
        model: &dyn Model,
    ) -> Result<EncodedImage, ImageError> {
        let limits: &ImageLimits = &self.config.limits;
        let image = decode(bytes, limits)?;
        let processor = input.processor();
        let layout = processor.layout(image.width(), image.height())?;
        if layout.tokens > room {
            return Err(ImageError::TooLong { tokens: layout.tokens, room });
        }
        let key = FeatureKey { engine: engine.clone(), digest: processor.digest(&image) };
        if let Some(kept) = self.cache.get(&key) {
            return Ok(kept);
        }
        let (places, extent) = input.places(&layout)?;
        let features = input.features(model, &processor.process(&image)?)?;
        let encoded = EncodedImage { digest: key.digest, features, places: places.into(), extent };
        self.cache.insert(key, encoded.clone());
        Ok(encoded)
    }
}
