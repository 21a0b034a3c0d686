//! A sequence's cache together with its part of the memory budget.

use std::sync::Arc;

use roundhouse_backend::{BackendError, Cache, CacheGrowth, ImageTokens, Model};
use roundhouse_engine::MemoryPlan;

use super::{KvMemory, KvMemoryExhausted, KvReservation};

/// Tokens by which a reservation grows.
pub const KV_BLOCK_TOKENS: usize = 64;

/// What the keys and values of an engine's sequences cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCost {
    plan: MemoryPlan,
    growth: CacheGrowth,
}

impl KvCost {
    /// Of caches that grow so.
    #[must_use]
    pub fn new(plan: MemoryPlan, growth: CacheGrowth) -> Self {
        Self { plan, growth }
    }

    /// Bytes to reserve for so many tokens of a sequence of at most `capacity`. Where caches take memory as their tokens come:
    /// of whole blocks of [`KV_BLOCK_TOKENS`], but no more than the sequence can have.
    #[must_use]
    pub fn bytes(&self, tokens: usize, capacity: usize) -> u64 {
        let blocks = tokens.div_ceil(KV_BLOCK_TOKENS).saturating_mul(KV_BLOCK_TOKENS);
        let positions = match self.growth {
            _ if tokens == 0 => 0,
            CacheGrowth::ByToken => blocks.min(capacity),
            growth => growth.positions(tokens),
        };
        self.plan.kv_bytes(positions as u64)
    }

    /// The most tokens, at most `limit`, whose bytes are at most `bytes`.
    #[must_use]
    pub fn tokens_in(&self, bytes: u64, limit: usize) -> usize {
        let (mut fits, mut too_many) = (0, limit.saturating_add(1));
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if self.bytes(middle, middle) <= bytes { fits = middle } else { too_many = middle }
        }
        fits
    }
}

/// A sequence's cache, which is there from its first step until it is dropped; it comes back, empty, with the next one.
/// What it has reserved of the memory grows with its tokens, since it touches its memory only as far as it has them.
pub struct KvCache {
    cost: Arc<KvCost>,
    capacity: usize,
    /// Dropped before the reservation: its bytes are free when the budget says so.
    cache: Option<Box<dyn Cache>>,
    /// The images of the sequence, in order: a cache that comes back has them again.
    images: Vec<ImageTokens>,
    reservation: KvReservation,
}

impl KvCache {
    /// For a sequence of at most `capacity` tokens. It holds nothing yet.
    ///
    /// # Errors
    /// [`KvMemoryExhausted`] when so many tokens would not fit the whole memory.
    pub fn new(
        cost: Arc<KvCost>,
        capacity: usize,
        memory: &Arc<KvMemory>,
    ) -> Result<Self, KvMemoryExhausted> {
        let wanted = cost.bytes(capacity, capacity);
        if wanted > memory.total() {
            return Err(KvMemoryExhausted { wanted, used: memory.used(), total: memory.total() });
        }
        Ok(Self { cost, capacity, cache: None, images: Vec::new(), reservation: memory.reserve() })
    }

    /// Tokens in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.len())
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that it has reserved.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Tokens whose memory it has reserved.
    #[must_use]
    pub fn reserved_tokens(&self) -> usize {
        self.cost.tokens_in(self.reserved(), self.capacity)
    }

