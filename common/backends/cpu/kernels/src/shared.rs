//! What the workers of one parallel region share: a queue of work, and memory that they write disjointly.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A value alone on its cache lines (two, because neighbours are fetched in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Alone<T>(pub(crate) T);

/// Items `0..total`, handed out in ranges that shrink towards the end, so that the workers finish together and
/// still take few turns.
#[derive(Debug)]
pub(crate) struct Queue {
    next: Alone<AtomicUsize>,
    total: usize,
    step: usize,
    /// Each turn takes this fraction of what is left.
    share: usize,
}

impl Queue {
    /// Ranges start at multiples of `step` and are at least that long, but for the last one.
    pub(crate) fn new(total: usize, step: usize, workers: usize) -> Self {
        Self { next: Alone(AtomicUsize::new(0)), total, step: step.max(1), share: 2 * workers.max(1) }
    }

    /// Ranges of one item, for items that are large.
    pub(crate) fn single(total: usize) -> Self {
        Self { next: Alone(AtomicUsize::new(0)), total, step: 1, share: total.max(1) }
    }

    /// The next range, until there is none.
    pub(crate) fn take(&self) -> Option<Range<usize>> {
        let mut start = self.next.0.load(Ordering::Relaxed);
        loop {
            if start >= self.total {
                return None;
            }
            let fair = (self.total - start) / self.share;
            let end = (start + (fair / self.step).max(1) * self.step).min(self.total);
            match self.next.0.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..end),
                Err(now) => start = now,
            }
        }
    }
}

/// A mutable slice that several workers write to, each its own part.
#[derive(Debug)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: it is a `&mut [T]` whose parts go to different threads, which `T: Send` allows.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above; sharing the wrapper only hands out parts under the promise of `slice`.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) const fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The elements of a range.
    ///
    /// # Safety
    /// While the result is in use, nothing else uses an element of the range.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a worker's part is within the slice");
        // SAFETY: the range is within the slice that this borrows mutably, and the caller promises that no other
        // reference to its elements is in use.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// One element.
    ///
    /// # Safety
    /// While the result is in use, nothing else uses the element.
    #[inline(always)]
    pub(crate) unsafe fn element(&self, index: usize) -> &'a mut T {
        assert!(index < self.len, "a worker's element is within the slice");
        // SAFETY: the element is within the slice that this borrows mutably, and the caller promises that no other
        // reference to it is in use.
        unsafe { &mut *self.start.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_hands_out_every_item_once_in_whole_steps() {
        for (total, step, workers) in [(0, 4, 2), (1, 4, 2), (1000, 4, 2), (1001, 7, 3), (49152, 16, 1)] {
            let queue = Queue::new(total, step, workers);
            let mut expected_start = 0;
            while let Some(range) = queue.take() {
                assert_eq!(range.start, expected_start);
                assert_eq!(range.start % step, 0);
                assert!(range.end > range.start);
                assert!(range.len() % step == 0 || range.end == total);
                expected_start = range.end;
            }
            assert_eq!(expected_start, total);
        }
    }
}
