//! Broken files of every kind are refused or decoded, and nothing else: the fuzz target's entry over mutations of the golden
//! files, the same ones each time.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test's helper is a failed test")]

use std::path::PathBuf;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

#[path = "../fuzz/entry.rs"]
mod entry;

/// Mutations of each file.
const MUTATIONS: usize = 40;
/// Larger files take longer and tell no more.
const MAX_BYTES: usize = 20_000;

fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/vision");
    let bytes = std::fs::read(folder.join("decoding.golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut seeds: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| name.ends_with(".file"))
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|kind| ["jpg", "png", "webp", "gif"].iter().any(|image| kind == *image))
        {
            seeds.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    seeds.retain(|(_, bytes)| bytes.len() <= MAX_BYTES);
    seeds.sort();
    seeds
}

fn mutate(random: &mut ChaCha8Rng, bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
    for _ in 0..random.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        // Headers are where most decisions are made.
        let end = if random.random_bool(0.5) { bytes.len().min(200) } else { bytes.len() };
        let at = random.random_range(0..end);
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][random.random_range(0..5)],
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.random_range(1..40)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + random.random_range(1..200)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let (_, other) = &others[random.random_range(0..others.len())];
                let from = random.random_range(0..other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

#[test]
fn whatever_the_bytes_are_decoding_and_processing_return() {
    let seeds = seeds();
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let (mut runs, mut images) = (0, 0);
    for (name, seed) in &seeds {
        for mutation in 0..MUTATIONS {
            let mut bytes = seed.clone();
            mutate(&mut random, &mut bytes, &seeds);
            let run = std::panic::catch_unwind(|| entry::run(&bytes));
            let was_image = run.unwrap_or_else(|_| panic!("{name}, mutation {mutation}"));
            images += usize::from(was_image);
            runs += 1;
        }
    }
    // Neither do all of them fail at the first byte, nor are the mutations without effect.
    assert!(runs >= 3000 && images > runs / 20 && images < runs * 3 / 4, "{images} images of {runs}");
}
