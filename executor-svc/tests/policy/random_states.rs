//! Any arrivals, lengths, cancels, deadlines, stalls and memory: the policy's promises hold in every state on the way,
//! and everything ends.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use roundhouse_executor::scheduler::{
    Candidate, Memory, PaceLimits, Plan, Policy, PolicyLimits, Refusal, Status, StepLimits, TenantId,
};
use roundhouse_executor::session::KvCost;

use crate::common::{BLOCK, CAPACITY, cost, queued};

/// Longer than a client that does not read is waited for, in steps.
const STALL_STEPS: usize = 40;

#[derive(Debug, Clone)]
enum Event {
    Arrive {
        tenant: u8,
        priority: i32,
        prompt: usize,
        output: usize,
        scored: bool,
        session: usize,
    },
    Cancel(usize),
    Stall(usize),
    Read(usize),
    /// Another engine takes a part of what is free, or gives back what it has.
    Others(u64),
    /// A session becomes idle with so many blocks.
    Idle(u64),
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    let length = prop_oneof![3 => 1..80_usize, 1 => 1..900_usize];
    let arrive =
        (0..4_u8, -3..4, length, 1..60_usize, any::<bool>(), prop_oneof![2 => Just(0), 1 => 0..300_usize])
            .prop_map(|(tenant, priority, prompt, output, scored, session)| Event::Arrive {
                tenant,
                priority,
                prompt,
                output,
                scored,
                session,
            });
    prop_oneof![
        6 => arrive,
        1 => any::<usize>().prop_map(Event::Cancel),
        2 => any::<usize>().prop_map(Event::Stall),
        2 => any::<usize>().prop_map(Event::Read),
        1 => (0..8_u64).prop_map(Event::Others),
        1 => (1..6_u64).prop_map(Event::Idle),
        9 => Just(Event::Nothing),
    ]
}

struct Generation {
    candidate: Candidate,
    arrived: Duration,
    output: usize,
    stalled: Option<usize>,
}

struct Machine {
    policy: Policy,
    limits: PolicyLimits,
    cost: Arc<KvCost>,
    total: u64,
    others: u64,
    idle: u64,
    generations: Vec<Generation>,
    now: Duration,
    next_id: u64,
    ended: u64,
}

impl Machine {
    fn new(limits: PolicyLimits, total: u64) -> Self {
        Self {
            policy: Policy::new(limits, cost()),
            limits,
            cost: cost(),
            total,
            others: 0,
            idle: 0,
            generations: Vec::new(),
            now: Duration::ZERO,
            next_id: 0,
            ended: 0,
        }
    }

    fn held(&self) -> u64 {
        self.generations.iter().map(|generation| generation.candidate.held).sum()
    }

    fn free(&self) -> u64 {
        self.total.checked_sub(self.held() + self.others + self.idle).expect("more memory than there is")
    }

