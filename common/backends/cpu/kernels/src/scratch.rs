//! Working memory that kernels keep from call to call.

use crate::shared::SharedMut;

/// A cache line of numbers, so that buffers start at one.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; Line::LEN]);

impl Line {
    const LEN: usize = 16;
}

/// Numbers that start at a cache line.
#[derive(Debug, Default)]
struct Buffer(Vec<Line>);

impl Buffer {
    /// At least `len` numbers, of any value.
    fn get(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(Line::LEN);
        if self.0.len() < lines {
            // The old contents are not needed: a fresh allocation copies nothing.
            self.0 = Vec::new();
            self.0 = vec![Line([0.0; Line::LEN]); lines];
        }
        let (start, count) = (self.0.as_mut_ptr().cast::<f32>(), self.0.len() * Line::LEN);
        // SAFETY: the vector's lines are consecutive arrays of LEN numbers, without padding, borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(start, count) }
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Line>()
    }
}

/// Working memory of the kernels that need some: it grows to what the largest call needed and is used again by the
/// next. One belongs to one thread of calls at a time.
#[derive(Debug, Default)]
pub struct Scratch {
    common: Buffer,
    workers: Buffer,
}

impl Scratch {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self { common: Buffer(Vec::new()), workers: Buffer(Vec::new()) }
    }

    /// How much memory it holds, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.common.bytes() + self.workers.bytes()
    }

    /// `common` numbers that all workers share, and `each` numbers for every one of `workers`. They start at a cache
    /// line and hold anything.
    pub(crate) fn split(
        &mut self,
        common: usize,
        workers: usize,
        each: usize,
    ) -> (&mut [f32], WorkerScratch<'_>) {
        let stride = each.next_multiple_of(2 * Line::LEN);
        let all = SharedMut::new(self.workers.get(workers * stride));
        (&mut self.common.get(common)[..common], WorkerScratch { all, stride, each })
    }
}

/// The workers' parts of a [`Scratch`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerScratch<'a> {
    all: SharedMut<'a, f32>,
    stride: usize,
    each: usize,
}

impl<'a> WorkerScratch<'a> {
    /// The part of one worker.
    ///
    /// # Safety
    /// While the result is in use, no other part of this worker is.
    pub(crate) unsafe fn of(&self, worker: usize) -> &'a mut [f32] {
        // SAFETY: parts of different workers are disjoint, and the caller promises that this worker's is used once.
        unsafe { self.all.slice(worker * self.stride..worker * self.stride + self.each) }
    }
}
