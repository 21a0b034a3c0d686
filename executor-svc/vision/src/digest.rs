//! What an image is, in 32 bytes: for caches of what a vision tower made of it.

use sha2::{Digest, Sha256};

use crate::RgbImage;

/// SHA-256 of an image's pixels and of how they are processed: equal digests mean equal `pixel_values`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageDigest([u8; 32]);

impl ImageDigest {
    /// The digest of an image under a processor of this fingerprint.
    pub(crate) fn of(fingerprint: &[u8; 32], image: &RgbImage) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"roundhouse image 1");
        hash.update(fingerprint);
        hash.update(image.width().to_le_bytes());
        hash.update(image.height().to_le_bytes());
        hash.update(image.pixels());
        Self(hash.finalize().into())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Lower-case hexadecimal.
impl std::fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageDigest({self})")
    }
}
