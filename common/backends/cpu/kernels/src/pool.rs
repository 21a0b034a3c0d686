//! The thread pool: one parallel region at a time, started and ended in about a microsecond while the workers are hot.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::Isa;
use crate::shared::Alone;

/// How long a worker waits for the next region, and the caller for the last worker, before it parks.
const SPIN: Duration = Duration::from_micros(50);

/// Set in `Shared::running` while the caller is parked.
const CALLER_PARKED: u32 = 1 << 31;

/// A body of a region, with its lifetime erased: `run` does not return while a worker uses it.
type Body = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts the regions; a change tells the workers that there is a new body.
    region: Alone<AtomicU32>,
    /// How many workers still run the body, and [`CALLER_PARKED`].
    running: Alone<AtomicU32>,
    body: UnsafeCell<Option<Body>>,
    caller: UnsafeCell<Option<Thread>>,
    workers: Vec<Alone<Worker>>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Worker {
    parked: AtomicBool,
    panic: UnsafeCell<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the cells are handed over by the atomics. `body` is written by the caller before it changes `region` and
// read by workers after they see the change; `caller` is written before CALLER_PARKED is set and read after it is
// seen; a worker's `panic` is written before it counts itself out of `running` and read once all have. The body is
// `Sync`, so that workers may call it.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it is bound to a thread.
unsafe impl Send for Shared {}

/// Threads that run the parallel regions of kernels. Between regions they wait actively for some 50 µs, then park;
/// an idle pool uses no CPU time.
pub struct ThreadPool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    busy: AtomicBool,
    isa: Isa,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads())
            .field("isa", &self.isa)
            .finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool of `threads` workers, the calling thread included, for kernels of the fastest instruction set. Fewer if
    /// the system refuses to make so many threads; at least one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// As [`new`](Self::new), for kernels of this instruction set.
    #[must_use]
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        Self::build("cpu-kernels", threads, isa)
    }

    /// As [`new`](Self::new), with threads of this name and a number, to tell pools apart in a process listing.
    #[must_use]
    pub fn named(name: &str, threads: usize) -> Self {
        Self::build(name, threads, Isa::detect())
    }

    fn build(name: &str, threads: usize, isa: Isa) -> Self {
        let extra = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            region: Alone::default(),
            running: Alone::default(),
            body: UnsafeCell::new(None),
            caller: UnsafeCell::new(None),
            workers: (0..extra).map(|_| Alone::default()).collect(),
            stop: AtomicBool::new(false),
        });
        let handles = (0..extra).map_while(|index| {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("{name}-{}", index + 1));
            builder.spawn(move || shared.work(index)).ok()
        });
        Self { handles: handles.collect(), shared, busy: AtomicBool::new(false), isa }
    }

    /// How many workers there are, the calling thread included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// The instruction set of the kernels that run on it.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `body` once for every worker `0..threads()`, as worker 0 on the calling thread, and returns when all
    /// calls have. Calls must not wait for one another: where the pool is already in use (a call from within a
    /// region, or from another thread meanwhile), they all run on the calling thread, one after another.
    ///
    /// # Panics
    /// If a call panics: with its payload, after the other calls have ended.
    pub fn run(&self, body: &(dyn Fn(usize) + Sync)) {
        if self.handles.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            (0..self.threads()).for_each(body);
            return;
        }
        let workers = u32::try_from(self.handles.len()).unwrap_or(CALLER_PARKED - 1);
        // SAFETY: only the lifetime changes. Workers use the body only until they count themselves out, and this
        // function returns, or unwinds, only after all of them have.
        let erased =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Body>(&raw const *body) };
        // SAFETY: no worker reads the cell: the last region has ended, and the next one has not begun.
        unsafe { *self.shared.body.get() = Some(erased) };
        self.shared.running.0.store(workers, Ordering::Relaxed);
        self.shared.region.0.fetch_add(1, Ordering::SeqCst);
        self.unpark();

        let own = catch_unwind(AssertUnwindSafe(|| body(0)));
        self.shared.wait_for_workers();
        let panics = self.shared.workers.iter().map(|worker| {
            // SAFETY: every worker has counted itself out, after which it leaves its cell alone.
            unsafe { (*worker.0.panic.get()).take() }
        });
        let panic = panics.fold(own.err(), |first, next| first.or(next));
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Wakes the workers that are parked. `region` or `stop` was changed with `SeqCst` before, and a worker looks at
    /// them again after it has said that it is parked, so none is missed.
    fn unpark(&self) {
        for (worker, handle) in self.shared.workers.iter().zip(&self.handles) {
            if worker.0.parked.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.region.0.fetch_add(1, Ordering::SeqCst);
        self.unpark();
        for handle in self.handles.drain(..) {
            // A worker catches the panics of bodies and has none of its own.
            drop(handle.join());
        }
    }
}

impl Shared {
    /// What a worker does, from start to stop.
    fn work(&self, index: usize) {
        let worker = &self.workers[index].0;
        let mut seen = 0;
        loop {
            seen = self.wait_for_region(worker, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the caller wrote the cell before it changed `region`, and leaves it alone until this worker has
            // counted itself out; until then the body is alive.
            let body = unsafe { (*self.body.get()).map(|body| &*body) };
            if let Some(body) = body
                && let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(index + 1)))
            {
                // SAFETY: the caller reads the cell only after this worker has counted itself out.
                unsafe { *worker.panic.get() = Some(payload) };
            }
            self.count_out();
        }
    }

    /// Waits until `region` is no longer `seen`, and returns what it is.
    fn wait_for_region(&self, worker: &Worker, seen: u32) -> u32 {
        let region = &self.region.0;
        if let Some(now) = spin(|| Some(region.load(Ordering::Acquire)).filter(|&now| now != seen)) {
            return now;
        }
        worker.parked.store(true, Ordering::SeqCst);
        let now = loop {
            let now = region.load(Ordering::SeqCst);
            if now != seen {
                break now;
            }
            thread::park();
        };
        worker.parked.store(false, Ordering::SeqCst);
        now
    }

    /// Says that a worker has ended the region, and wakes the caller if it is parked and this was the last.
    fn count_out(&self) {
        let mut running = self.running.0.load(Ordering::Acquire);
        loop {
            // Copied before counting out: afterwards the caller may be gone.
            // SAFETY: the caller wrote the cell before it set the flag, and leaves it until all workers are out.
            let caller =
                unsafe { if running & CALLER_PARKED == 0 { None } else { (*self.caller.get()).clone() } };
            match self.running.0.compare_exchange_weak(
                running,
                running - 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    if let Some(caller) = caller.filter(|_| running == CALLER_PARKED | 1) {
                        caller.unpark();
                    }
                    return;
                }
                Err(now) => running = now,
            }
        }
    }

    /// Waits until every worker has counted itself out.
    fn wait_for_workers(&self) {
        let running = &self.running.0;
        if spin(|| (running.load(Ordering::Acquire) == 0).then_some(())).is_some() {
            return;
        }
        // SAFETY: workers read the cell only after they see the flag, which is not set yet.
        unsafe { *self.caller.get() = Some(thread::current()) };
        running.fetch_or(CALLER_PARKED, Ordering::AcqRel);
        while running.load(Ordering::Acquire) != CALLER_PARKED {
            thread::park();
        }
    }
}

/// Asks `ready` over and over, for at most [`SPIN`].
fn spin<T>(ready: impl Fn() -> Option<T>) -> Option<T> {
    /// How many times it asks between looks at the clock.
    const BATCH: usize = 16;
    let mut start = None;
    loop {
        for _ in 0..BATCH {
            if let Some(value) = ready() {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return None;
        }
    }
}
