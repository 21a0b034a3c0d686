use std::collections::BTreeMap;

use roundhouse_engine::EngineKey;

use super::*;

const BYTES: u64 = 10;

/// A path of blocks, each named by the numbers up to it.
fn path(numbers: &[u32]) -> Vec<BlockKey> {
    let root = BlockKey::root(&EngineKey::parse(&"a".repeat(64)).unwrap(), "", "");
    let next = |last: &mut BlockKey, &number: &u32| {
        *last = last.child(&[number]);
        Some(*last)
    };
    numbers.iter().scan(root, next).collect()
}

/// Inserts the blocks of a path from its first on; what left.
fn insert(tree: &mut Tree<u32>, numbers: &[u32]) -> Evicted<u32> {
    let path = path(numbers);
    let mut all = Evicted::default();
    for (index, &key) in path.iter().enumerate() {
        let parent = index.checked_sub(1).map(|index| path[index]);
        let (_, evicted) = tree.insert(key, parent, numbers[index], BYTES);
        all.to_disk.extend(evicted.to_disk);
        all.from_disk.extend(evicted.from_disk);
        tree.check();
    }
    all
}

impl Tree<u32> {
    /// Fails unless every count and order is what the nodes say.
    fn check(&self) {
        let mut children: BTreeMap<BlockKey, (usize, usize)> = BTreeMap::new();
        for node in self.nodes.values() {
            if let Some(parent) = node.parent {
                assert!(self.nodes.contains_key(&parent), "a node without its parent");
                let counts = children.entry(parent).or_default();
                counts.0 += 1;
                counts.1 += usize::from(node.value.is_some());
            }
        }
        let (mut memory, mut disk, mut pinned) = (0, 0, 0);
        let (mut memory_leaves, mut disk_leaves) = (BTreeSet::new(), BTreeSet::new());
        for (&key, node) in &self.nodes {
            let counts = children.get(&key).copied().unwrap_or_default();
            assert_eq!((node.children, node.resident_children), counts);
            let resident = node.value.is_some();
            assert!(resident || node.on_disk || counts.0 > 0 || node.pins > 0, "a node for nothing");
            memory += if resident { node.bytes } else { 0 };
            disk += if node.on_disk { node.bytes } else { 0 };
            pinned += if node.pins > 0 { node.bytes } else { 0 };
            if node.pins == 0 && resident && counts.1 == 0 {
                memory_leaves.insert((node.last_used, key));
            }
            if node.pins == 0 && !resident && node.on_disk && counts.0 == 0 {
                disk_leaves.insert((node.last_used, key));
            }
        }
        assert_eq!((self.memory.used, self.disk.used, self.pinned_bytes), (memory, disk, pinned));
        assert!(memory <= self.memory.total && disk <= self.disk.total);
        assert_eq!((&self.memory_leaves, &self.disk_leaves), (&memory_leaves, &disk_leaves));
    }

    fn found(&mut self, numbers: &[u32]) -> Vec<Found<u32>> {
        self.find(&path(numbers))
    }
}

#[test]
fn equal_prefixes_are_one_path() {
    let mut tree = Tree::new(1000, 0);
    insert(&mut tree, &[1, 2, 3]);
    insert(&mut tree, &[1, 2, 4]);
    assert_eq!(tree.memory().used, 4 * BYTES);
    assert_eq!(tree.found(&[1, 2, 4, 5]), [1, 2, 4].map(Found::Memory));
    assert_eq!(tree.found(&[1, 3]), [Found::Memory(1)]);
    assert_eq!(tree.found(&[2]), []);
}

#[test]
fn the_leaf_that_was_used_longest_ago_leaves_first() {
    let mut tree = Tree::new(4 * BYTES, 0);
    insert(&mut tree, &[1, 2]);
    insert(&mut tree, &[3, 4]);
    tree.found(&[1, 2]);
    insert(&mut tree, &[5]);
    assert_eq!(tree.found(&[3, 4]), [Found::Memory(3)], "the end of a path before its beginning");
    assert_eq!(tree.found(&[1, 2]).len(), 2);
    insert(&mut tree, &[6, 7]);
    assert_eq!((tree.found(&[5]).len(), tree.found(&[3]).len()), (0, 0));
}

