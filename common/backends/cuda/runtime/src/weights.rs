//! Copies weights to the device.
//!
//! Several threads share the work in pieces. Each reads a piece of the file into pinned memory while the device copies
//! the one before, on a stream of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use roundhouse_backend::BackendError;
use roundhouse_cuda_device::{Device, DeviceError, Memory, Pinned};
use roundhouse_cuda_plan::Plan;
use roundhouse_weights::MappedWeights;

use crate::error;

/// Bytes that are copied at once.
const PIECE_BYTES: usize = 8 << 20;

/// Threads at the most: more than a disk or the bus can use.
const MOST_THREADS: usize = 8;

/// Weights begin where the widest loads do.
const ALIGNMENT: usize = 256;

/// Weights on the device.
pub(crate) struct DeviceWeights {
    /// By number.
    pub(crate) addresses: Vec<u64>,
    memory: Memory,
}

/// A part of the file and where it goes.
#[derive(Clone, Copy)]
struct Piece<'a> {
    bytes: &'a [u8],
    to: u64,
}

impl DeviceWeights {
    /// Copies all weights of a plan.
    pub(crate) fn load(
        device: &Arc<dyn Device>,
        plan: &Plan,
        file: &MappedWeights,
    ) -> Result<Self, BackendError> {
        let mut offsets = Vec::with_capacity(plan.weights.len());
        let mut end = 0;
        for weight in &plan.weights {
            offsets.push(end);
            end += weight.bytes().next_multiple_of(ALIGNMENT);
        }
        let memory = Memory::new(device, end).map_err(|error| error::device(&error))?;
        let addresses: Vec<u64> = offsets.iter().map(|&offset| memory.address() + offset as u64).collect();
        let mut pieces = Vec::new();
        for (weight, &address) in plan.weights.iter().zip(&addresses) {
            let mut to = address;
            for name in &weight.parts {
                let tensor = file
                    .tensor(name)
                    .ok_or_else(|| error::failed(format!("weight {name:?} without data")))?;
                for bytes in file.bytes(tensor).chunks(PIECE_BYTES) {
                    pieces.push(Piece { bytes, to });
                    to += bytes.len() as u64;
                }
            }
            if to != address + weight.bytes() as u64 {
                return Err(error::failed(format!(
                    "weights {:?} of another size than planned",
                    weight.parts
                )));
            }
        }
        copy(device, &pieces).map_err(|error| error::device(&error))?;
        Ok(Self { addresses, memory })
    }

    /// Bytes on the device.
    pub(crate) const fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

fn copy(device: &Arc<dyn Device>, pieces: &[Piece<'_>]) -> Result<(), DeviceError> {
    let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = (total / PIECE_BYTES + 1).min(cores).min(MOST_THREADS);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| copy_some(device, pieces, &next))).collect();
        let finish = |worker: thread::ScopedJoinHandle<'_, Result<(), DeviceError>>| {
            worker.join().unwrap_or_else(|_| {
                Err(DeviceError::Failed("a thread that copies weights panicked".to_owned()))
            })
        };
        // All of them end before an error is told.
        let ended: Vec<_> = workers.into_iter().map(finish).collect();
        ended.into_iter().collect()
    })
}

/// Copies pieces until there are none left.
fn copy_some(device: &Arc<dyn Device>, pieces: &[Piece<'_>], next: &AtomicUsize) -> Result<(), DeviceError> {
    let largest = pieces.iter().map(|piece| piece.bytes.len()).max().unwrap_or(0);
    let mut buffers = Vec::new();
    for _ in 0..2 {
        buffers.push((Pinned::new(device, largest)?, device.new_stream()?));
    }
    for turn in [0, 1].into_iter().cycle() {
        let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
        let (buffer, stream) = &mut buffers[turn];
        // The copy before the last was from this buffer.
        device.synchronize(*stream)?;
        let place = &mut buffer.bytes_mut()[..piece.bytes.len()];
        place.copy_from_slice(piece.bytes);
        device.copy_in(*stream, piece.to, place)?;
    }
    buffers.iter().try_for_each(|(_, stream)| device.synchronize(*stream))
}
