//! Attention over ragged batches, on every instruction set, against the formula in fp64.

mod common;

use common::{Numbers, Random, TYPES, Type, assert_close, each_isa};
use roundhouse_cpu_kernels::{
    AttentionArgs, AttentionSequence, Isa, KvView, Scratch, StridedRows, StridedRowsMut, ThreadPool,
    attention,
};

/// Values are below 1 in magnitude and so are their weighted means; scores of this size round in about their sixth digit.
const TOLERANCE: f64 = 5e-6;

/// Numbers of one sequence: keys and values `[kv_heads, rows, dim + gap]`, queries `[tokens, heads, dim]`.
struct Case {
    tokens: usize,
    len: usize,
    /// Rows of the keys and of the values.
    rows: [usize; 2],
    queries: Vec<f32>,
    keys: Numbers,
    values: Numbers,
    mask: Option<Vec<f32>>,
}

const GAP: usize = 3;

impl Case {
    fn new(
        random: &mut Random,
        args: &AttentionArgs,
        of: Type,
        tokens: usize,
        len: usize,
        masked: bool,
    ) -> Self {
        let mut cache =
            |dim: usize| Numbers::new(of, &random.numbers(args.kv_heads * (len + 2) * (dim + GAP), 1.0));
        let (keys, values) = (cache(args.head_dim), cache(args.value_dim));
        Self {
            tokens,
            len,
            rows: [len + 2; 2],
            queries: random.numbers(tokens * args.query_heads * args.head_dim, 2.0),
            keys,
            values,
            mask: masked.then(|| {
                let hide = |random: &mut Random| random.bits().is_multiple_of(4);
                (0..tokens * len)
                    .map(|_| if hide(random) { f32::NEG_INFINITY } else { random.number() })
                    .collect()
            }),
        }
    }

    /// With rings of so many rows for keys and values; what no query sees is not a number.
    fn with_rings(
        random: &mut Random,
        args: &AttentionArgs,
        of: Type,
        tokens: usize,
        len: usize,
        rows: [usize; 2],
    ) -> Self {
        let first_seen = (len - tokens + 1).saturating_sub(args.window.unwrap_or(usize::MAX));
        let mut ring = |rows: usize, dim: usize| {
            let mut numbers = vec![f32::NAN; args.kv_heads * rows * (dim + GAP)];
            for head in 0..args.kv_heads {
                for position in first_seen..len {
                    let start = (head * rows + position % rows) * (dim + GAP);
                    numbers[start..start + dim].copy_from_slice(&random.numbers(dim, 1.0));
                }
            }
            Numbers::new(of, &numbers)
        };
        let (keys, values) = (ring(rows[0], args.head_dim), ring(rows[1], args.value_dim));
        let queries = random.numbers(tokens * args.query_heads * args.head_dim, 2.0);
        Self { tokens, len, rows, queries, keys, values, mask: None }
    }

