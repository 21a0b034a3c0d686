//! Getting an image's bytes from where a request says that it is, as far as the configuration allows.

mod address;
mod object;
mod policy;
mod web;

use bytes::Bytes;

use crate::limits::ImageLimits;
use crate::source::data_url;
use crate::{ImageSource, VisionError};
pub use policy::{FetchPolicy, HttpPolicy, ObjectStorePolicy};

/// Gets images. One for a process: it keeps connections.
#[derive(Debug)]
pub struct Fetcher {
    limits: ImageLimits,
    policy: FetchPolicy,
    web: Option<web::WebClient>,
    stores: Vec<object::AllowedPlace>,
}

impl Fetcher {
    /// # Errors
    /// [`VisionError::InvalidPolicy`] if an allowed place cannot be understood.
    pub fn new(policy: FetchPolicy, limits: ImageLimits) -> Result<Self, VisionError> {
        let web = policy.http.clone().map(web::WebClient::new).transpose()?;
        let stores = policy.object_stores.open()?;
        Ok(Self { limits, policy, web, stores })
    }

    /// The bytes of an image, of at most [`ImageLimits::max_encoded_bytes`].
    ///
    /// # Errors
    /// [`VisionError::RefusedSource`] for what the policy does not allow, [`VisionError::InvalidSource`],
    /// [`VisionError::TooLarge`], [`VisionError::NotFound`], [`VisionError::SourceFailed`] or [`VisionError::FetchTimeout`].
    pub async fn fetch(&self, source: &ImageSource) -> Result<Bytes, VisionError> {
        let fetched = async {
            match source {
                ImageSource::Bytes(bytes) => Ok(bytes.clone()),
                ImageSource::Data(url) => data_url(url, self.limits.max_encoded_bytes),
                ImageSource::Object(url) => object::fetch(&self.stores, url, &self.limits).await,
                ImageSource::Web(url) => match &self.web {
                    Some(web) => web.fetch(url, &self.limits).await,
                    None => Err(crate::source::refused(
                        "this service reads no images from the web: send the image's bytes".to_owned(),
                    )),
                },
            }
        };
        let limit = self.policy.timeout;
        let bytes =
            tokio::time::timeout(limit, fetched).await.map_err(|_| VisionError::FetchTimeout { limit })??;
        self.limits.check_encoded(bytes.len())?;
        Ok(bytes)
    }
}

/// Collects what arrives, up to a limit.
struct Collected {
    bytes: Vec<u8>,
    limit: usize,
}

impl Collected {
    /// For a body that says it has `expected` bytes, where it says so.
    fn new(expected: Option<u64>, limit: usize) -> Result<Self, VisionError> {
        match expected {
            Some(found) if found > limit as u64 => Err(too_large(found, limit)),
            _ => Ok(Self { bytes: Vec::with_capacity(expected.unwrap_or(0) as usize), limit }),
        }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), VisionError> {
        let found = self.bytes.len() + piece.len();
        if found > self.limit {
            return Err(too_large(found as u64, self.limit));
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

fn too_large(found: u64, limit: usize) -> VisionError {
    VisionError::TooLarge { what: "encoded bytes", found, limit: limit as u64 }
}
