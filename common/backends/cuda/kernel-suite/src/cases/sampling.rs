//! The next tokens: the kernel's draw against the same draw in float64.

use roundhouse_cuda_kernels::{ArgMax, Sample, SampleRow};
use roundhouse_graph::DType;

use super::arguments;
use crate::{Case, Random, Runner, SuiteError, compare};

pub(super) fn cases() -> Vec<Case> {
    vec![arg_max(), draws(), penalties()]
}

fn same_tokens(what: &str, found: &[i32], expected: &[i32]) -> Result<(), SuiteError> {
    let numbers = |tokens: &[i32]| tokens.iter().map(|&token| f64::from(token)).collect::<Vec<_>>();
    compare(what, DType::F32, &numbers(found), &numbers(expected), 0.0)
}

fn arg_max() -> Case {
    let kernel = ArgMax {};
    let run = move |runner: &Runner| {
        let (rows, vocabulary, stride) = (6, 5003, 5100_usize);
        let mut random = Random::new(5);
        let mut logits = random.floats(rows * stride, 10.0);
        // Two of the largest; all negative, and one that is no number.
        logits[4001] = 20.0;
        logits[1234] = 20.0;
        logits[stride..2 * stride].iter_mut().for_each(|x| *x -= 30.0);
        logits[2 * stride + 7] = f32::NAN;
        logits[4 * stride + 4999] = f32::INFINITY;
        logits[5 * stride] = f32::NEG_INFINITY;
        // The last token, and beyond it a number that is not of the row.
        logits[3 * stride + vocabulary - 1] = 30.0;
        logits[3 * stride + vocabulary] = 40.0;
        let memory = runner.numbers(DType::F32, &logits)?;
        let best = runner.integers(&[0; 12])?;
        let count = runner.integers(&[0; 6])?;
        let expected: Vec<i32> = logits
            .chunks(stride)
            .map(|row| {
                let row = &row[..vocabulary];
                let most = row.iter().copied().fold(f32::MIN, f32::max);
                let finite = row.iter().all(|x| x.is_finite());
                row.iter().position(|&x| finite && x == most).map_or(-1, |token| token as i32)
            })
            .collect();
        // Twice: the first leaves zeros.
        for _ in 0..2 {
            let out = runner.poisoned(rows * 4)?;
            let launch = kernel.launch(rows as u32, vocabulary as u32);
            let arguments = arguments![&memory, stride as i64, vocabulary, &best, &count, &out];
            runner.launch(&kernel.clone().into(), launch, arguments)?;
            same_tokens("largest logit", &runner.read_integers(&out)?, &expected)?;
        }
        Ok(())
    };
    Case::new("arg_max".to_owned(), vec![ArgMax {}.into()], run)
}

/// Philox 4x32-10, as the kernel's documentation names it.
fn philox(seed: u64, counter: u64) -> u64 {
    let mut c = [counter as u32, (counter >> 32) as u32, 0, 0];
    let mut k = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    u64::from(c[1]) << 32 | u64::from(c[0])
}

/// Weights of all tokens, 0 for those that the filters take.
fn filtered(logits: &[f32], row: &SampleRow) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - most) / f64::from(row.temperature)).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if row.top_k > 0 && (row.top_k as usize) < order.len() {
        let threshold = logits[order[row.top_k as usize - 1]];
        order.retain(|&token| logits[token] >= threshold);
    }
    if row.top_p < 1.0 {
        let target = f64::from(row.top_p) * order.iter().map(|&token| weight(logits[token])).sum::<f64>();
        let mut before = 0.0;
        order.retain(|&token| {
            let kept = before < target;
            before += weight(logits[token]);
            kept
        });
    }
    order.retain(|&token| weight(logits[token]) >= f64::from(row.min_p));
    let mut weights = vec![0.0; logits.len()];
    for token in order {
        weights[token] = weight(logits[token]);
    }
    weights
}

/// Whether a token is the one at `point` of the distribution, but for what rounding moves its edges.
fn is_at(weights: &[f64], token: usize, point: f64) -> bool {
    const EDGE: f64 = 1e-5;
    let total: f64 = weights.iter().sum();
    let before: f64 = weights[..token].iter().sum();
    weights[token] > 0.0 && before / total - EDGE <= point && point < (before + weights[token]) / total + EDGE
}