    /// Reserves the memory of so many tokens.
    ///
    /// # Errors
    /// [`KvMemoryExhausted`]; then nothing has changed.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), KvMemoryExhausted> {
        self.reservation.grow(self.cost.bytes(tokens, self.capacity))
    }

    /// The cache, made if there is none. Its memory must have been reserved: [`KvCache::reserve`].
    ///
    /// # Errors
    /// As [`Model::new_cache`].
    pub fn open(&mut self, model: &dyn Model) -> Result<&mut dyn Cache, BackendError> {
        let cache = match self.cache.take() {
            Some(cache) => cache,
            None => {
                let mut cache = model.new_cache(self.capacity)?;
                self.images.iter().try_for_each(|image| cache.place_image(image.clone()))?;
                cache
            }
        };
        Ok(self.cache.insert(cache).as_mut())
    }

    /// The cache, where there is one.
    pub fn get(&mut self) -> Option<&mut dyn Cache> {
        match &mut self.cache {
            Some(cache) => Some(cache.as_mut()),
            None => None,
        }
    }

    /// The cache, where there is one, for a while: without it the sequence has no tokens in it. What is reserved stays.
    pub fn lend(&mut self) -> Option<Box<dyn Cache>> {
        self.cache.take()
    }

    /// Takes back what [`KvCache::lend`] gave.
    pub fn give_back(&mut self, cache: Box<dyn Cache>) {
        self.cache = Some(cache);
    }

    /// Forgets all tokens from `len` on, and more where it must: see [`Cache::truncate`]. What is reserved stays: the
    /// memory has been touched.
    pub fn truncate(&mut self, len: usize) {
        let Some(cache) = &mut self.cache else { return };
        let wanted = cache.len().min(len);
        // One that cannot be cut there is empty, and has no images either.
        let forgotten = if cache.truncate(len) < wanted { 0 } else { len };
        self.place_from(forgotten);
    }

    /// Says which images the sequence has, in order. From the first one on that is another than before, the cache forgets
    /// its tokens.
    pub fn set_images(&mut self, images: Vec<ImageTokens>) {
        let is_same = |(old, new): &(&ImageTokens, &ImageTokens)| {
            old.first == new.first && Arc::ptr_eq(&old.features, &new.features)
        };
        let same = self.images.iter().zip(&images).take_while(is_same).count();
        let next = |images: &[ImageTokens]| images.get(same).map(|image| image.first);
        let cut = next(&self.images).into_iter().chain(next(&images)).min();
        self.images = images;
        if let Some(cut) = cut {
            self.truncate(cut);
        }
    }

    /// Places the images that begin at `first` or later. A cache that does not take them is dropped: the next one says why.
    fn place_from(&mut self, first: usize) {
        let Some(cache) = &mut self.cache else { return };
        let mut images = self.images.iter().filter(|image| image.first >= first);
        if let Err(error) = images.try_for_each(|image| cache.place_image(image.clone())) {
            tracing::debug!(%error, "a cache did not take its images");
            self.cache = None;
        }
    }

    /// Drops the cache and returns its memory; how many bytes that was.
    pub fn clear(&mut self) -> u64 {
        let bytes = self.reserved();
        self.cache = None;
        self.reservation.clear();
        bytes
    }

    /// Says whether a session holds it that no generation runs in.
    pub(super) fn set_idle(&mut self, is_idle: bool) {
        self.reservation.set_idle(is_idle);
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_engine::KvRing;

    use super::*;

    fn plan() -> MemoryPlan {
        MemoryPlan { kv_bytes_per_token: 10, ..MemoryPlan::default() }
    }

    #[test]
    fn a_cache_costs_whole_blocks_up_to_its_capacity() {
        let cost = KvCost::new(plan(), CacheGrowth::ByToken);
        for (tokens, held) in [(0, 0), (1, 64), (64, 64), (65, 128), (193, 200), (200, 200)] {
            assert_eq!(cost.bytes(tokens, 200), held * 10, "{tokens}");
        }
        let fixed = KvCost::new(plan(), CacheGrowth::Whole(1000));
        assert_eq!((fixed.bytes(0, 200), fixed.bytes(1, 200)), (0, 10_000));
        let sizes = KvCost::new(plan(), CacheGrowth::BySize { first: 128, most: 1000 });
        assert_eq!([0, 1, 128, 129, 200].map(|tokens| sizes.bytes(tokens, 200)), [0, 1280, 1280, 1920, 2560]);
    }

    #[test]
    fn layers_that_keep_only_their_latest_tokens_stop_costing() {
        let kv_rings = vec![KvRing { tokens: 128, bytes_per_token: 6 }];
        let cost = KvCost::new(MemoryPlan { kv_rings, ..plan() }, CacheGrowth::ByToken);
        assert_eq!(cost.bytes(128, 1000), 1280);
        assert_eq!(cost.bytes(192, 1000), 1280 + 64 * 4);
    }

    #[test]
    fn the_tokens_that_fit_are_the_most_whose_bytes_do() {
        let cost = KvCost::new(plan(), CacheGrowth::ByToken);
        assert_eq!(cost.tokens_in(2000, 1000), 200);
        assert_eq!(cost.tokens_in(2009, 1000), 200);
        assert_eq!((cost.tokens_in(u64::MAX, 1000), cost.tokens_in(9, 1000)), (1000, 0));
        let fixed = KvCost::new(plan(), CacheGrowth::Whole(1000));
        assert_eq!((fixed.tokens_in(9_999, 1000), fixed.tokens_in(10_000, 1000)), (0, 1000));
    }

    #[test]
    fn a_cache_that_could_never_fit_is_refused_at_once() {
        let memory = KvMemory::new(1999);
        let cost = Arc::new(KvCost::new(plan(), CacheGrowth::ByToken));
        let refused = KvCache::new(Arc::clone(&cost), 200, &memory).err();
        assert_eq!(refused, Some(KvMemoryExhausted { wanted: 2000, used: 0, total: 1999 }));
        let mut cache = KvCache::new(cost, 199, &memory).unwrap();
        assert_eq!((cache.reserved(), cache.len(), cache.capacity()), (0, 0, 199));
        cache.reserve(65).unwrap();
        assert_eq!((memory.used(), cache.reserved_tokens()), (1280, 128));
        assert_eq!((cache.clear(), memory.used()), (1280, 0));
    }
}