    fn view<'a>(&self, numbers: &'a Numbers, dim: usize, rows: usize) -> KvView<'a> {
        let row_stride = dim + GAP;
        KvView {
            elements: numbers.elements(),
            head_stride: rows * row_stride,
            row_stride,
            rows,
            len: self.len,
        }
    }

    fn sequence<'a>(&'a self, args: &AttentionArgs, out: &'a mut [f32]) -> AttentionSequence<'a> {
        AttentionSequence {
            queries: StridedRows {
                data: &self.queries,
                token_stride: args.query_heads * args.head_dim,
                head_stride: args.head_dim,
            },
            tokens: self.tokens,
            keys: self.view(&self.keys, args.head_dim, self.rows[0]),
            values: self.view(&self.values, args.value_dim, self.rows[1]),
            mask: self.mask.as_deref(),
            out: StridedRowsMut {
                data: out,
                token_stride: args.query_heads * args.value_dim,
                head_stride: args.value_dim,
            },
        }
    }

    /// The result for query `t` of head `h` by the definition.
    fn expected(&self, args: &AttentionArgs, t: usize, h: usize) -> Vec<f64> {
        let kv_head = h / (args.query_heads / args.kv_heads);
        let query = &self.queries[(t * args.query_heads + h) * args.head_dim..][..args.head_dim];
        let position = t as i64 + self.len as i64 - self.tokens as i64;
        let start = |j: usize, dim: usize, rows: usize| (kv_head * rows + j % rows) * (dim + GAP);
        let score = |j: usize| {
            let sees = (!args.causal || j as i64 <= position)
                && args.window.is_none_or(|window| position - (j as i64) < window as i64);
            if !sees {
                return f64::NEG_INFINITY;
            }
            let from = start(j, args.head_dim, self.rows[0]);
            let product: f64 =
                query.iter().enumerate().map(|(d, &q)| f64::from(q) * self.keys.at(from + d)).sum();
            let score = product * f64::from(args.scale);
            let score = args.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
            score + self.mask.as_ref().map_or(0.0, |mask| f64::from(mask[t * self.len + j]))
        };
        let scores: Vec<f64> = (0..self.len).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> =
            scores.iter().map(|score| if score.is_finite() { (score - max).exp() } else { 0.0 }).collect();
        let sum: f64 = weights.iter().sum();
        (0..args.value_dim)
            .map(|d| {
                let weighted: f64 = weights
                    .iter()
                    .enumerate()
                    .filter(|(_, weight)| **weight > 0.0)
                    .map(|(j, w)| w * self.values.at(start(j, args.value_dim, self.rows[1]) + d))
                    .sum();
                if sum > 0.0 { weighted / sum } else { 0.0 }
            })
            .collect()
    }
}

fn check(args: &AttentionArgs, threads: &[usize], cases: &[Case]) {
    each_isa(|isa| {
        for &threads in threads {
            let pool = ThreadPool::with_isa(threads, isa);
            let mut outs: Vec<Vec<f32>> =
                cases.iter().map(|case| vec![9.0; case.tokens * args.query_heads * args.value_dim]).collect();
            let mut sequences: Vec<AttentionSequence<'_>> =
                cases.iter().zip(&mut outs).map(|(case, out)| case.sequence(args, out)).collect();
            attention(&pool, &mut Scratch::new(), args, &mut sequences);
            for (index, (case, out)) in cases.iter().zip(&outs).enumerate() {
                for t in 0..case.tokens {
                    for h in 0..args.query_heads {
                        let found = &out[(t * args.query_heads + h) * args.value_dim..][..args.value_dim];
                        for (d, (&found, expected)) in found.iter().zip(case.expected(args, t, h)).enumerate()
                        {
                            let (tokens, len) = (case.tokens, case.len);
                            let what = format!(
                                "sequence {index} tokens {tokens} len {len} query {t} head {h} dim {d} threads {threads}"
                            );
                            assert_close(found, expected, TOLERANCE, what);
                        }
                    }
                }
            }
        }
    });
}

/// A ragged batch: decode steps, chunks and whole prompts.
const RAGGED: [(usize, usize); 9] =
    [(1, 1), (1, 70), (2, 130), (1, 700), (5, 5), (7, 200), (60, 60), (33, 150), (130, 130)];

fn ragged(args: &AttentionArgs, of: Type, masked: bool) -> Vec<Case> {
    let mut random = Random::new(args.head_dim as u64 + 1);
    RAGGED.into_iter().map(|(tokens, len)| Case::new(&mut random, args, of, tokens, len, masked)).collect()
}

const PLAIN: AttentionArgs = AttentionArgs {
    query_heads: 6,
    kv_heads: 2,
    head_dim: 64,
    value_dim: 64,
    scale: 0.125,
    soft_cap: None,
    window: None,
    causal: true,
};

#[test]
fn a_ragged_batch_attends_causally_over_every_type_of_cache() {
    for of in TYPES {
        check(&PLAIN, &[1, 3], &ragged(&PLAIN, of, false));
    }
}

