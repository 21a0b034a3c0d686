//! How many tokens of prompts a step may have beside running streams, so that these keep their pace: a model of what
//! steps cost, learned from those that ran. No clock of its own.

use std::time::Duration;

/// How much a new measurement weighs against those before.
const WEIGHT: f64 = 0.2;
/// A measurement counts as at most so many times what was expected: one step that the system held up says little of the
/// next.
const OUTLIER: f64 = 4.0;
/// Deviations above the mean that a step is expected to take.
const DEVIATIONS: f64 = 2.0;
/// What an estimate of larger steps loses with every smaller one that is measured: one that is too high would never be
/// measured again.
const FORGET: f64 = 1.0 / 1024.0;
/// Sizes of steps that are told apart between a power of two and the next one.
const SIZES_A_DOUBLING: usize = 4;
/// Sizes of steps that are told apart.
const SIZES: usize = 20 * SIZES_A_DOUBLING;
/// Prompt tokens that a step has at least, however slow it is: streams that slow down by themselves, as those of a busy machine
/// do, must not keep prompts from ever being done.
const LEAST_PROMPT_TOKENS: usize = 8;

/// How far prompts may slow running streams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaceLimits {
    /// The longest step with running streams and prompts, as a multiple of a step of one token.
    pub of_one_token: f64,
    /// Where the streams alone take longer than that: as a multiple of what they take.
    pub of_streams: f64,
    /// A step that is no longer than this is short enough, whatever the others are.
    pub unnoticed: Duration,
}

impl Default for PaceLimits {
    fn default() -> Self {
        Self { of_one_token: 2.5, of_streams: 1.25, unnoticed: Duration::from_millis(5) }
    }
}

/// What steps cost, by their tokens.
#[derive(Debug, Clone)]
pub struct Pace {
    limits: PaceLimits,
    /// One for each size that was measured.
    points: [Option<Point>; SIZES],
}

#[derive(Debug, Clone, Copy)]
struct Point {
    tokens: f64,
    seconds: f64,
    deviation: f64,
}

impl Point {
    fn expected(&self) -> f64 {
        self.seconds + DEVIATIONS * self.deviation
    }
}

impl Pace {
    /// Nothing is measured yet.
    #[must_use]
    pub fn new(limits: PaceLimits) -> Self {
        Self { limits, points: [None; SIZES] }
    }

    /// Learns of a step of so many tokens.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        let index = size_of(tokens);
        let (tokens, seconds) = (tokens as f64, took.as_secs_f64());
        let below = self.points[..index].iter().flatten().next_back().map_or(0.0, |point| point.seconds);
        match &mut self.points[index] {
            Some(point) => {
                let seconds = seconds.min(point.seconds * OUTLIER);
                point.deviation += WEIGHT * ((seconds - point.seconds).abs() - point.deviation);
                point.seconds += WEIGHT * (seconds - point.seconds);
                point.tokens += WEIGHT * (tokens - point.tokens);
            }
            empty => *empty = Some(Point { tokens, seconds: seconds.max(below), deviation: 0.0 }),
        }
        for point in self.points[index + 1..].iter_mut().flatten() {
            point.seconds -= point.seconds * FORGET;
            point.deviation -= point.deviation * FORGET;
        }
    }

    /// The most tokens of prompts, at least 8 and at most `limit`, beside so many streams that get a token each. Without
    /// streams nobody is held up: `limit`.
    #[must_use]
    pub fn prompt_tokens(&self, streams: usize, limit: usize) -> usize {
        let limit = limit.max(1);
        if streams == 0 {
            return limit;
        }
        let Some(longest) = self.longest(streams) else { return limit };
        let (mut fits, mut too_many) = (LEAST_PROMPT_TOKENS.min(limit), limit + 1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if self.expected(streams + middle) <= longest { fits = middle } else { too_many = middle }
        }
        fits
    }

    /// The longest that a step with so many streams may take in seconds; `None` while nothing is measured.
    fn longest(&self, streams: usize) -> Option<f64> {
        let one_token = self.points.iter().flatten().next()?;
        let of_streams = self.limits.of_streams * self.expected(streams);
        let of_one_token = self.limits.of_one_token * one_token.seconds;
        Some(of_streams.max(of_one_token).max(self.limits.unnoticed.as_secs_f64()))
    }

    /// Seconds that a step of so many tokens is expected to take: between what was measured of fewer and of more tokens.
    /// Beyond the most that were measured it grows as it did before, and with the tokens where that says nothing.
    fn expected(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        let (mut before, mut below): (Option<&Point>, Option<&Point>) = (None, None);
        for point in self.points.iter().flatten() {
            let Some(last) = below else {
                if point.tokens >= tokens {
                    return point.expected();
                }
                below = Some(point);
                continue;
            };
            if point.tokens >= tokens {
                let part = (tokens - last.tokens) / (point.tokens - last.tokens);
                // What costs less with more tokens is noise.
                let rise = (point.expected() - last.expected()).max(0.0);
                return last.expected() + part * rise;
            }
            (before, below) = (below, Some(point));
        }
        let Some(last) = below else { return 0.0 };
        let in_proportion = last.expected() / last.tokens;
        let slope = before.map_or(in_proportion, |before| {
            (last.expected() - before.expected()).max(0.0) / (last.tokens - before.tokens)
        });
        // Twice the tokens may be where another bound sets in: a step further at a time.
        let near = (tokens - last.tokens).min(last.tokens);
        let far = tokens - last.tokens - near;
        last.expected() + near * slope + far * slope.max(in_proportion)
    }
}

