//! Run on machines with and without a GPU: without one, that there is none is an error and no panic.

use super::*;

/// The first GPU's memory, if there is a GPU.
fn memory() -> Option<Memory> {
    let found = roundhouse_tensorrt_library::device::compute_capabilities();
    match (Memory::open(0), found) {
        (Ok(memory), Ok(_)) => Some(memory),
        (Err(_), Err(_)) => None,
        (opened, found) => panic!("{:?} with {found:?}", opened.err()),
    }
}

fn numbers(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|index| u8::try_from((index * 31 + seed * 7) % 251).unwrap()).collect()
}

#[test]
fn memory_is_zeroed_aligned_and_given_back() {
    let Some(memory) = memory() else { return };
    let before = memory.free_bytes().unwrap();
    let buffers: Vec<_> = [1, 300, 256 << 20].iter().map(|&bytes| memory.allocate(bytes).unwrap()).collect();
    assert!(buffers.iter().all(|buffer| buffer.address(0).unwrap().is_multiple_of(ALIGNMENT as u64)));
    let mut memory = memory;
    assert_eq!(memory.download(&buffers[1], &[0..100, 100..300]).unwrap(), vec![0; 300]);
    assert!(memory.free_bytes().unwrap() + (250 << 20) < before);
    let kept = buffers[2].clone();
    drop(buffers);
    memory.synchronize().unwrap();
    assert!(memory.free_bytes().unwrap() + (250 << 20) < before, "a clone keeps it");
    drop(kept);
    memory.synchronize().unwrap();
    assert!(memory.free_bytes().unwrap() + (1 << 20) > before);
    let error = memory.allocate(1 << 50).map(|_| ()).unwrap_err();
    assert!(matches!(error, DeviceError::Memory { .. }), "{error}");
    // The context is as good as before.
    assert_eq!(memory.allocate(64).unwrap().len(), 64);
}

#[test]
fn bytes_come_back_from_where_they_were_put() {
    let Some(mut memory) = memory() else { return };
    let buffer = memory.allocate(3 * STAGING_BYTES).unwrap();
    // Small ones, one behind the other, then one that outgrows the staging memory.
    let mut expected = vec![0; 3 * STAGING_BYTES];
    for seed in 0..40 {
        let (offset, bytes) = (seed * 50_000, numbers(40_000, seed));
        memory.upload(&buffer, offset, &bytes).unwrap();
        expected[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    let large = numbers(STAGING_BYTES + 17, 99);
    memory.upload(&buffer, 2_000_001 - 17, &large[..100]).unwrap();
    memory.upload(&buffer, 2_000_001, &large).unwrap();
    expected[2_000_001 - 17..2_000_001 - 17 + 100].copy_from_slice(&large[..100]);
    expected[2_000_001..2_000_001 + large.len()].copy_from_slice(&large);
    memory.zero(&buffer, 10..20_000).unwrap();
    expected[10..20_000].fill(0);
    assert!(memory.download(&buffer, &[0..1, 1..expected.len()]).unwrap() == expected);
    let parts = memory.download(&buffer, &[50_000..50_003, 0..2, 7..7]).unwrap();
    assert_eq!(parts, [&expected[50_000..50_003], &expected[..2]].concat());
}

#[test]
fn what_is_outside_of_a_buffer_is_refused() {
    let Some(mut memory) = memory() else { return };
    let buffer = memory.allocate(100).unwrap();
    assert!(memory.upload(&buffer, 90, &[0; 11]).is_err());
    assert!(memory.upload(&buffer, usize::MAX, &[0; 2]).is_err());
    assert!(memory.zero(&buffer, 50..101).is_err());
    assert!(memory.download(&buffer, &[0..1, 99..101]).is_err());
    assert!(buffer.address(100).is_ok() && buffer.address(101).is_err());
    assert!(memory.download(&buffer, &[]).unwrap().is_empty());
}