fn draws() -> Case {
    let kernel = Sample {};
    let run = move |runner: &Runner| {
        let (vocabulary, stride) = (3001, 3008_usize);
        let mut random = Random::new(11);
        // Multiples of 1/8, so that there are equal ones at every threshold.
        let mut one: Vec<f32> = (0..stride).map(|_| random.below(64) as f32 / 8.0).collect();
        one[17] = f32::NEG_INFINITY;
        let plain = SampleRow { seed: 7, temperature: 1.0, ..SampleRow::GREEDY };
        let filters = [
            plain,
            SampleRow { temperature: 0.3, ..plain },
            SampleRow { top_k: 40, ..plain },
            SampleRow { top_p: 0.6, temperature: 2.0, ..plain },
            SampleRow { top_k: 300, top_p: 0.5, ..plain },
            SampleRow { min_p: 0.4, ..plain },
            SampleRow { top_k: 1, ..plain },
            SampleRow { top_p: 1e-6, ..plain },
            SampleRow::GREEDY,
        ];
        let rows: Vec<SampleRow> = filters
            .into_iter()
            .flat_map(|row| (0..5).map(move |counter| SampleRow { counter, ..row }))
            .collect();
        let logits: Vec<f32> = rows.iter().flat_map(|_| one.iter().copied()).collect();
        let memory = runner.numbers(DType::F32, &logits)?;
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_bytes()).collect();
        let rows_memory = runner.upload(&bytes)?;
        let out = runner.poisoned(rows.len() * 4)?;
        runner.launch(
            &kernel.clone().into(),
            kernel.launch(rows.len() as u32),
            arguments![&memory, stride as i64, vocabulary, &rows_memory, &out],
        )?;
        let found = runner.read_integers(&out)?;
        let logits = &one[..vocabulary];
        for (row, &token) in rows.iter().zip(&found) {
            let right = if row.temperature == 0.0 {
                let most = logits.iter().copied().fold(f32::MIN, f32::max);
                usize::try_from(token).ok() == logits.iter().position(|&x| x == most)
            } else {
                let point = (philox(row.seed, row.counter) >> 11) as f64 / (1_u64 << 53) as f64;
                let token = usize::try_from(token).ok().filter(|&token| token < vocabulary);
                token.is_some_and(|token| is_at(&filtered(logits, row), token, point))
            };
            if !right {
                compare(&format!("token of {row:?}"), DType::F32, &[f64::from(token)], &[f64::NAN], 0.0)?;
            }
        }
        Ok(())
    };
    Case::new("sample".to_owned(), vec![Sample {}.into()], run)
}

fn penalties() -> Case {
    let kernel = Sample {};
    let run = move |runner: &Runner| {
        let logits = [1.0_f32, 4.0, -2.0, 3.5, 0.5, -1.0];
        // Token 1 was in the prompt only, 3 twice in the output, 5 once.
        let seen = runner.integers(&[0, 1, 0, 3, 0, 2])?;
        let memory = runner.numbers(DType::F32, &logits)?;
        let row = SampleRow {
            seen: seen.address(),
            repetition: 2.0,
            presence: 0.5,
            frequency: 0.25,
            ..SampleRow::GREEDY
        };
        let rows = runner.upload(&row.to_bytes())?;
        let out = runner.poisoned(4)?;
        let arguments = arguments![&memory, 6_i64, 6, &rows, &out];
        runner.launch(&kernel.clone().into(), kernel.launch(1), arguments)?;
        // 4 / 2; 3.5 / 2 - 2 · 0.25 - 0.5; -1 · 2 - 0.25 - 0.5.
        let expected = [1.0, 2.0, -2.0, 0.75, 0.5, -2.75];
        compare("penalised logits", DType::F32, &runner.read(DType::F32, &memory.memory)?, &expected, 0.0)?;
        same_tokens("largest that is left", &runner.read_integers(&out)?, &[1])?;
        same_tokens("counts", &runner.read_integers(&seen)?, &[0, 2, 0, 3, 0, 2])
    };
    Case::new("sample with penalties".to_owned(), vec![Sample {}.into()], run)
}
