//! Images in object stores.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _};
use url::Url;

use super::{Collected, ObjectStorePolicy};
use crate::limits::ImageLimits;
use crate::source::refused;
use crate::{ImageSource, VisionError};

/// A place in a store below which everything may be read.
pub(super) struct AllowedPlace {
    scheme: String,
    host: String,
    prefix: Path,
    client: Arc<dyn ObjectStore>,
}

impl std::fmt::Debug for AllowedPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.host, self.prefix)
    }
}

impl ObjectStorePolicy {
    pub(super) fn open(&self) -> Result<Vec<AllowedPlace>, VisionError> {
        self.prefixes
            .iter()
            .map(|prefix| {
                let wrong = |what: String| VisionError::InvalidPolicy { what: format!("{prefix:?}: {what}") };
                let Ok(ImageSource::Object(url)) = ImageSource::from_url(prefix) else {
                    return Err(wrong(
                        "expected a URL of an object store, such as s3://bucket/folder".to_owned(),
                    ));
                };
                let options = self.options.iter().map(|(name, value)| (name.clone(), value.clone()));
                roundhouse_tls::choose_provider();
                let (client, prefix) =
                    object_store::parse_url_opts(&url, options).map_err(|error| wrong(error.to_string()))?;
                let (scheme, host) = place(&url);
                Ok(AllowedPlace { scheme, host, prefix, client: client.into() })
            })
            .collect()
    }
}

fn place(url: &Url) -> (String, String) {
    (url.scheme().to_owned(), url.host_str().unwrap_or_default().to_owned())
}

/// The bytes of an object.
pub(super) async fn fetch(
    places: &[AllowedPlace],
    url: &Url,
    limits: &ImageLimits,
) -> Result<Bytes, VisionError> {
    let (scheme, host) = place(url);
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
        return Err(refused("credentials or a port in the URL of an object".to_owned()));
    }
    // Decoded and without dot segments: what the store is asked for is what was compared.
    let path = Path::from_url_path(url.path())
        .map_err(|error| crate::source::invalid(format!("the object's path: {error}")))?;
    let place = places
        .iter()
        .find(|place| place.scheme == scheme && place.host == host && path.prefix_matches(&place.prefix))
        .ok_or_else(|| refused("this service reads no images from there".to_owned()))?;
    let answer = place.client.get(&path).await.map_err(meaning)?;
    let mut collected = Collected::new(Some(answer.meta.size), limits.max_encoded_bytes)?;
    let mut pieces = answer.into_stream();
    while let Some(piece) = pieces.next().await {
        collected.push(&piece.map_err(meaning)?)?;
    }
    Ok(collected.finish())
}

/// What a storage client's error means. Its text is left out: it may name endpoints and credentials' sources.
fn meaning(error: Error) -> VisionError {
    match error {
        Error::NotFound { .. } => VisionError::NotFound { what: "the store has no such object".to_owned() },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            VisionError::NotFound { what: "the store denies access to the object".to_owned() }
        }
        _ => VisionError::SourceFailed { what: "the object store does not answer as it should".to_owned() },
    }
}