#[test]
fn head_sizes_that_fit_no_vector() {
    for (head_dim, value_dim) in [(1, 1), (5, 7), (40, 33), (80, 80), (128, 20)] {
        let args = AttentionArgs { head_dim, value_dim, scale: 1.0 / (head_dim as f32).sqrt(), ..PLAIN };
        check(&args, &[2], &ragged(&args, Type::F16, false));
    }
}

#[test]
fn groups_of_every_size() {
    for (query_heads, kv_heads) in [(1, 1), (4, 4), (8, 2), (9, 1), (20, 2)] {
        let args = AttentionArgs { query_heads, kv_heads, head_dim: 32, value_dim: 32, ..PLAIN };
        check(&args, &[2], &ragged(&args, Type::Bf16, false));
    }
}

#[test]
fn a_window_hides_what_is_too_far_back() {
    for window in [1, 3, 64, 100] {
        for causal in [true, false] {
            let args = AttentionArgs { window: Some(window), causal, ..PLAIN };
            check(&args, &[2], &ragged(&args, Type::F16, false));
        }
    }
}

/// `window` keys and few enough rows that the checks are quick.
const fn windowed(window: usize) -> AttentionArgs {
    AttentionArgs { head_dim: 24, value_dim: 20, window: Some(window), ..PLAIN }
}

#[test]
fn a_ring_is_read_through_its_end_wherever_that_is() {
    let mut random = Random::new(11);
    // Decode steps and chunks; rings that hold just what is seen, and some that hold more.
    for (window, tokens, more) in
        [(1, 1, 0), (5, 1, 0), (5, 2, 3), (6, 9, 0), (64, 1, 0), (70, 2, 1), (20, 50, 0), (100, 40, 7)]
    {
        let args = windowed(window);
        let rows = window + tokens - 1 + more;
        let cases: Vec<Case> = (rows..=2 * rows)
            .map(|len| Case::with_rings(&mut random, &args, Type::F16, tokens, len, [rows; 2]))
            .collect();
        check(&args, &[1, 3], &cases);
    }
}

#[test]
fn a_ring_of_every_type_many_times_around() {
    let mut random = Random::new(12);
    let args = AttentionArgs { soft_cap: Some(1.5), ..windowed(130) };
    for of in TYPES {
        let cases: Vec<Case> = [(1, 12_345), (2, 9_999), (70, 4_321), (70, 70), (1, 1)]
            .into_iter()
            .map(|(tokens, len)| Case::with_rings(&mut random, &args, of, tokens, len, [199; 2]))
            .collect();
        check(&args, &[1, 2], &cases);
    }
}

#[test]
fn keys_and_values_wrap_each_at_their_own_end() {
    let mut random = Random::new(13);
    let args = windowed(33);
    for (tokens, len) in [(1, 150), (2, 151), (30, 190)] {
        for rows in [[70, 400], [400, 70], [62, 63]] {
            check(&args, &[2], &[Case::with_rings(&mut random, &args, Type::Bf16, tokens, len, rows)]);
        }
    }
}

#[test]
#[should_panic(expected = "a ring holds every position that is seen")]
fn a_ring_without_what_is_seen_is_a_callers_error() {
    let args = windowed(10);
    let case = Case::with_rings(&mut Random::new(14), &args, Type::F32, 4, 100, [12; 2]);
    let mut out = vec![0.0; 4 * args.query_heads * args.value_dim];
    let pool = ThreadPool::new(1);
    attention(&pool, &mut Scratch::new(), &args, &mut [case.sequence(&args, &mut out)]);
}

#[test]
fn scores_are_capped() {
    let args = AttentionArgs { soft_cap: Some(1.5), scale: 0.7, ..PLAIN };
    check(&args, &[2], &ragged(&args, Type::F32, false));
}

#[test]
fn a_mask_is_added() {
    for causal in [true, false] {
        let args = AttentionArgs { causal, ..PLAIN };
        check(&args, &[1, 2], &ragged(&args, Type::F16, true));
    }
}

