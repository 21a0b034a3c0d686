//! What sequences promise that are many times as long as the windows of their layers, whose caches may then hold only
//! the last tokens.

use roundhouse_backend::LogitsRequest::{All, Last, None as NoLogits};
use roundhouse_engine::Precision;

use super::compare::{Expected, equal};
use super::engine::{Engine, Session, Source, options, step_together};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::Rng;
use crate::tiny_models::TinyModel;

/// The longest sequence: a prompt much longer than the windows and than the pieces that backends cut prompts into
/// where they compute all logits.
const MAX_SEQ_LEN: u32 = 192;

/// Sliding and full layers in turn, with a window smaller and one larger than the usual chunk of tokens.
fn models() -> [TinyModel; 2] {
    let max_position_embeddings = MAX_SEQ_LEN as usize + 8;
    [
        TinyModel { max_position_embeddings, ..TinyModel::mistral() },
        TinyModel {
            name: "gemma3",
            num_hidden_layers: 3,
            sliding_window: Some(24),
            query_key_norm: true,
            attention_soft_cap: None,
            max_position_embeddings,
            ..TinyModel::gemma2()
        },
    ]
}

/// A precision's engines of a model, one of each cache kind, and the logits that they are to give.
pub(super) struct Engines {
    pub(super) engines: Vec<Engine>,
    precision: Precision,
    expected: Expected,
    rng: Rng,
}

impl Engines {
    /// Calls `behaviour` for every model and precision.
    pub(super) fn each(
        backend: &Backend<'_>,
        behaviour: impl Fn(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for model in models() {
            let source = Source::tiny(&model)?;
            for &precision in &backend.precisions {
                let engine = |&cache| {
                    let mut options = options(backend, precision, cache, true);
                    options.max_seq_len = MAX_SEQ_LEN;
                    Engine::new(backend, model.name, &source, &options)
                };
                let engines = backend.caches.iter().map(engine).collect::<Result<Vec<_>, _>>()?;
                let expected = Expected::new(model.name, &source.graph, &source.weights, precision)?;
                behaviour(&mut Self { engines, precision, expected, rng: Rng::new(9) })?;
            }
        }
        Ok(())
    }

    /// Tokens at random.
    pub(super) fn tokens(&mut self, count: usize) -> Vec<u32> {
        let vocab_size = self.engines.first().map_or(1, |engine| engine.model.vocab_size());
        self.rng.tokens(count, vocab_size)
    }

    /// The reference's logits after each token.
    fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
        self.expected.logits("the reference", tokens)
    }

    /// Fails unless `found` are the last rows of `expected`.
    fn check(&self, case: &str, found: &[f32], expected: &[f32]) -> Result<(), Failure> {
        equal(case, self.precision, found, &expected[expected.len().saturating_sub(found.len())..])
    }
}

/// Appends tokens in pieces of the sizes given, over and over.
fn append(session: &mut Session<'_>, mut tokens: &[u32], sizes: &[usize]) -> Result<(), Failure> {
    for &size in sizes.iter().cycle() {
        let (piece, rest) = tokens.split_at(size.min(tokens.len()));
        if piece.is_empty() {
            break;
        }
        session.step(piece, NoLogits)?;
        tokens = rest;
    }
    Ok(())
}

/// Sequences many times as long as a window, prefilled at once or in pieces of odd sizes and gone on one by one, give
/// the interpreter's logits at every position.
///
/// # Errors
/// When they do not.
pub fn long_sequences_see_their_windows(backend: &Backend<'_>) -> Result<(), Failure> {
    Engines::each(backend, |engines| {
        let tokens = engines.tokens(171);
        let expected = engines.logits(&tokens)?;
        for engine in &engines.engines {
            for sizes in [&[160][..], &[1, 37, 70, 5, 47], &[97, 63]] {
                let mut session = engine.session()?;
                let (mut found, mut rest) = (Vec::new(), &tokens[..]);
                for &size in sizes.iter().chain(&[1; 11]) {
                    let (piece, later) = rest.split_at(size);
                    found.extend(session.step(piece, All)?);
                    rest = later;
                }
                engines.check(&format!("{} in {sizes:?}", engine.case), &found, &expected)?;
            }
        }
        Ok(())
    })
}

