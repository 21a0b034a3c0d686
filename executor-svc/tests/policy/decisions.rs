//! Single decisions.

use std::time::Duration;

use roundhouse_executor::scheduler::{
    Candidate, Memory, PolicyLimits, Refusal, Status, StepLimits, TenantId,
};

use crate::common::{BLOCK, CAPACITY, LIMITS, PLENTY, TOKEN, policy, prompt, queued, stream, tokens};

fn memory(free: u64, idle: u64) -> Memory {
    Memory { free, idle, total: 1 << 30 }
}

#[test]
fn streams_go_first_and_a_prompt_gets_the_rest() {
    let plan = policy(LIMITS).plan(&[queued(1, 500), stream(2, 10), stream(3, 10)], PLENTY);
    assert_eq!(tokens(&plan), [(0, 98), (1, 1), (2, 1)]);
}

#[test]
fn prompts_beside_streams_are_bounded_by_time() {
    // At least eight tokens, however long they take; and as many as two and a half steps of one token have the time for: of
    // 10 ms and one for each token, 27.5 ms.
    for (weights, prompt) in [(0, 8), (10, 15)] {
        let mut policy = policy(LIMITS);
        for tokens in [1, 2, 4, 8, 16, 32, 64] {
            policy.observe(tokens, Duration::from_millis(weights + tokens as u64));
        }
        let plan = policy.plan(&[queued(1, 500), stream(2, 10), stream(3, 10)], PLENTY);
        assert_eq!(tokens(&plan), [(0, prompt), (1, 1), (2, 1)]);
    }
    let mut policy = policy(LIMITS);
    policy.observe(1, Duration::from_millis(1));
    let alone = policy.plan(&[queued(1, 500), Candidate { ready: false, ..stream(2, 10) }], PLENTY);
    assert_eq!(tokens(&alone), [(0, 100)]);
}

#[test]
fn the_shorter_prompt_goes_first_and_the_longer_one_gets_the_rest() {
    assert_eq!(tokens(&policy(LIMITS).plan(&[queued(1, 500), queued(2, 30)], PLENTY)), [(0, 70), (1, 30)]);
    assert_eq!(tokens(&policy(LIMITS).plan(&[queued(1, 500), queued(2, 500)], PLENTY)), [(0, 100)]);
}

#[test]
fn the_longer_prompt_goes_first_when_it_has_waited() {
    let waited = Candidate { age: Duration::from_millis(1100), ..queued(1, 500) };
    assert_eq!(tokens(&policy(LIMITS).plan(&[waited, queued(2, 30)], PLENTY)), [(0, 100)]);
}

#[test]
fn a_higher_priority_goes_first_until_the_other_has_waited_for_it() {
    let important = Candidate { priority: 3, ..queued(2, 500) };
    for (waited, first) in [(0, 1), (2900, 1), (4000, 0)] {
        let other = Candidate { age: Duration::from_millis(waited), ..queued(1, 500) };
        assert_eq!(tokens(&policy(LIMITS).plan(&[other, important], PLENTY)), [(first, 100)], "{waited}");
    }
}

#[test]
fn tenants_take_turns_however_much_one_of_them_asks_for() {
    let [many, few] = ["many", "few"].map(TenantId::of);
    let mut policy = policy(LIMITS);
    let mut candidates: Vec<_> = (0..10).map(|id| Candidate { tenant: many, ..queued(id, 100) }).collect();
    assert_eq!(tokens(&policy.plan(&candidates, PLENTY)), [(0, 100)]);
    candidates.remove(0);
    candidates.push(Candidate { tenant: few, ..queued(20, 100) });
    // Who comes anew has had as much as the one before; then the one that has had less is first.
    let mut served = Vec::new();
    for _ in 0..4 {
        let plan = policy.plan(&candidates, PLENTY);
        let index = plan.shares[0].index;
        served.push(candidates[index].tenant == few);
        if !served[served.len() - 1] {
            candidates.remove(index);
        }
    }
    assert_eq!(served.iter().filter(|&&is_few| is_few).count(), 2, "{served:?}");
}

#[test]
fn generations_beyond_the_places_wait() {
    let five: Vec<_> = (0..5).map(|id| queued(id, 10)).collect();
    let plan = policy(LIMITS).plan(&five, PLENTY);
    assert_eq!(tokens(&plan), [(0, 10), (1, 10), (2, 10), (3, 10)]);
    let full = [stream(1, 10), stream(2, 10), stream(3, 10), stream(4, 10), queued(5, 10)];
    assert_eq!(tokens(&policy(LIMITS).plan(&full, PLENTY)), [(0, 1), (1, 1), (2, 1), (3, 1)]);
}

#[test]
fn one_whose_client_has_no_room_keeps_no_place() {
    let stalled = Candidate { ready: false, ..stream(1, 10) };
    let candidates = [stalled, stream(2, 10), stream(3, 10), stream(4, 10), queued(5, 10)];
    assert_eq!(tokens(&policy(LIMITS).plan(&candidates, PLENTY)), [(1, 1), (2, 1), (3, 1), (4, 10)]);
}

#[test]
fn streams_beyond_the_places_take_turns() {
    let six: Vec<_> = (1..7).map(|id| stream(id, 10)).collect();
    let mut policy = policy(LIMITS);
    let mut counts = [0; 6];
    for _ in 0..6 {
        for (index, _) in tokens(&policy.plan(&six, PLENTY)) {
            counts[index] += 1;
        }
    }
    assert_eq!(counts, [4; 6]);
}

