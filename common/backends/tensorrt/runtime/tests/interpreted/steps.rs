//! What a model does with a device: which runs a step takes, when memory is taken and given back, and what failures
//! leave behind.

use std::sync::atomic::Ordering::SeqCst;

use roundhouse_backend::{BackendError, Cache};
use roundhouse_engine::{CacheKind, EngineOptions, Precision};

use crate::engine::{Loaded, load, options};

/// Runs and rows of a piece of work.
fn runs(loaded: &Loaded, work: impl FnOnce()) -> (usize, usize) {
    let state = &loaded.machine.0;
    let before = (state.enqueued.load(SeqCst), state.rows.load(SeqCst));
    work();
    (state.enqueued.load(SeqCst) - before.0, state.rows.load(SeqCst) - before.1)
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    // Rows of a batch are computed as they are alone, by the interpreter.
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} and {expected:?}");
}

#[test]
fn sequences_that_decode_take_one_run_with_idle_rows_between_them() {
    let loaded = load(&options(CacheKind::InPlace));
    let mut caches: Vec<_> = (0..4).map(|_| loaded.cache()).collect();
    let prompts: [&[u32]; 4] = [&[5, 6, 7], &[8, 9, 10, 11], &[12], &[13, 14]];
    for (cache, prompt) in caches.iter_mut().zip(prompts) {
        loaded.step(&mut [(cache, prompt)]).unwrap();
    }
    let [a, b, c, d] = &mut caches[..] else { panic!("four caches") };
    let mut logits = Vec::new();
    let one_run = runs(&loaded, || logits = loaded.step(&mut [(d, &[3]), (a, &[1])]).unwrap());
    assert_eq!(one_run, (1, 4), "two idle rows between the two");
    close(&logits[0], &loaded.alone(&[13, 14, 3]));
    close(&logits[1], &loaded.alone(&[5, 6, 7, 1]));
    // What was written into the idle rows is not seen by their next tokens.
    let logits = loaded.step(&mut [(b, &[1]), (c, &[2])]).unwrap();
    close(&logits[0], &loaded.alone(&[8, 9, 10, 11, 1]));
    close(&logits[1], &loaded.alone(&[12, 2]));
}

#[test]
fn an_idle_row_without_room_splits_the_run() {
    let loaded = load(&options(CacheKind::InPlace));
    let [mut a, mut b, mut c] = [(); 3].map(|()| loaded.cache());
    let full: Vec<u32> = (0..32).collect();
    for (cache, prompt) in [(&mut a, &full[..3]), (&mut b, &full[..]), (&mut c, &full[..4])] {
        loaded.step(&mut [(cache, prompt)]).unwrap();
    }
    let mut logits = Vec::new();
    let two_runs = runs(&loaded, || logits = loaded.step(&mut [(&mut a, &[1]), (&mut c, &[2])]).unwrap());
    assert_eq!(two_runs, (2, 2));
    close(&logits[1], &loaded.alone(&[0, 1, 2, 3, 2]));
}

#[test]
fn more_sequences_than_rows_open_a_further_slab_which_is_closed_when_nobody_uses_it() {
    let loaded = load(&options(CacheKind::InPlace));
    let used = || loaded.machine.0.used.load(SeqCst);
    let empty = used();
    let mut caches: Vec<_> = (0..4).map(|_| loaded.cache()).collect();
    let slab = used() - empty;
    let row = usize::try_from(caches[0].bytes()).unwrap();
    assert_eq!(slab, 4 * row);
    caches.extend((0..5).map(|_| loaded.cache()));
    assert_eq!(used(), empty + 3 * slab);
    for (index, cache) in caches.iter_mut().enumerate() {
        let prompt = [index as u32, 1, 2];
        let logits = loaded.step(&mut [(cache, &prompt)]).unwrap();
        close(&logits[0], &loaded.alone(&prompt));
    }
    let decode = runs(&loaded, || {
        let mut batch: Vec<_> = caches.iter_mut().map(|cache| (cache, &[7_u32][..])).collect();
        loaded.step(&mut batch).unwrap();
    });
    assert_eq!(decode, (3, 9), "a run never spans slabs");
    let mut first = caches.remove(0);
    caches.clear();
    loaded.step(&mut [(&mut first, &[1])]).unwrap();
    assert_eq!(used(), empty + 2 * slab, "one slab is kept for the next sequences");
}

