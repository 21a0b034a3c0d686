//! Several steps of streams whose tokens the model finds itself: the next one runs while the tokens of the last are told.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_backend::{Cache, GreedySequence};

use super::generation::Progress;
use super::step_clock::RunningStep;
use super::worker::{Active, Worker, abnormal_end};
use super::{Share, output};

/// Steps that run without a new plan where all generations take part.
const MOST_STEPS: usize = 16;
/// Steps that run without a new plan where others wait for a place, for memory or for their clients.
const MOST_STEPS_BESIDE_OTHERS: usize = 4;

/// A stream in a run.
struct Stream {
    /// Its place among the active generations.
    index: usize,
    cache: Box<dyn Cache>,
    token: u32,
}

impl Worker {
    /// Runs steps in which the model finds the tokens itself, where it does and every sequence of the step is a stream that
    /// wants nothing else; else nothing happens. No more begin when a generation ends or a request comes.
    ///
    /// `planned` is what was done for the first step before it began. Returns what was done beside the last step, which
    /// the caller notes; `None` where nothing happened.
    pub(super) fn decode_run(
        &mut self,
        shares: &[Share],
        step: &RunningStep<'_>,
        began: Instant,
        planned: Duration,
    ) -> Option<Duration> {
        let others = shares.len() < self.active.len();
        let most = if others { MOST_STEPS_BESIDE_OTHERS } else { MOST_STEPS };
        let steps = shares.iter().map(|share| match share.tokens {
            1 => self.active[share.index].generation.greedy_steps(most),
            _ => 0,
        });
        let steps = steps.min().unwrap_or(0);
        if steps == 0 {
            return None;
        }
        let mut streams = self.begin_run(shares, began);
        let indices: Vec<usize> = streams.iter().map(|stream| stream.index).collect();
        let batch = streams
            .iter_mut()
            .map(|stream| GreedySequence { cache: &mut *stream.cache, token: stream.token });
        let mut batch: Vec<GreedySequence<'_>> = batch.collect();
        let model = Arc::clone(&self.parts.model);
        let (mut done, mut last, mut overhead) = (0_usize, began, planned);
        let mut each = |tokens: &[u32]| {
            let now = Instant::now();
            self.observe(tokens.len(), now.saturating_duration_since(std::mem::replace(&mut last, now)));
            if done > 0 {
                self.note_overhead(std::mem::take(&mut overhead));
            }
            done += 1;
            self.tell(&indices, tokens, now);
            let told = Instant::now();
            self.shared.output.note(told - now);
            let goes_on = self.look_around(told);
            let looked = Instant::now();
            overhead += looked - told;
            step.again(looked);
            if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let run = AssertUnwindSafe(|| model.decode_greedily(&mut batch, steps, &mut each));
        let outcome = catch_unwind(run).unwrap_or_else(|_| Err(abnormal_end()));
        for Stream { index, cache, .. } in streams {
            self.active[index].generation.end_run(cache);
        }
        if matches!(outcome, Ok(false)) {
            return None;
        }
        if let Err(error) = outcome {
            self.fail(shares, error);
        }
        for share in shares {
            let active = &mut self.active[share.index];
            active.generation.share();
            // The plan has counted the first token.
            self.policy.serve(active.tenant, done.saturating_sub(1));
        }
        Some(overhead)
    }

    fn begin_run(&mut self, shares: &[Share], now: Instant) -> Vec<Stream> {
        let streams = shares.iter().filter_map(|share| {
            let generation = &mut self.active[share.index].generation;
            generation.begin_step(now);
            let (cache, token) = generation.begin_run()?;
            Some(Stream { index: share.index, cache, token })
        });
        streams.collect()
    }

    /// Hands out the tokens of a step.
    fn tell(&mut self, indices: &[usize], tokens: &[u32], now: Instant) {
        for (&index, &token) in indices.iter().zip(tokens) {
            let Active { generation, has_ended, .. } = &mut self.active[index];
            if *has_ended {
                continue;
            }
            // A fault in one generation's options ends it, and no other.
            let progress = catch_unwind(AssertUnwindSafe(|| generation.take(token, now)));
            let progress = progress.unwrap_or_else(|_| generation.fail(output::abnormal_end()));
            *has_ended = matches!(progress, Progress::Ended);
        }
    }

    /// Takes new requests and looks who has to end. Whether all go on, and nobody came.
    fn look_around(&mut self, now: Instant) -> bool {
        let before = self.active.len();
        let is_open = self.receive_now();
        let stall_timeout = self.config.stall_timeout;
        let mut all_go_on = is_open && self.active.len() == before;
        for active in &mut self.active {
            if !active.has_ended {
                active.has_ended = matches!(active.generation.check(now, stall_timeout), Progress::Ended);
            }
            all_go_on &= !active.has_ended;
        }
        all_go_on
    }
}
