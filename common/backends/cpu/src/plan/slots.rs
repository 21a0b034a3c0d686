//! Buffers that are not alive at the same time share a slot.

use super::size::{SizeId, Sizes};
use super::{Buffer, PlannedStep};

/// Gives each buffer a slot: the free one whose size fits best in the largest step. Returns the buffers and how many
/// slots there are. Those of `kept` stay alive to the end.
pub(super) fn assign_slots(
    elements: &[SizeId],
    steps: &[PlannedStep],
    kept: &[usize],
    largest: &Sizes,
) -> (Vec<Buffer>, usize) {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; elements.len()];
    for (place, planned) in steps.iter().enumerate() {
        planned.step.for_each_buffer(|id| {
            let life = lives[id.0].get_or_insert((place, place));
            life.1 = place;
        });
    }
    for &id in kept {
        if let Some(life) = &mut lives[id] {
            life.1 = steps.len();
        }
    }
    let mut order: Vec<usize> = (0..elements.len()).filter(|&id| lives[id].is_some()).collect();
    order.sort_by_key(|&id| lives[id]);

    let mut buffers: Vec<Buffer> = elements.iter().map(|&elements| Buffer { elements, slot: 0 }).collect();
    // Of each slot, the size and the last step of its present buffer.
    let mut slots: Vec<(usize, usize)> = Vec::new();
    for id in order {
        let Some((first, last)) = lives[id] else { continue };
        let wanted = largest.get(elements[id]);
        let free = (0..slots.len()).filter(|&slot| slots[slot].1 < first);
        let best = free.min_by_key(|&slot| (slots[slot].0 < wanted, slots[slot].0.abs_diff(wanted)));
        let slot = best.unwrap_or_else(|| {
            slots.push((0, 0));
            slots.len() - 1
        });
        slots[slot] = (slots[slot].0.max(wanted), last);
        buffers[id].slot = slot;
    }
    (buffers, slots.len())
}
