//! Blocks on disk: one file each, written behind, in a folder of the process.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use roundhouse_backend::KvBlock;
use sha2::{Digest as _, Sha256};

use super::BlockKey;

/// Blocks that wait to be written; one more is dropped.
const QUEUE: usize = 64;
const EXTENSION: &str = "kv";
const DIGEST_BYTES: usize = 32;

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder for blocks of the prefix cache {}: {source}", path.display())]
pub struct SpillError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

/// Blocks on disk. Dropping it deletes them.
pub(super) struct Spill {
    folder: PathBuf,
    waiting: Arc<Waiting>,
    queue: Option<SyncSender<Task>>,
    writer: Option<JoinHandle<()>>,
}

/// Blocks that are not written yet, for those who want them back before.
type Waiting = Mutex<HashMap<BlockKey, Arc<KvBlock>>>;

enum Task {
    Write(BlockKey),
    Delete(BlockKey),
}

impl Spill {
    /// Takes a folder, and deletes the blocks that a process before left there.
    pub(super) fn open(folder: PathBuf) -> Result<Self, SpillError> {
        let failed = |source| SpillError { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        clear(&folder).map_err(failed)?;
        let waiting = Arc::<Waiting>::default();
        let (queue, tasks) = sync_channel(QUEUE);
        let writer = {
            let (folder, waiting) = (folder.clone(), Arc::clone(&waiting));
            std::thread::Builder::new()
                .name("prefix-spill".to_owned())
                .spawn(move || write_all(&folder, &waiting, &tasks))
                .map_err(failed)?
        };
        Ok(Self { folder, waiting, queue: Some(queue), writer: Some(writer) })
    }

    /// Has a block written soon. False when too many wait.
    pub(super) fn write(&self, key: BlockKey, block: Arc<KvBlock>) -> bool {
        self.waiting.lock().insert(key, block);
        let taken = self.queue.as_ref().is_some_and(|queue| queue.try_send(Task::Write(key)).is_ok());
        if !taken {
            self.waiting.lock().remove(&key);
        }
        taken
    }

    /// A block, unless it is not there or broken.
    pub(super) fn read(&self, key: BlockKey) -> Option<Arc<KvBlock>> {
        if let Some(block) = self.waiting.lock().get(&key) {
            return Some(Arc::clone(block));
        }
        let path = file(&self.folder, key);
        let bytes = fs::read(&path).ok()?;
        let block = decode(&bytes);
        if block.is_none() {
            tracing::warn!(path = %path.display(), "a block of the prefix cache is broken on disk");
        }
        block.map(Arc::new)
    }

    /// Has a block deleted soon.
    pub(super) fn delete(&self, key: BlockKey) {
        self.waiting.lock().remove(&key);
        if let Some(queue) = &self.queue {
            // A file that stays is overwritten or deleted with the folder's others.
            let _ = queue.try_send(Task::Delete(key));
        }
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        if let Err(error) = clear(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "blocks of the prefix cache are left behind");
        }
    }
}

fn write_all(folder: &Path, waiting: &Waiting, tasks: &Receiver<Task>) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Write(key) => {
                let Some(block) = waiting.lock().get(&key).map(Arc::clone) else { continue };
                let path = file(folder, key);
                // One that is missing or cut short is found broken when it is read.
                if let Err(error) = fs::write(&path, encode(&block)) {
                    tracing::warn!(path = %path.display(), %error, "a block of the prefix cache is not written");
                }
                waiting.lock().remove(&key);
            }
            Task::Delete(key) => {
                // It may never have been written.
                let _ = fs::remove_file(file(folder, key));
            }
        }
    }
}

fn file(folder: &Path, key: BlockKey) -> PathBuf {
    folder.join(key.to_string()).with_extension(EXTENSION)
}

fn clear(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A SHA-256 of the rest; the positions; the length of the engine's key, the key; the bytes.
fn encode(block: &KvBlock) -> Vec<u8> {
    let positions = block.positions();
    let mut file = vec![0; DIGEST_BYTES];
    for number in [positions.start, positions.end, block.engine().len()] {
        file.extend((number as u64).to_le_bytes());
    }
    file.extend(block.engine().as_bytes());
    file.extend(block.bytes());
    let digest = Sha256::digest(&file[DIGEST_BYTES..]);
    file[..DIGEST_BYTES].copy_from_slice(&digest);
    file
}

fn decode(file: &[u8]) -> Option<KvBlock> {
    let (digest, rest) = file.split_at_checked(DIGEST_BYTES)?;
    if Sha256::digest(rest)[..] != *digest {
        return None;
    }
    let (numbers, rest) = rest.split_at_checked(3 * size_of::<u64>())?;
    let mut numbers = numbers.chunks_exact(size_of::<u64>()).filter_map(|number| {
        let number = u64::from_le_bytes(number.try_into().ok()?);
        usize::try_from(number).ok()
    });
    let (start, end, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let (engine, bytes) = rest.split_at_checked(length)?;
    Some(KvBlock::new(std::str::from_utf8(engine).ok()?.into(), start..end, bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use roundhouse_engine::EngineKey;

    use super::*;

    fn key(number: u32) -> BlockKey {
        BlockKey::root(&EngineKey::parse(&"a".repeat(64)).unwrap(), "", "").child(&[number])
    }

    fn block(number: u8) -> Arc<KvBlock> {
        Arc::new(KvBlock::new("engine".into(), 64..128, vec![number; 1000]))
    }

    /// Waits until what was asked for is done: the folder is read when the writer has ended.
    fn files(mut spill: Spill) -> Vec<Vec<u8>> {
        spill.queue = None;
        spill.writer.take().unwrap().join().unwrap();
        fs::read_dir(&spill.folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn a_block_is_read_as_it_was_written_before_and_after_it_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::open(folder.path().to_owned()).unwrap();
        assert!(spill.write(key(1), block(7)));
        assert_eq!(spill.read(key(1)), Some(block(7)));
        while !spill.waiting.lock().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(spill.read(key(1)), Some(block(7)));
        assert_eq!(spill.read(key(2)), None);
        let written = files(spill);
        assert_eq!(written.len(), 1);
        assert_eq!(decode(&written[0]).as_ref(), Some(&*block(7)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "its end leaves nothing");
    }

    #[test]
    fn a_broken_file_is_no_block() {
        let whole = encode(&block(3));
        for broken in [&whole[..0], &whole[..40], &whole[..whole.len() - 1]] {
            assert_eq!(decode(broken), None);
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(decode(&flipped), None);
    }

    #[test]
    fn deleted_blocks_and_those_of_a_process_before_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old.kv"), b"old").unwrap();
        fs::write(folder.path().join("other"), b"not a block").unwrap();
        let spill = Spill::open(folder.path().to_owned()).unwrap();
        assert!(spill.write(key(1), block(1)) && spill.write(key(2), block(2)));
        spill.delete(key(1));
        assert_eq!(spill.read(key(1)), None);
        let mut left: Vec<_> = files(spill).iter().map(Vec::len).collect();
        left.sort_unstable();
        assert_eq!(left, [b"not a block".len(), encode(&block(2)).len()]);
    }
}