/// Which size a step of so many tokens is of: sizes are exact up to 8 tokens, and a quarter wide above.
fn size_of(tokens: usize) -> usize {
    let tokens = tokens.max(1);
    let doubling = tokens.ilog2() as usize;
    // The two bits after the highest one.
    let within = if doubling < 2 { tokens << (2 - doubling) } else { tokens >> (doubling - 2) } & 3;
    (doubling * SIZES_A_DOUBLING + within).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PaceLimits = PaceLimits { of_one_token: 2.5, of_streams: 1.5, unnoticed: Duration::ZERO };

    /// A machine that reads its weights in 10 ms and computes a token in 1 ms, whichever takes longer.
    fn machine(tokens: usize) -> Duration {
        Duration::from_millis(10.max(tokens as u64))
    }

    /// Steps of so many streams with as many prompt tokens as are allowed.
    fn run(pace: &mut Pace, streams: usize, steps: usize, cost: impl Fn(usize) -> Duration) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..steps {
            let tokens = streams + pace.prompt_tokens(streams, 512);
            let took = cost(tokens);
            longest = longest.max(took);
            pace.observe(tokens, took);
        }
        longest
    }

    #[test]
    fn without_streams_a_prompt_gets_everything() {
        let mut pace = Pace::new(LIMITS);
        assert_eq!(pace.prompt_tokens(0, 512), 512);
        pace.observe(1, machine(1));
        assert_eq!(pace.prompt_tokens(0, 512), 512);
    }

    #[test]
    fn it_finds_the_most_tokens_that_keep_the_pace() {
        let mut pace = Pace::new(LIMITS);
        pace.observe(512, machine(512));
        pace.observe(1, machine(1));
        run(&mut pace, 1, 200, machine);
        let found = 1 + pace.prompt_tokens(1, 512);
        // 2.5 steps of one token are 25 ms, which are 25 tokens.
        assert!((20..=25).contains(&found), "{found}");
        assert!(run(&mut pace, 1, 1000, machine) <= Duration::from_millis(25));
    }

    #[test]
    fn it_never_goes_far_beyond_the_bound_while_it_learns() {
        let mut pace = Pace::new(LIMITS);
        pace.observe(1, machine(1));
        let longest = run(&mut pace, 1, 300, machine);
        assert!(longest <= Duration::from_millis(40), "{longest:?}");
    }

    #[test]
    fn streams_that_take_longer_alone_leave_prompts_a_part() {
        let mut pace = Pace::new(LIMITS);
        pace.observe(1, machine(1));
        for _ in 0..50 {
            pace.observe(64, machine(64));
        }
        run(&mut pace, 64, 300, machine);
        let found = pace.prompt_tokens(64, 512);
        // Half of what the streams take is 32 tokens, but for what lies between the sizes that were measured.
        assert!((16..=40).contains(&found), "{found}");
    }

    #[test]
    fn a_step_that_was_held_up_is_forgotten() {
        let mut pace = Pace::new(LIMITS);
        pace.observe(1, machine(1));
        run(&mut pace, 1, 100, machine);
        for _ in 0..3 {
            pace.observe(16, Duration::from_secs(10));
        }
        assert!(pace.prompt_tokens(1, 512) < 16);
        run(&mut pace, 1, 8000, machine);
        let found = 1 + pace.prompt_tokens(1, 512);
        assert!((20..=25).contains(&found), "{found}");
    }

    #[test]
    fn a_machine_that_computes_for_nothing_gets_whole_prompts() {
        let mut pace = Pace::new(LIMITS);
        run(&mut pace, 4, 50, |_| Duration::from_millis(10));
        assert_eq!(pace.prompt_tokens(4, 512), 512);
    }

    #[test]
    fn a_fast_machine_gives_prompts_the_time_that_nobody_notices() {
        let unnoticed = Duration::from_millis(5);
        let mut pace = Pace::new(PaceLimits { unnoticed, ..LIMITS });
        // Two and a half of its steps of one token are a quarter of a millisecond.
        let fast = |tokens: usize| Duration::from_micros(100 + 20 * tokens as u64);
        pace.observe(1, fast(1));
        run(&mut pace, 16, 300, fast);
        let found = pace.prompt_tokens(16, 512);
        assert!((150..=229).contains(&found), "{found}");
        assert!(run(&mut pace, 16, 300, fast) <= unnoticed);
    }

    #[test]
    fn there_is_always_a_token_and_never_more_than_the_limit() {
        let mut pace = Pace::new(PaceLimits { of_one_token: 1.0, of_streams: 1.0, ..LIMITS });
        for tokens in [1, 2, 3, 700, 1 << 30] {
            pace.observe(tokens, Duration::from_millis(tokens as u64));
        }
        for (streams, limit) in [(1, 1), (1, 0), (3, 7), (700, 512), (1 << 20, 3)] {
            let tokens = pace.prompt_tokens(streams, limit);
            assert!(tokens >= 1 && tokens <= limit.max(1), "{streams} {limit} {tokens}");
        }
    }
}