#[test]
fn scored_prompts_share_fewer_tokens_and_leave_the_rest_to_others() {
    let scored = |id, pending| Candidate { scored: true, ..queued(id, pending) };
    assert_eq!(tokens(&policy(LIMITS).plan(&[scored(1, 500)], PLENTY)), [(0, 30)]);
    let plan = policy(LIMITS).plan(&[scored(1, 20), scored(2, 40), queued(3, 500)], PLENTY);
    assert_eq!(tokens(&plan), [(0, 20), (1, 10), (2, 70)]);
}

#[test]
fn more_streams_than_tokens_still_leave_a_prompt_one() {
    let step = StepLimits { max_sequences: 8, max_tokens: 2, max_scored_tokens: 1 };
    let candidates = [stream(1, 9), stream(2, 9), stream(3, 9), queued(4, 50)];
    let plan = policy(PolicyLimits { step, ..LIMITS }).plan(&candidates, PLENTY);
    assert_eq!(tokens(&plan), [(0, 1), (1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_generation_begins_when_there_is_memory_for_its_history_and_a_block_for_each_stream() {
    let candidates = [stream(1, 10), queued(2, 100)];
    // 101 tokens are two blocks, and one is for the stream.
    let plan = policy(LIMITS).plan(&candidates, memory(3 * BLOCK, 0));
    assert_eq!(tokens(&plan), [(0, 1), (1, 99)]);
    assert_eq!(plan.shares[1].reserve, 101);
    let too_little = policy(LIMITS).plan(&candidates, memory(3 * BLOCK - 1, 0));
    assert_eq!((tokens(&too_little), too_little.drop_idle), (vec![(0, 1)], 0));
    assert!(too_little.dropped.is_empty());
}

#[test]
fn idle_sessions_give_their_memory_before_anything_else() {
    let candidates = [stream(1, 64), stream(2, 64)];
    let plan = policy(LIMITS).plan(&candidates, memory(BLOCK / 2, 4 * BLOCK));
    assert_eq!((tokens(&plan), plan.drop_idle), (vec![(0, 1), (1, 1)], 3 * BLOCK / 2));
    assert!(plan.dropped.is_empty());
}

#[test]
fn the_youngest_gives_its_memory_when_there_is_no_other() {
    let candidates = [stream(2, 64), stream(1, 64), stream(3, 100)];
    let plan = policy(LIMITS).plan(&candidates, memory(0, 0));
    // Two blocks of the youngest are one for each of the others.
    assert_eq!((tokens(&plan), plan.dropped), (vec![(0, 1), (1, 1)], vec![2]));
}

#[test]
fn a_stream_of_a_higher_priority_keeps_its_memory() {
    let candidates = [Candidate { priority: 1, ..stream(2, 64) }, stream(1, 64)];
    let plan = policy(LIMITS).plan(&candidates, memory(0, 0));
    assert_eq!((tokens(&plan), plan.dropped), (vec![(0, 1)], vec![1]));
}

#[test]
fn who_waits_or_is_not_read_gives_its_memory_before_who_runs() {
    let waiting = Candidate { held: BLOCK, ..queued(0, 100) };
    let stalled = Candidate { ready: false, ..stream(1, 64) };
    let plan = policy(LIMITS).plan(&[stream(3, 64), stream(2, 64), stalled, waiting], memory(0, 0));
    assert_eq!((tokens(&plan), plan.dropped), (vec![(0, 1), (1, 1)], vec![3, 2]));
    // A stalled one also makes room for who waits.
    let full = policy(LIMITS).plan(&[queued(5, 60), stalled], memory(0, 0));
    assert_eq!((tokens(&full), full.dropped), (vec![(0, 60)], vec![1]));
}

#[test]
fn a_preempted_generation_goes_on_before_new_ones() {
    let preempted = Candidate { status: Status::Preempted, ..queued(1, 200) };
    assert_eq!(tokens(&policy(LIMITS).plan(&[queued(2, 10), preempted], PLENTY)), [(1, 100)]);
    // And one that finds no memory is not overtaken by who needs less.
    let candidates = [queued(2, 10), preempted, stream(0, 10)];
    assert_eq!(tokens(&policy(LIMITS).plan(&candidates, memory(3 * BLOCK, 0))), [(2, 1)]);
}

#[test]
fn a_last_stream_without_memory_gives_its_own_to_those_of_other_engines() {
    let plan = policy(LIMITS).plan(&[stream(1, 64)], memory(0, 0));
    assert_eq!((tokens(&plan), plan.dropped), (vec![], vec![0]));
}

#[test]
fn what_waits_too_long_or_can_never_fit_is_refused() {
    let late = Candidate { age: LIMITS.queue_timeout, ..queued(1, 10) };
    let large = queued(2, 1000);
    let preempted = Candidate { status: Status::Preempted, ..late };
    let memory = Memory { free: 700 * TOKEN, idle: 0, total: 700 * TOKEN };
    let plan = policy(LIMITS).plan(&[late, large, preempted], memory);
    let wanted = 1024 * TOKEN;
    assert_eq!(plan.refused, [(0, Refusal::QueueTimeout), (1, Refusal::TooLarge { wanted })]);
    assert_eq!(tokens(&plan), [(2, 10)]);
}

#[test]
fn a_prompt_that_runs_keeps_to_the_memory_that_it_began_with() {
    let plan = policy(LIMITS).plan(&[prompt(1, 60, 300)], memory(0, 0));
    assert_eq!(tokens(&plan), [(0, 100)]);
    let full = Candidate { cached: CAPACITY - 1, ..prompt(1, 100, 1) };
    assert_eq!(tokens(&policy(LIMITS).plan(&[full], PLENTY)), [(0, 1)]);
}
