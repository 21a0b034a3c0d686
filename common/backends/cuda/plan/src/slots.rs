//! Which buffers share memory.

use crate::plan::{Buffer, BufferId, Plan};
use crate::step::Step;

/// Gives every buffer a slot. Two buffers of which one is read or written for the last time before the other is for the
/// first time can share one; `kept` is read after all steps.
pub(crate) fn assign_slots(plan: &mut Plan, kept: BufferId) {
    let lives = lives(&plan.steps, plan.buffers.len(), kept);
    let most = |buffer: &Buffer| plan.most_rows(buffer.rows) * buffer.stride * buffer.dtype.size();
    let bytes: Vec<usize> = plan.buffers.iter().map(most).collect();
    let mut order: Vec<usize> = (0..plan.buffers.len()).collect();
    order.sort_by_key(|&id| std::cmp::Reverse(bytes[id]));
    let mut slots: Vec<Vec<usize>> = Vec::new();
    for id in order {
        let free = |slot: &&mut Vec<usize>| slot.iter().all(|&other| !overlap(lives[id], lives[other]));
        match slots.iter_mut().find(free) {
            Some(slot) => slot.push(id),
            None => slots.push(vec![id]),
        }
    }
    plan.slots = slots.len();
    for (slot, ids) in slots.iter().enumerate() {
        for &id in ids {
            plan.buffers[id].slot = slot;
        }
    }
}

/// The first and the last step of each buffer.
fn lives(steps: &[Step], buffers: usize, kept: BufferId) -> Vec<(usize, usize)> {
    let mut lives = vec![(usize::MAX, 0); buffers];
    for (place, step) in steps.iter().enumerate() {
        step.for_each_buffer(|id| {
            if let Some((first, last)) = lives.get_mut(id.0) {
                *first = place.min(*first);
                *last = place;
            }
        });
    }
    // Where all rows are selected they are read where they are.
    for step in steps {
        if let Step::Select { from, to, .. } = step {
            let last = lives.get(to.buffer.0).map_or(0, |life| life.1);
            if let Some(life) = lives.get_mut(from.buffer.0) {
                life.1 = last.max(life.1);
            }
        }
    }
    if let Some(life) = lives.get_mut(kept.0) {
        life.1 = usize::MAX;
    }
    lives
}

fn overlap(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}
