//! Features of images by digest, within a budget of bytes.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use roundhouse_engine::EngineKey;
use roundhouse_vision::ImageDigest;

use super::EncodedImage;

/// An image of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FeatureKey {
    /// The engine, whose vision tower it went through.
    pub engine: EngineKey,
    /// The image.
    pub digest: ImageDigest,
}

/// How full the cache is and what it was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeatureCacheUsage {
    /// Images that were looked for.
    pub queries: u64,
    /// Of those, found.
    pub hits: u64,
    /// Bytes of features.
    pub bytes: u64,
    /// Bytes there are.
    pub bytes_total: u64,
}

/// Features of images; the least recently used ones go first.
#[derive(Debug)]
pub struct FeatureCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    usage: FeatureCacheUsage,
    images: HashMap<FeatureKey, Kept>,
    /// By when they were used last.
    order: BTreeMap<u64, FeatureKey>,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    image: EncodedImage,
    used: u64,
}

impl FeatureCache {
    /// Of at most so many bytes; with 0 nothing is kept.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let usage = FeatureCacheUsage { bytes_total: bytes, ..FeatureCacheUsage::default() };
        Self { inner: Mutex::new(Inner { usage, ..Inner::default() }) }
    }

    /// How full it is and what it was good for.
    #[must_use]
    pub fn usage(&self) -> FeatureCacheUsage {
        self.inner.lock().usage
    }

    /// An image that is kept.
    #[must_use]
    pub fn get(&self, key: &FeatureKey) -> Option<EncodedImage> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.usage.queries += 1;
        let kept = inner.images.get_mut(key)?;
        inner.usage.hits += 1;
        inner.clock += 1;
        inner.order.remove(&kept.used);
        kept.used = inner.clock;
        inner.order.insert(inner.clock, key.clone());
        Some(kept.image.clone())
    }

    /// Keeps an image, and others no longer that would not fit beside it. One that does not fit alone is not kept.
    pub fn insert(&self, key: FeatureKey, image: EncodedImage) {
        let mut inner = self.inner.lock();
        let bytes = image.bytes();
        inner.remove(&key);
        if bytes > inner.usage.bytes_total {
            return;
        }
        while inner.usage.bytes + bytes > inner.usage.bytes_total {
            let Some(oldest) = inner.order.first_key_value().map(|(_, key)| key.clone()) else { return };
            inner.remove(&oldest);
        }
        inner.clock += 1;
        let used = inner.clock;
        inner.usage.bytes += bytes;
        inner.order.insert(used, key.clone());
        inner.images.insert(key, Kept { image, used });
    }
}

impl Inner {
    fn remove(&mut self, key: &FeatureKey) {
        if let Some(kept) = self.images.remove(key) {
            self.order.remove(&kept.used);
            self.usage.bytes -= kept.image.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{digest, image};
    use super::*;

    fn key(engine: &str, side: u32) -> FeatureKey {
        FeatureKey { engine: EngineKey::parse(&engine.repeat(64)).unwrap(), digest: digest(side) }
    }

    #[test]
    fn the_least_recently_used_image_goes_first() {
        let bytes = image(1, 4).bytes();
        let cache = FeatureCache::new(2 * bytes);
        cache.insert(key("a", 1), image(1, 4));
        cache.insert(key("a", 2), image(2, 4));
        assert_eq!(cache.get(&key("a", 1)).unwrap().digest, digest(1));
        cache.insert(key("a", 3), image(3, 4));
        assert!(cache.get(&key("a", 2)).is_none() && cache.get(&key("b", 1)).is_none());
        assert!(cache.get(&key("a", 1)).is_some() && cache.get(&key("a", 3)).is_some());
        let usage = cache.usage();
        assert_eq!((usage.queries, usage.hits, usage.bytes), (5, 3, 2 * bytes));
    }

    #[test]
    fn an_image_that_does_not_fit_alone_is_not_kept_and_drives_none_out() {
        let cache = FeatureCache::new(image(1, 4).bytes());
        cache.insert(key("a", 1), image(1, 4));
        cache.insert(key("a", 2), image(2, 5));
        assert!(cache.get(&key("a", 1)).is_some() && cache.get(&key("a", 2)).is_none());
        cache.insert(key("a", 1), image(1, 4));
        assert_eq!(cache.usage().bytes, image(1, 4).bytes());
    }
}
