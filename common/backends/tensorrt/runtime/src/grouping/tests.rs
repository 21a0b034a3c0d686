use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A step, the lengths of all slots, and limits.
#[derive(Debug, Clone)]
struct Case {
    limits: Limits,
    pending: Vec<Pending>,
    /// `[slab][row]`, of the sequences that are not in the step.
    idle: Vec<Vec<usize>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let limits =
        (1..6_usize, 1..9_usize, any::<bool>(), 0..20_usize).prop_map(|(rows, seq, all_logits, logits)| {
            Limits { rows, seq, length: 24, all_logits, logits: logits.max(rows) }
        });
    limits.prop_flat_map(|limits| {
        let slots: Vec<Slot> =
            (0..3).flat_map(|slab| (0..limits.rows).map(move |row| Slot { slab, row })).collect();
        let one = (0..24_usize, 1..24_usize, 0..3_usize);
        let pending = prop::sample::subsequence(slots.clone(), 0..=slots.len()).prop_shuffle().prop_flat_map(
            move |slots| {
                let count = slots.len();
                (Just(slots), prop::collection::vec(one.clone(), count))
            },
        );
        let idle = prop::collection::vec(prop::collection::vec(0..=24_usize, limits.rows), 3);
        (Just(limits), pending, idle).prop_map(|(limits, (slots, parts), idle)| {
            let requests = [LogitsRequest::None, LogitsRequest::Last, LogitsRequest::All];
            let pending = slots.into_iter().zip(parts).map(|(slot, (past, tokens, request))| Pending {
                slot,
                past,
                tokens: tokens.min(limits.length - past),
                request: requests[request],
            });
            Case { limits, pending: pending.collect(), idle }
        })
    })
}

fn groups(case: &Case) -> Vec<Group> {
    group(&case.pending, |slot| case.idle[slot.slab][slot.row], &case.limits)
}

proptest! {
    #[test]
    fn every_token_runs_once_in_order_and_at_its_own_place(case in cases()) {
        let mut lengths: BTreeMap<usize, usize> = BTreeMap::new();
        for group in groups(&case) {
            for (offset, row) in group.rows.iter().enumerate() {
                if let Row::Active { sequence, first, past, .. } = row {
                    let pending = &case.pending[*sequence];
                    let slot = Slot { slab: group.slab, row: group.first_row + offset };
                    prop_assert_eq!(slot, pending.slot);
                    let done = lengths.entry(*sequence).or_default();
                    prop_assert_eq!((*first, *past), (*done, pending.past + *done));
                    *done += group.seq;
                }
            }
        }
        for (index, pending) in case.pending.iter().enumerate() {
            prop_assert_eq!(lengths.get(&index).copied().unwrap_or(0), pending.tokens);
        }
    }

    #[test]
    fn groups_are_within_the_limits(case in cases()) {
        for group in groups(&case) {
            let limits = &case.limits;
            prop_assert!(!group.rows.is_empty() && group.first_row + group.rows.len() <= limits.rows);
            prop_assert!((1..=limits.seq).contains(&group.seq));
            if limits.all_logits {
                prop_assert!(group.rows.len() * group.seq <= limits.logits);
            }
        }
    }

    #[test]
    fn an_idle_row_is_written_behind_its_tokens_and_inside_of_its_cache(case in cases()) {
        let mut done = vec![0; case.pending.len()];
        for group in groups(&case) {
            let mut idle_tokens = 0;
            for (offset, row) in group.rows.iter().enumerate() {
                let slot = Slot { slab: group.slab, row: group.first_row + offset };
                let owner = case.pending.iter().position(|pending| pending.slot == slot);
                match row {
                    Row::Idle { past } => {
                        let length = owner.map_or(case.idle[slot.slab][slot.row], |owner| case.pending[owner].past + done[owner]);
                        prop_assert_eq!(*past, length);
                        prop_assert!(past + group.seq <= case.limits.length);
                        idle_tokens += group.seq;
                    }
                    Row::Active { sequence, .. } => done[*sequence] += group.seq,
                }
            }
            prop_assert!(idle_tokens <= IDLE_TOKENS);
            let ends = [group.rows.first(), group.rows.last()];
            prop_assert!(ends.iter().all(|row| matches!(row, Some(Row::Active { .. }))), "idle rows are between others");
        }
    }

    #[test]
    fn the_wanted_logits_are_those_asked_for(case in cases()) {
        let mut positions: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for group in groups(&case) {
            for row in &group.rows {
                if let Row::Active { sequence, first, wanted, .. } = row {
                    prop_assert!(wanted.end <= group.seq);
                    // The engine has no others.
                    prop_assert!(case.limits.all_logits || wanted.is_empty() || *wanted == (group.seq - 1..group.seq));
                    positions.entry(*sequence).or_default().extend(wanted.clone().map(|at| first + at));
                }
            }
        }
        for (index, pending) in case.pending.iter().enumerate() {
            let expected: Vec<usize> = match pending.request {
                LogitsRequest::None => Vec::new(),
                LogitsRequest::Last => vec![pending.tokens - 1; usize::from(pending.tokens > 0)],
                LogitsRequest::All => (0..pending.tokens).collect(),
            };
            if pending.tokens > 0 {
                prop_assert_eq!(positions.get(&index).cloned().unwrap_or_default(), expected);
            }
        }
    }
}

fn decode(slab: usize, row: usize, past: usize) -> Pending {
    Pending { slot: Slot { slab, row }, past, tokens: 1, request: LogitsRequest::Last }
}

const LIMITS: Limits = Limits { rows: 8, seq: 16, length: 32, all_logits: false, logits: 8 };

#[test]
fn neighbours_that_decode_run_together_and_rows_between_them_are_filled_in() {
    let pending = [decode(0, 3, 7), decode(0, 0, 5), decode(1, 2, 1)];
    let groups = group(&pending, |slot| 10 + slot.row, &LIMITS);
    let places: Vec<_> = groups.iter().map(|group| (group.slab, group.first_row, group.rows.len())).collect();
    assert_eq!(places, [(0, 0, 4), (1, 2, 1)]);
    assert_eq!(groups[0].rows[1..3], [Row::Idle { past: 11 }, Row::Idle { past: 12 }]);
}

#[test]
fn a_full_row_is_never_filled_in() {
    let pending = [decode(0, 0, 5), decode(0, 2, 7)];
    let groups = group(&pending, |_| LIMITS.length, &LIMITS);
    assert_eq!(groups.iter().map(|group| group.rows.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn long_prompts_run_in_pieces_beside_sequences_that_decode() {
    let prompt = Pending { tokens: 20, ..decode(0, 1, 0) };
    let groups = group(&[decode(0, 0, 5), prompt], |_| 0, &LIMITS);
    let sizes: Vec<_> = groups.iter().map(|group| (group.seq, group.rows.len())).collect();
    assert_eq!(sizes, [(1, 1), (16, 1), (4, 1)]);
}