/// Long sequences of different lengths in one step, prefill and decode mixed, give what each gives by itself.
///
/// # Errors
/// When they do not.
pub fn long_ragged_batches_equal_one_by_one(backend: &Backend<'_>) -> Result<(), Failure> {
    let rounds = [[130, 1, 77, 90], [1, 101, 20, 1], [3, 1, 75, 1]];
    Engines::each(backend, |engines| {
        let sequences: Vec<Vec<u32>> =
            (0..4).map(|index| engines.tokens(rounds.iter().map(|round| round[index]).sum())).collect();
        let expected =
            sequences.iter().map(|tokens| engines.logits(tokens)).collect::<Result<Vec<_>, _>>()?;
        for engine in &engines.engines {
            let mut sessions = (0..4).map(|_| engine.session()).collect::<Result<Vec<_>, _>>()?;
            let mut done = [0; 4];
            for round in rounds {
                let parts = done.iter().zip(round).zip(&sequences);
                let parts = parts.map(|((&done, new), tokens)| &tokens[done..done + new]);
                let mut batch: Vec<_> =
                    sessions.iter_mut().zip(parts).map(|(session, part)| (session, part, Last)).collect();
                let found = step_together(engine, &mut batch).in_case(&engine.case)?;
                for (index, found) in found.iter().enumerate() {
                    done[index] += round[index];
                    let until = done[index] * engine.model.vocab_size();
                    engines.check(&engine.case, found, &expected[index][..until])?;
                }
            }
        }
        Ok(())
    })
}

/// A long sequence cut to a prefix keeps it, or says that it kept nothing; once what it did not keep is computed
/// again, it goes on as one that never held the rest.
///
/// # Errors
/// When it does not.
pub fn long_sequences_are_cut_or_emptied(backend: &Backend<'_>) -> Result<(), Failure> {
    Engines::each(backend, |engines| {
        let (first, second, third) = (engines.tokens(150), engines.tokens(21), engines.tokens(9));
        for kept in [150, 131, 90, 80, 30, 1] {
            let whole = [&first[..kept], &second].concat();
            // Cut once more, within what was just appended.
            let again = [&whole[..kept + 8], &third].concat();
            let (after_second, after_third) = (engines.logits(&whole)?, engines.logits(&again)?);
            for engine in &engines.engines {
                let case = format!("{} cut to {kept}", engine.case);
                let mut session = engine.session()?;
                append(&mut session, &first, &[101, 48, 1])?;
                let reached = cut(&case, &mut session, kept)?;
                engines.check(&case, &session.step(&whole[reached..], Last)?, &after_second)?;
                let reached = cut(&case, &mut session, kept + 8)?;
                engines.check(&case, &session.step(&again[reached..], Last)?, &after_third)?;
            }
        }
        Ok(())
    })
}

/// Truncates a cache; the length reached.
fn cut(case: &str, session: &mut Session<'_>, len: usize) -> Result<usize, Failure> {
    let before = session.cache.len();
    let reached = session.cache.truncate(len);
    let found = session.cache.len();
    if reached != found || (reached != len.min(before) && reached != 0) {
        let what =
            format!("cut from {before} to {len}: {reached} tokens are left, and then there are {found}");
        return Err(Failure::departure(case, what));
    }
    Ok(reached)
}

/// Long sequences that step in turn do not see each other, nor what a dropped one left in memory.
///
/// # Errors
/// When they do.
pub fn long_sequences_are_isolated(backend: &Backend<'_>) -> Result<(), Failure> {
    Engines::each(backend, |engines| {
        let prompts = [engines.tokens(151), engines.tokens(151)];
        let other = engines.tokens(190);
        let expected = [engines.logits(&prompts[0])?, engines.logits(&prompts[1])?];
        for engine in &engines.engines {
            let mut dropped = engine.session()?;
            append(&mut dropped, &other, &[190])?;
            drop(dropped);
            let mut sessions = [engine.session()?, engine.session()?];
            let (mut done, mut found) = (0, [Vec::new(), Vec::new()]);
            for size in [66, 1, 50, 33, 1] {
                for ((session, prompt), found) in sessions.iter_mut().zip(&prompts).zip(&mut found) {
                    *found = session.step(&prompt[done..done + size], Last)?;
                }
                done += size;
            }
            for (found, expected) in found.iter().zip(&expected) {
                engines.check(&engine.case, found, expected)?;
            }
        }
        Ok(())
    })
}
