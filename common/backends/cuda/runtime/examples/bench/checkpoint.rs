//! Checkpoints of published shapes with weights of no meaning, as a hub has them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, anyhow, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use roundhouse_backend::WeightSource as _;
use serde_json::{Map, Value, json};

use crate::shapes::{NAMES, Shape};

/// Numbers that are made and written at a time.
const BLOCK: usize = 1 << 20;
/// The symbols that every text of bytes has, by their bytes: those that are printable, then the others.
const BYTE_SYMBOLS: u32 = 256;

/// Where a tensor lies in the file.
struct Place {
    name: String,
    shape: Vec<u64>,
    offset: u64,
}

/// Writes the models, all of them where none is named, into a folder each.
pub(crate) fn write(folder: &Path, names: &[&str]) -> anyhow::Result<()> {
    for &name in if names.is_empty() { &NAMES[..] } else { names } {
        let shape =
            Shape::named(name).with_context(|| format!("unknown model; there are {}", NAMES.join(", ")))?;
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("config.json"), shape.config.to_string())?;
        let vocab_size = shape.config["vocab_size"].as_u64().context("no vocab_size")?;
        std::fs::write(folder.join("tokenizer.json"), tokenizer(u32::try_from(vocab_size)?).to_string())?;
        weights(&folder.join("model.safetensors"), &shape)?;
        println!("{}", folder.display());
    }
    Ok(())
}

/// A byte-level tokenizer whose tokens beyond the bytes are words of digits.
fn tokenizer(vocab_size: u32) -> Value {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let (shown, hidden): (Vec<u32>, Vec<u32>) = (0..BYTE_SYMBOLS).partition(printable);
    let symbols = shown.into_iter().chain((0..hidden.len() as u32).map(|place| BYTE_SYMBOLS + place));
    let mut vocab: Map<String, Value> = symbols
        .filter_map(char::from_u32)
        .zip(0_u32..)
        .map(|(symbol, token)| (symbol.to_string(), json!(token)))
        .collect();
    vocab.extend((BYTE_SYMBOLS..vocab_size).map(|token| (format!("\u{120}{token}"), json!(token))));
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// All tensors in fp16, by as many threads as there are processors.
fn weights(path: &Path, shape: &Shape) -> anyhow::Result<()> {
    let (mut header, mut places, mut end) = (Map::new(), Vec::new(), 0);
    for name in shape.weights.names() {
        let dims = shape.weights.shape(&name)?;
        let bytes = dims.iter().product::<u64>() * size_of::<f16>() as u64;
        header.insert(
            name.clone(),
            json!({ "dtype": "F16", "shape": dims, "data_offsets": [end, end + bytes] }),
        );
        places.push(Place { name, shape: dims, offset: end });
        end += bytes;
    }
    let mut head = Value::Object(header).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    let file = File::create(path)?;
    file.write_all_at(&(head.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(&head, 8)?;
    let (start, next) = (8 + head.len() as u64, AtomicUsize::new(0));
    let work = || -> anyhow::Result<()> {
        while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
            tensor(&file, start, shape, place).with_context(|| place.name.clone())?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let count = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn tensor(file: &File, start: u64, shape: &Shape, place: &Place) -> anyhow::Result<()> {
    let (rows, row) = match place.shape[..] {
        [] => (1, 1),
        [rows, ref rest @ ..] => (rows, rest.iter().product::<u64>()),
    };
    ensure!(row > 0, "no columns");
    let each = (BLOCK as u64 / row).max(1);
    let (mut numbers, mut halves) = (Vec::new(), Vec::new());
    for first in (0..rows).step_by(usize::try_from(each)?) {
        let end = rows.min(first + each);
        let count = usize::try_from((end - first) * row)?;
        numbers.resize(count, 0.0);
        halves.resize(count, f16::ZERO);
        shape.weights.read_rows(&place.name, first..end, &mut numbers)?;
        halves.convert_from_f32_slice(&numbers);
        let bytes: &[u8] = bytemuck::cast_slice(&halves);
        file.write_all_at(bytes, start + place.offset + first * row * size_of::<f16>() as u64)?;
    }
    Ok(())
}
