//! Attention over ragged batches, on every instruction set, against the formula in fp64.

mod common;

use common::{Numbers, Random, TYPES, Type, assert_close, each_isa};
use roundhouse_cpu_kernels::{
    AttentionArgs, AttentionSequence, KvView, Scratch, StridedRows, StridedRowsMut, ThreadPool, attention,
};

/// Values are below 1 in magnitude and so are their weighted means; scores of this size round in about their sixth digit.
const TOLERANCE: f64 = 5e-6;

/// Numbers of one sequence: keys and values `[kv_heads, capacity, dim + gap]`, queries `[tokens, heads, dim]`.
struct Case {
    tokens: usize,
    len: usize,
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
        let capacity = len + 2;
        Self {
            tokens,
            len,
            queries: random.numbers(tokens * args.query_heads * args.head_dim, 2.0),
            keys: Numbers::new(of, &random.numbers(args.kv_heads * capacity * (args.head_dim + GAP), 1.0)),
            values: Numbers::new(of, &random.numbers(args.kv_heads * capacity * (args.value_dim + GAP), 1.0)),
            mask: masked.then(|| {
                let hide = |random: &mut Random| random.bits().is_multiple_of(4);
                (0..tokens * len)
                    .map(|_| if hide(random) { f32::NEG_INFINITY } else { random.number() })
                    .collect()
            }),
        }
    }

    fn view<'a>(&self, numbers: &'a Numbers, dim: usize) -> KvView<'a> {
        let row_stride = dim + GAP;
        KvView {
            elements: numbers.elements(),
            head_stride: (self.len + 2) * row_stride,
            row_stride,
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
            keys: self.view(&self.keys, args.head_dim),
            values: self.view(&self.values, args.value_dim),
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
        let start = |j: usize, dim: usize| (kv_head * (self.len + 2) + j) * (dim + GAP);
        let score = |j: usize| {
            let sees = (!args.causal || j as i64 <= position)
                && args.window.is_none_or(|window| position - (j as i64) < window as i64);
            if !sees {
                return f64::NEG_INFINITY;
            }
            let from = start(j, args.head_dim);
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
                    .map(|(j, w)| w * self.values.at(start(j, args.value_dim) + d))
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