#[test]
fn static_caches_give_their_memory_back_too() {
    for kind in [CacheKind::StaticV1, CacheKind::StaticV2] {
        let loaded = load(&options(kind));
        let used = || loaded.machine.0.used.load(SeqCst);
        let empty = used();
        let mut caches: Vec<_> = (0..4).map(|_| loaded.cache()).collect();
        let one = usize::try_from(caches[0].bytes()).unwrap();
        assert_eq!(used(), empty + 5 * one, "one is what they are copied to");
        for prompt in [[1, 2], [3, 4]] {
            for cache in &mut caches {
                loaded.step(&mut [(cache, &prompt)]).unwrap();
            }
        }
        let mut first = caches.remove(0);
        caches.clear();
        close(&loaded.step(&mut [(&mut first, &[5])]).unwrap()[0], &loaded.alone(&[1, 2, 3, 4, 5]));
        loaded.step(&mut [(&mut first, &[6])]).unwrap();
        assert_eq!(used(), empty + 3 * one, "{kind}: one is kept for the next sequence");
    }
}

#[test]
fn a_cache_that_the_device_has_no_memory_for_is_refused_and_takes_nothing() {
    for kind in [CacheKind::InPlace, CacheKind::StaticV1, CacheKind::StaticV2] {
        let loaded = load(&options(kind));
        let mut first = loaded.cache();
        let rows = if kind == CacheKind::InPlace { 4 } else { 1 };
        let mut rest: Vec<Box<dyn Cache>> = (1..rows).map(|_| loaded.cache()).collect();
        let used = loaded.machine.0.used.load(SeqCst);
        loaded.machine.0.memory.store(used + 10, SeqCst);
        match loaded.model.new_cache(32) {
            Err(BackendError::Device { backend: "tensorrt", what }) => {
                assert!(what.contains("memory"), "{what}")
            }
            Err(error) => panic!("{kind}: {error:?}"),
            Ok(_) => panic!("{kind}: it was given"),
        }
        loaded.step(&mut [(&mut first, &[1, 2])]).unwrap();
        loaded.machine.0.memory.store(usize::MAX, SeqCst);
        rest.push(loaded.cache());
        loaded.step(&mut [(rest.last_mut().unwrap(), &[1, 2]), (&mut first, &[3])]).unwrap();
    }
}

#[test]
fn what_a_sequence_left_is_wiped_before_the_next_one_uses_its_row() {
    // In fp32 attention is decomposed: masked values are multiplied by zero, which NaN survives.
    let options = EngineOptions { precision: Precision::Fp32, ..options(CacheKind::InPlace) };
    let loaded = load(&options);
    let expected = loaded.alone(&[4, 5]);
    loaded.machine.0.spoils.store(true, SeqCst);
    close(&loaded.alone(&[4, 5]), &expected);
    // A sequence that begins again is a new one.
    let mut cache = loaded.cache();
    loaded.step(&mut [(&mut cache, &[1, 2, 3])]).unwrap();
    cache.truncate(0);
    loaded.machine.0.spoils.store(true, SeqCst);
    close(&loaded.step(&mut [(&mut cache, &[4, 5])]).unwrap()[0], &expected);
}

