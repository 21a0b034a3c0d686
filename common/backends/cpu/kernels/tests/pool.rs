//! What the thread pool promises.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use roundhouse_cpu_kernels::ThreadPool;

/// How often each worker was called in one region.
fn calls(pool: &ThreadPool) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..pool.threads()).map(|_| AtomicUsize::new(0)).collect();
    pool.run(&|worker| {
        counts[worker].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_worker_runs_the_body_once_in_every_region() {
    for threads in [0, 1, 2, 5] {
        let pool = ThreadPool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for _ in 0..2000 {
            assert_eq!(calls(&pool), vec![1; threads.max(1)]);
        }
    }
}

#[test]
fn workers_run_at_the_same_time_on_threads_of_their_own() {
    let pool = ThreadPool::new(4);
    let barrier = Barrier::new(4);
    let caller = std::thread::current().id();
    pool.run(&|worker| {
        // Returns only if all four are in the body together.
        barrier.wait();
        assert_eq!(std::thread::current().id() == caller, worker == 0);
    });
}

#[test]
fn a_panic_of_any_worker_reaches_the_caller_and_the_pool_goes_on() {
    let pool = ThreadPool::new(3);
    for panicking in 0..3 {
        let others = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                assert!(worker != panicking, "worker {worker} panics");
                others.fetch_add(1, Ordering::Relaxed);
            });
        }));
        let payload = result.expect_err("the panic is passed on");
        let message = payload.downcast_ref::<String>().expect("the payload is the message");
        assert_eq!(*message, format!("worker {panicking} panics"));
        assert_eq!(others.into_inner(), 2, "the others finish");
        assert_eq!(calls(&pool), [1, 1, 1]);
    }
}

#[test]
fn threads_take_turns() {
    let pool = ThreadPool::new(3);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let user = scope.spawn(|| calls(&pool));
            assert_eq!(user.join().expect("no panic"), [1, 1, 1]);
        });
        assert_eq!(calls(&pool), [1, 1, 1]);
    }
}

#[test]
fn regions_within_regions_and_from_several_threads_run_without_deadlock() {
    let pool = ThreadPool::new(3);
    let count = AtomicUsize::new(0);
    pool.run(&|_| {
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.into_inner(), 9);

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(calls(&pool), [1, 1, 1]);
                }
            });
        }
    });
}

#[test]
fn the_caller_waits_for_a_worker_that_takes_long() {
    let pool = ThreadPool::new(2);
    let done = AtomicUsize::new(0);
    pool.run(&|worker| {
        if worker == 1 {
            // Far longer than anyone spins, so that the caller parks.
            let start = std::time::Instant::now();
            while start.elapsed().as_millis() < 20 {
                std::thread::yield_now();
            }
            done.store(1, Ordering::Relaxed);
        }
    });
    assert_eq!(done.into_inner(), 1);
}

/// The state letter of every worker thread of this process, as Linux shows it: `S` when it sleeps.
#[cfg(target_os = "linux")]
fn worker_states() -> Vec<char> {
    let tasks = std::fs::read_dir("/proc/self/task");
    tasks
        .into_iter()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter(|stat| stat.contains("(cpu-idle-"))
        .filter_map(|stat| stat.rsplit(") ").next()?.chars().next())
        .collect()
}

#[cfg(target_os = "linux")]
#[test]
fn idle_workers_sleep() {
    let pool = ThreadPool::named("cpu-idle", 4);
    assert_eq!(calls(&pool), [1; 4]);
    // They spin for microseconds and then park, which is awaited here; spinning for ever would never end this.
    let start = std::time::Instant::now();
    loop {
        let states = worker_states();
        if states == ['S'; 3] {
            break;
        }
        assert!(start.elapsed().as_secs() < 20, "workers still run: {states:?}");
        std::thread::yield_now();
    }
    assert_eq!(calls(&pool), [1; 4], "parked workers wake up");
}