    fn one_of(&mut self, pick: usize) -> Option<&mut Generation> {
        let count = self.generations.len().max(1);
        self.generations.get_mut(pick % count)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { tenant, priority, prompt, output, scored, session } => {
                let fits = self.cost.tokens_in(self.total, CAPACITY);
                // What can never fit is refused before it comes here.
                let capacity = (prompt + session + output).clamp(1, fits);
                let held = self.cost.bytes(session, capacity);
                let session = if held <= self.idle { session.min(capacity - 1) } else { 0 };
                let held = if session == 0 { 0 } else { held };
                self.idle -= held;
                let candidate = Candidate {
                    tenant: TenantId::of(&tenant.to_string()),
                    priority,
                    cached: session,
                    held,
                    capacity,
                    scored,
                    ..queued(self.next_id, prompt.min(capacity - session).max(1))
                };
                self.next_id += 1;
                self.generations.push(Generation { candidate, arrived: self.now, output, stalled: None });
            }
            Event::Cancel(pick) => {
                let count = self.generations.len();
                if count > 0 {
                    self.generations.remove(pick % count);
                    self.ended += 1;
                }
            }
            Event::Stall(pick) => {
                if let Some(generation) = self.one_of(pick)
                    && generation.candidate.status != Status::Queued
                {
                    generation.stalled.get_or_insert(0);
                }
            }
            Event::Read(pick) => {
                if let Some(generation) = self.one_of(pick) {
                    generation.stalled = None;
                }
            }
            Event::Others(blocks) => {
                self.others = 0;
                self.others = (blocks * BLOCK).min(self.free());
            }
            Event::Idle(blocks) => self.idle += (blocks * BLOCK).min(self.free()),
            Event::Nothing => {}
        }
    }

    fn step(&mut self) {
        let candidates: Vec<Candidate> = self
            .generations
            .iter()
            .map(|generation| Candidate {
                age: self.now - generation.arrived,
                ready: generation.stalled.is_none(),
                ..generation.candidate
            })
            .collect();
        let memory = Memory { free: self.free(), idle: self.idle, total: self.total };
        let plan = self.policy.plan(&candidates, memory);
        self.check(&candidates, memory, &plan);
        let took = self.carry_out(&candidates, &plan);
        self.now += took;
    }

    fn check(&self, candidates: &[Candidate], memory: Memory, plan: &Plan) {
        let step = self.limits.step;
        let streams = |share: &&roundhouse_executor::scheduler::Share| {
            let candidate = candidates[share.index];
            candidate.status == Status::Running && candidate.pending == 1
        };
        let stream_shares = plan.shares.iter().filter(streams).count();
        let all: usize = plan.shares.iter().map(|share| share.tokens).sum();
        assert!(plan.shares.len() <= step.max_sequences, "{plan:?}");
        assert!(all <= step.max_tokens.max(stream_shares + 1), "{plan:?}");
        let scored = plan
            .shares
            .iter()
            .filter(|share| candidates[share.index].scored && candidates[share.index].pending > 1);
        assert!(scored.map(|share| share.tokens).sum::<usize>() <= step.max_scored_tokens, "{plan:?}");

        let mut mentioned = vec![0; candidates.len()];
        let refused = plan.refused.iter().map(|&(index, _)| index);
        let shared = plan.shares.iter().map(|share| share.index);
        refused.chain(shared).chain(plan.dropped.iter().copied()).for_each(|index| mentioned[index] += 1);
        assert!(mentioned.iter().all(|&times| times <= 1), "{plan:?}");
        for share in &plan.shares {
            let candidate = candidates[share.index];
            assert!(candidate.ready && share.tokens >= 1 && share.tokens <= candidate.pending, "{plan:?}");
            assert!(share.reserve >= candidate.cached + share.tokens, "{plan:?}");
        }
        for &(index, refusal) in &plan.refused {
            assert_eq!(refusal, Refusal::QueueTimeout);
            assert!(candidates[index].status == Status::Queued);
        }

        // A stream waits for no prompt: only for memory, or for its turn where there are more than places.
        let running: Vec<_> = (0..candidates.len())
            .filter(|&index| candidates[index].status == Status::Running && candidates[index].ready)
            .collect();
        if running.len() <= step.max_sequences {
            for index in running.into_iter().filter(|&index| candidates[index].pending == 1) {
                let goes_on = plan.shares.iter().any(|share| share.index == index);
                assert!(goes_on || plan.dropped.contains(&index), "{candidates:?} {plan:?}");
            }
        }
        // There is always something to do, unless others have the memory.
        let could = candidates.iter().any(|candidate| candidate.ready && candidate.pending > 0);
        let idles = plan.shares.is_empty() && plan.dropped.is_empty() && plan.refused.is_empty();
        if could && idles {
            assert!(self.others > 0, "{candidates:?} {memory:?}");
        }
        assert!(plan.drop_idle <= memory.idle, "{plan:?}");
    }

    fn carry_out(&mut self, candidates: &[Candidate], plan: &Plan) -> Duration {
        self.idle -= plan.drop_idle;
        for &index in &plan.dropped {
            let candidate = &mut self.generations[index].candidate;
            assert!(candidate.held > 0, "{plan:?}");
            candidate.pending += candidate.cached;
            (candidate.cached, candidate.held) = (0, 0);
            if candidate.status == Status::Running {
                candidate.status = Status::Preempted;
            }
        }
        let mut over: Vec<usize> = plan.refused.iter().map(|&(index, _)| index).collect();
        for &index in &over {
            self.generations[index].candidate.held = 0;
        }
        let mut tokens = 0;
        for share in &plan.shares {
            let generation = &mut self.generations[share.index];
            let candidate = &mut generation.candidate;
            candidate.held = candidate.held.max(self.cost.bytes(share.reserve, candidate.capacity));
            candidate.status = Status::Running;
            candidate.cached += share.tokens;
            candidate.pending -= share.tokens;
            tokens += share.tokens;
            assert!(candidate.cached <= candidate.capacity);
            assert!(candidate.held >= self.cost.bytes(candidate.cached, candidate.capacity));
            if candidate.pending == 0 {
                generation.output -= 1;
                if generation.output == 0 || candidate.cached == candidate.capacity {
                    over.push(share.index);
                } else {
                    candidate.pending = 1;
                }
            }
        }
        // `free` checks that there is no more in use than there is.
        self.free();
        for (index, generation) in self.generations.iter_mut().enumerate() {
            if let Some(steps) = &mut generation.stalled {
                *steps += 1;
                if *steps > STALL_STEPS && !over.contains(&index) {
                    over.push(index);
                }
            }
        }
        over.sort_unstable();
        for index in over.into_iter().rev() {
            self.generations.remove(index);
            self.ended += 1;
        }
        let took = Duration::from_millis(10.max(tokens as u64));
        if tokens > 0 {
            self.policy.observe(tokens, took);
        }
        assert_eq!(
            candidates.len() as u64 + self.ended,
            self.next_id + (candidates.len() as u64 - self.generations.len() as u64)
        );
        took
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn everything_ends_within_its_bounds(
        events in prop::collection::vec(event(), 1..160),
        max_sequences in 1..9_usize,
        max_tokens in 1..300_usize,
        max_scored_tokens in 1..50_usize,
        blocks in 2..40_u64,
        queue_timeout in prop_oneof![Just(60_000_u64), 50..2000_u64],
    ) {
        let limits = PolicyLimits {
            step: StepLimits { max_sequences, max_tokens, max_scored_tokens },
            pace: PaceLimits::default(),
            queue_timeout: Duration::from_millis(queue_timeout),
            ageing: Duration::from_secs(1),
        };
        let mut machine = Machine::new(limits, blocks * BLOCK);
        for event in events {
            machine.happen(event);
            machine.step();
        }
        machine.others = 0;
        // From here on nobody comes: as many steps as there are tokens are enough, with every history computed again for
        // each time that another one ends, and the time that clients which do not read are waited for.
        let work: usize = machine
            .generations
            .iter()
            .map(|generation| generation.candidate.cached + generation.candidate.pending + generation.output)
            .sum();
        let enough = work * (machine.generations.len() + 1) + STALL_STEPS + 1;
        let mut steps = 0;
        while !machine.generations.is_empty() {
            machine.step();
            steps += 1;
            prop_assert!(steps <= enough, "{} left after {steps} steps", machine.generations.len());
        }
        prop_assert_eq!(machine.ended, machine.next_id);
        prop_assert_eq!(machine.held(), 0);
    }

    #[test]
    fn the_least_important_begins_in_time_however_much_comes_that_is_more_important(
        max_sequences in 1..5_usize,
        prompts in prop::collection::vec(1..120_usize, 8..20),
        blocks in 6..30_u64,
    ) {
        let limits = PolicyLimits {
            step: StepLimits { max_sequences, max_tokens: 64, max_scored_tokens: 64 },
            pace: PaceLimits::default(),
            queue_timeout: Duration::from_secs(3600),
            ageing: Duration::from_secs(1),
        };
        let mut machine = Machine::new(limits, blocks * BLOCK);
        let arrive = |priority, tenant, prompt| {
            Event::Arrive { tenant, priority, prompt, output: 20, scored: false, session: 0 }
        };
        for &prompt in &prompts {
            machine.happen(arrive(10, 0, prompt));
        }
        let least = machine.next_id;
        machine.happen(arrive(-10, 1, 300));
        let mut comes = prompts.iter().cycle();
        // Twenty of priority are twenty seconds; then those ahead of it end first.
        while machine.generations.iter().any(|generation| generation.candidate.id == least) {
            prop_assert!(machine.now < Duration::from_secs(60), "it waits for ever");
            while machine.generations.len() < prompts.len() {
                machine.happen(arrive(10, 0, *comes.next().expect("a cycle")));
            }
            machine.step();
        }
    }
}
