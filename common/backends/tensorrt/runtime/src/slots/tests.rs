use proptest::prelude::*;

use super::*;

#[test]
fn slots_are_taken_from_the_front_and_slabs_open_when_all_are_full() {
    let slots = Arc::new(Mutex::new(Slots::new(2)));
    let taken: Vec<_> = (0..3).map(|_| TakenSlot::take(&slots).0).collect();
    let places: Vec<_> = taken.iter().map(|taken| (taken.slot().slab, taken.slot().row)).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0)]);
    let mut taken = taken;
    taken[0].set_length(5);
    drop(taken.remove(0));
    let (again, only) = TakenSlot::take(&slots);
    assert!(!only, "its neighbour is still there");
    assert_eq!((again.slot(), again.length()), (Slot { slab: 0, row: 0 }, 0));
}

#[test]
fn one_empty_slab_stays_open() {
    let slots = Arc::new(Mutex::new(Slots::new(1)));
    let [a, b, c] = [(); 3].map(|()| TakenSlot::take(&slots).0);
    drop((b, c));
    let wanted = |slab| slots.lock().is_wanted(slab);
    assert_eq!([wanted(0), wanted(1), wanted(2)], [true, true, false]);
    drop(a);
    assert_eq!([wanted(0), wanted(1)], [true, false]);
}

proptest! {
    #[test]
    fn no_slot_has_two_sequences_and_what_is_in_use_is_wanted(
        rows in 1..4_usize,
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..60),
    ) {
        let mut slots = Slots::new(rows);
        let mut taken: Vec<Slot> = Vec::new();
        for (take, which) in steps {
            if take || taken.is_empty() {
                let (slot, only) = slots.take();
                prop_assert_eq!(only, taken.iter().all(|taken| taken.slab != slot.slab));
                prop_assert!(slot.row < rows && !taken.contains(&slot));
                prop_assert_eq!(slots.length(slot), 0);
                slots.set_length(slot, Some(taken.len() + 1));
                taken.push(slot);
            } else {
                slots.give_back(taken.swap_remove(which.index(taken.len())));
            }
            prop_assert!(taken.iter().all(|slot| slots.is_wanted(slot.slab) && slots.length(*slot) > 0));
            let slabs: std::collections::BTreeSet<usize> = taken.iter().map(|slot| slot.slab).collect();
            let open = (0..100).filter(|&slab| slots.is_wanted(slab)).count();
            prop_assert!(open <= slabs.len() + 1);
        }
    }
}
