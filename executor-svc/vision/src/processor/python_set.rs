//! The order in which CPython walks over a set of pairs of small numbers.
//!
//! It is a fact of CPython 3.8 and later on 64 bits, where such hashes are not randomised: the hash of a tuple is xxHash's
//! mixing of its items' (a small number is its own hash), and a set is a table of slots with open addressing.

/// Slots that are looked at one after the other before the next jump.
const LINEAR_PROBES: usize = 9;

/// A set's slots: their hashes and pairs.
type Slots = Vec<Option<(u64, (usize, usize))>>;

/// The distinct pairs in the order in which `set(pairs)` gives them.
pub(super) fn python_set_order(pairs: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut slots: Slots = vec![None; 8];
    let mut used = 0;
    for pair in pairs {
        if !insert(&mut slots, tuple_hash(pair), pair) {
            continue;
        }
        used += 1;
        // More than three fifths full: four times as many slots as are used, or twice where those are many.
        if used * 5 >= (slots.len() - 1) * 3 {
            let wanted = if used > 50_000 { used * 2 } else { used * 4 };
            let mut larger: Slots = vec![None; (wanted + 1).next_power_of_two().max(8)];
            for (hash, pair) in slots.into_iter().flatten() {
                insert(&mut larger, hash, pair);
            }
            slots = larger;
        }
    }
    slots.into_iter().flatten().map(|(_, pair)| pair).collect()
}

/// Whether the pair was not there before.
fn insert(slots: &mut Slots, hash: u64, pair: (usize, usize)) -> bool {
    let mask = slots.len() - 1;
    let mut perturbation = hash;
    let mut index = hash as usize & mask;
    loop {
        // Only where all of them fit before the table's end.
        let last = if index + LINEAR_PROBES <= mask { index + LINEAR_PROBES } else { index };
        for slot in &mut slots[index..=last] {
            match slot {
                None => {
                    *slot = Some((hash, pair));
                    return true;
                }
                Some((_, other)) if *other == pair => return false,
                Some(_) => {}
            }
        }
        perturbation >>= 5;
        index = (index.wrapping_mul(5).wrapping_add(1).wrapping_add(perturbation as usize)) & mask;
    }
}

/// CPython's hash of a tuple of two small numbers.
fn tuple_hash(pair: (usize, usize)) -> u64 {
    const PRIME_1: u64 = 11_400_714_785_074_694_791;
    const PRIME_2: u64 = 14_029_467_366_897_019_727;
    const PRIME_5: u64 = 2_870_177_450_012_600_261;
    let mixed = [pair.0, pair.1].into_iter().fold(PRIME_5, |sum, item| {
        let sum = sum.wrapping_add((item as u64).wrapping_mul(PRIME_2));
        sum.rotate_left(31).wrapping_mul(PRIME_1)
    });
    mixed.wrapping_add(2 ^ PRIME_5 ^ 3_527_539)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_in_the_order_of_cpython() {
        // hash((1, 2)), hash((3, 4)) of CPython 3.11, as unsigned numbers.
        assert_eq!(tuple_hash((1, 2)), (-3_550_055_125_485_641_917_i64) as u64);
        assert_eq!(tuple_hash((3, 4)), 1_079_245_023_883_434_373);
    }
}