#[test]
fn what_is_pinned_stays_and_what_finds_no_room_is_not_taken() {
    let mut tree = Tree::new(3 * BYTES, 0);
    insert(&mut tree, &[1, 2, 3]);
    assert_eq!(tree.pin(&path(&[1, 2, 3, 4])), 3);
    let key = path(&[9])[0];
    assert!(!tree.insert(key, None, 9, BYTES).0);
    assert!(!tree.insert(key, None, 9, 4 * BYTES).0);
    assert_eq!(tree.pinned_bytes(), 3 * BYTES);
    tree.unpin(&path(&[1, 2, 3]));
    assert!(tree.insert(key, None, 9, BYTES).0);
    assert_eq!(tree.found(&[1, 2, 3]).len(), 2);
    tree.check();
}

#[test]
fn a_block_does_not_leave_for_its_own_child() {
    let mut tree = Tree::new(2 * BYTES, 0);
    insert(&mut tree, &[1, 2]);
    let path = path(&[1, 2, 3]);
    assert!(!tree.insert(path[2], Some(path[1]), 3, BYTES).0, "its parents are all that there is");
    assert_eq!(tree.found(&[1, 2]).len(), 2);
    let orphan = self::path(&[7, 8])[1];
    assert!(!tree.insert(orphan, Some(self::path(&[7])[0]), 8, BYTES).0);
}

#[test]
fn what_leaves_memory_goes_to_disk_and_comes_back() {
    let mut tree = Tree::new(2 * BYTES, 3 * BYTES);
    insert(&mut tree, &[1, 2]);
    let evicted = insert(&mut tree, &[3, 4]);
    assert_eq!(evicted.to_disk.iter().map(|entry| entry.1).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(tree.found(&[1, 2]), [Found::Disk, Found::Disk]);
    // One that was on disk is not written again.
    let evicted = insert(&mut tree, &[1]);
    assert_eq!(evicted.to_disk, [(path(&[3, 4])[1], 4)]);
    assert_eq!(tree.found(&[1, 2]), [Found::Memory(1), Found::Disk]);
    tree.lost(path(&[1, 2])[1]);
    assert_eq!(tree.found(&[1, 2]), [Found::Memory(1)]);
    tree.check();
}

#[test]
fn a_block_that_is_lost_from_disk_is_a_gap_until_it_is_computed_again() {
    let mut tree = Tree::new(2 * BYTES, 5 * BYTES);
    insert(&mut tree, &[1, 2]);
    insert(&mut tree, &[3, 4]);
    assert_eq!(tree.found(&[1, 2]), [Found::Disk, Found::Disk]);
    tree.lost(path(&[1])[0]);
    tree.check();
    assert_eq!(tree.found(&[1, 2]), []);
    insert(&mut tree, &[1]);
    assert_eq!(tree.found(&[1, 2]), [Found::Memory(1), Found::Disk]);
}

#[test]
fn whatever_happens_counts_and_bounds_hold() {
    // A small linear congruential generator: any sequence of calls, the same one in every run.
    let mut state = 5_u64;
    let mut next = move |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    for round in 0..60 {
        let mut tree = Tree::new(BYTES * (1 + next(12)), if round % 2 == 0 { 0 } else { BYTES * next(12) });
        let mut pinned: Vec<Vec<BlockKey>> = Vec::new();
        let mut on_disk = BTreeSet::new();
        for _ in 0..400 {
            let numbers: Vec<u32> = (0..1 + next(5)).map(|_| next(3) as u32).collect();
            let path = path(&numbers);
            match next(6) {
                0 => drop(tree.find(&path)),
                1 if pinned.len() < 3 => {
                    let count = tree.pin(&path);
                    pinned.push(path[..count].to_vec());
                }
                2 if !pinned.is_empty() => {
                    let path = pinned.swap_remove(next(pinned.len() as u64) as usize);
                    tree.unpin(&path);
                }
                3 if !on_disk.is_empty() => {
                    let key = on_disk.pop_first().unwrap();
                    tree.lost(key);
                }
                _ => {
                    let evicted = insert(&mut tree, &numbers);
                    on_disk.extend(evicted.to_disk.iter().map(|entry| entry.0));
                    evicted.from_disk.iter().for_each(|key| {
                        on_disk.remove(key);
                    });
                }
            }
            tree.check();
            for path in &pinned {
                let lost = tree.find(path).len() < path.len();
                assert!(!lost || round % 2 == 1, "a pinned block left memory and there is no disk");
            }
        }
        pinned.iter().for_each(|path| tree.unpin(path));
        tree.check();
        assert_eq!(tree.pinned_bytes(), 0);
    }
}