#[test]
fn everything_is_given_back_with_the_model() {
    for &kind in CacheKind::ALL {
        let loaded = load(&options(kind));
        let machine = loaded.machine.clone();
        let mut cache = loaded.cache();
        loaded.step(&mut [(&mut cache, &[1, 2, 3])]).unwrap();
        assert_eq!(machine.0.kept.load(SeqCst), usize::from(true), "kernels are kept after the first run");
        drop(loaded);
        assert_eq!((machine.0.used.load(SeqCst), machine.0.kept.load(SeqCst)), (0, 2), "{kind}");
        // The device was closed with its last engine.
        let mut dropped = machine.0.dropped.lock().clone();
        dropped.dedup();
        assert_eq!(dropped, ["execution", "engine", "device"]);
        // A cache outlives its model, as far as it knows.
        assert_eq!(cache.len(), 3);
    }
}

#[test]
fn the_memory_plan_is_measured() {
    let loaded = load(&options(CacheKind::InPlace));
    let plan = loaded.model.memory_plan();
    let cache = loaded.cache();
    // 2 layers of keys and values, 2 heads of 16 halves.
    assert_eq!(plan.kv_bytes_per_token, 2 * 2 * 2 * 16 * 2);
    assert_eq!(cache.bytes(), 32 * plan.kv_bytes_per_token);
    assert!(plan.weight_bytes > 100_000, "{plan:?}");
    // Activations, token and position IDs, 3 numbers a row, a row of fp32 logits each.
    assert_eq!(plan.workspace_bytes, 1000 + 2 * 4 * 32 * 8 + 3 * 4 * 8 + 4 * 97 * 4);
}

#[test]
fn a_step_that_fails_on_the_way_changes_no_length_and_can_be_tried_again() {
    for &kind in CacheKind::ALL {
        let loaded = load(&options(kind));
        let (mut a, mut b) = (loaded.cache(), loaded.cache());
        loaded.step(&mut [(&mut a, &[1, 2, 3]), (&mut b, &[4, 5])]).unwrap();
        // The second of two runs.
        let state = &loaded.machine.0;
        state.fails_at.store(state.enqueued.load(SeqCst) + 1, SeqCst);
        let error = loaded.step(&mut [(&mut a, &[6, 7]), (&mut b, &[8])]).unwrap_err();
        assert!(
            matches!(&error, BackendError::Device { what, .. } if what.contains("asked to fail")),
            "{error:?}"
        );
        assert_eq!((a.len(), b.len()), (3, 2), "{kind}");
        let logits = loaded.step(&mut [(&mut a, &[6, 7]), (&mut b, &[8])]).unwrap();
        close(&logits[0], &loaded.alone(&[1, 2, 3, 6, 7]));
        close(&logits[1], &loaded.alone(&[4, 5, 8]));
    }
}

#[test]
fn a_panic_on_the_device_is_an_error_and_the_engine_is_not_run_again() {
    let loaded = load(&options(CacheKind::InPlace));
    let mut cache = loaded.cache();
    let state = &loaded.machine.0;
    state.panics.store(true, SeqCst);
    state.fails_at.store(0, SeqCst);
    let error = loaded.step(&mut [(&mut cache, &[1])]).unwrap_err();
    assert!(error.to_string().contains("panicked: asked to panic"), "{error}");
    let error = loaded.step(&mut [(&mut cache, &[1])]).unwrap_err();
    assert!(error.to_string().contains("load it again"), "{error}");
    assert_eq!((cache.len(), state.enqueued.load(SeqCst)), (0, 1));
}

#[test]
fn caches_whose_rows_are_not_aligned_have_a_slab_each() {
    // 2 heads of 31 positions of 16 halves are 1984 bytes, which are no multiple of 256.
    let loaded = load(&EngineOptions { max_seq_len: 31, ..options(CacheKind::InPlace) });
    let [mut a, mut b] = [(); 2].map(|()| loaded.model.new_cache(31).unwrap());
    let mut logits = Vec::new();
    let runs = runs(&loaded, || logits = loaded.step(&mut [(&mut a, &[1, 2]), (&mut b, &[3, 4])]).unwrap());
    assert_eq!(runs, (2, 2));
    let mut alone = loaded.model.new_cache(31).unwrap();
    close(&logits[1], &loaded.step(&mut [(&mut alone, &[3, 4])]).unwrap()[0]);
}