#[test]
fn without_causality_every_key_is_seen() {
    let args = AttentionArgs { causal: false, ..PLAIN };
    check(&args, &[2], &ragged(&args, Type::F32, false));
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let mut random = Random::new(2);
    for (tokens, len) in [(1, 100), (2, 300), (40, 100), (20, 4), (3, 1), (2, 0)] {
        let mut case = Case::new(&mut random, &PLAIN, Type::F16, tokens, len, true);
        if let Some(mask) = &mut case.mask {
            mask[..len].fill(f32::NEG_INFINITY);
        }
        check(&PLAIN, &[1, 2], &[case]);
    }
}

#[test]
fn very_large_scores_do_not_overflow() {
    let args = AttentionArgs { scale: 40.0, ..PLAIN };
    let mut random = Random::new(8);
    // Of scores this far apart one key gets all the weight; close ties would make the result depend on rounding.
    let mut cases: Vec<Case> = [(1, 90), (30, 90)]
        .into_iter()
        .map(|(t, l)| Case::new(&mut random, &args, Type::F32, t, l, false))
        .collect();
    for case in &mut cases {
        for query in &mut case.queries {
            *query = query.round();
        }
        if let Numbers::F32(keys) = &mut case.keys {
            keys.iter_mut().for_each(|key| *key = (*key * 2.0).round());
        }
    }
    check(&args, &[2], &cases);
}

/// Some queries of a case, with the keys up to the last one's.
fn chunk(case: &Case, args: &AttentionArgs, queries: std::ops::Range<usize>) -> Case {
    let width = args.query_heads * args.head_dim;
    Case {
        tokens: queries.len(),
        len: case.len - case.tokens + queries.end,
        rows: case.rows,
        queries: case.queries[queries.start * width..queries.end * width].to_vec(),
        keys: case.keys.clone(),
        values: case.values.clone(),
        mask: None,
    }
}

fn results(isa: Isa, threads: usize, args: &AttentionArgs, cases: &[Case]) -> Vec<Vec<f32>> {
    let pool = ThreadPool::with_isa(threads, isa);
    let mut outs: Vec<Vec<f32>> =
        cases.iter().map(|case| vec![9.0; case.tokens * args.query_heads * args.value_dim]).collect();
    let mut sequences: Vec<AttentionSequence<'_>> =
        cases.iter().zip(&mut outs).map(|(case, out)| case.sequence(args, out)).collect();
    attention(&pool, &mut Scratch::new(), args, &mut sequences);
    outs
}

#[test]
fn a_query_depends_on_nothing_that_is_computed_with_it() {
    for (window, of) in
        [(None, Type::F32), (None, Type::F16), (Some(100), Type::Bf16), (Some(300), Type::F32)]
    {
        let args = AttentionArgs { window, head_dim: 40, value_dim: 33, ..PLAIN };
        each_isa(|isa| {
            let mut random = Random::new(21);
            let case = Case::new(&mut random, &args, of, 600, 610, false);
            let whole = results(isa, 3, &args, &[chunk(&case, &args, 0..600)]).remove(0);
            let width = args.query_heads * args.value_dim;
            for step in [1, 2, 7, 64, 130] {
                for threads in [1, 4] {
                    // The last queries in chunks of this size, alone and all chunks in one batch.
                    let starts = (0..600).step_by(step).skip(600usize.div_ceil(step).saturating_sub(9));
                    let chunks: Vec<_> = starts.map(|start| start..(start + step).min(600)).collect();
                    let cases: Vec<_> =
                        chunks.iter().map(|queries| chunk(&case, &args, queries.clone())).collect();
                    let together = results(isa, threads, &args, &cases);
                    for ((queries, case), together) in chunks.iter().zip(&cases).zip(together) {
                        let expected = &whole[queries.start * width..queries.end * width];
                        let what = format!("{window:?} {of:?} {} threads {threads} {queries:?}", isa.name());
                        assert!(together == expected, "in a batch: {what}");
                        let alone = results(isa, threads, &args, std::slice::from_ref(case)).remove(0);
                        assert!(alone == expected, "alone: {what}");
                    }
                }
            }
        });
    }
}
