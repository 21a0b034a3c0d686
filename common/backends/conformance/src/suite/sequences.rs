//! What sequences promise: whichever way tokens reach an engine, the logits are those of the whole sequence at once.

use roundhouse_backend::LogitsRequest::{All, Last, None as NoLogits};
use roundhouse_engine::{CacheKind, Precision};

use super::compare::{Expected, equal};
use super::engine::{Engine, Source, options, step_together};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::Rng;
use crate::tiny_models::TinyModel;

/// The models whose sequences are tested: grouped heads, windows that sequences outgrow, soft caps.
fn models() -> [TinyModel; 2] {
    [TinyModel::mistral(), TinyModel::gemma2()]
}

/// Runs `behaviour` with every model, precision and cache kind, over engines of last-token logits.
fn each_engine(
    backend: &Backend<'_>,
    behaviour: impl Fn(&Engine, &Expected, &mut Rng) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for model in models() {
        let source = Source::tiny(&model)?;
        for (precision, cache) in backend.kinds() {
            let engine =
                Engine::new(backend, model.name, &source, &options(backend, precision, cache, false))?;
            let expected = Expected::new(&engine.case, &source.graph, &source.weights, precision)?;
            behaviour(&engine, &expected, &mut Rng::new(7))?;
        }
    }
    Ok(())
}

/// The last row of logits.
fn last<'a>(engine: &Engine, logits: &'a [f32]) -> &'a [f32] {
    &logits[logits.len().saturating_sub(engine.model.vocab_size())..]
}

/// Every tiny model, in every precision and cache kind, computes the interpreter's logits at every position: of a
/// prompt at once and of the tokens after it one by one.
///
/// # Errors
/// When it does not.
pub fn logits_equal_the_reference(backend: &Backend<'_>) -> Result<(), Failure> {
    for model in TinyModel::all() {
        let source = Source::tiny(&model)?;
        for (precision, cache) in backend.kinds() {
            let engine =
                Engine::new(backend, model.name, &source, &options(backend, precision, cache, true))?;
            let case = engine.case.as_str();
            let tokens = Rng::new(1).tokens(14, model.vocab_size);
            let expected =
                Expected::new(case, &source.graph, &source.weights, precision)?.logits(case, &tokens)?;
            let mut session = engine.session()?;
            let mut found = session.step(&tokens[..11], All)?;
            for token in tokens[11..].chunks(1) {
                found.extend(session.step(token, All)?);
            }
            equal(case, precision, &found, &expected)?;
        }
    }
    Ok(())
}

/// Engines of all cache kinds give the logits that an engine without a cache gives.
///
/// # Errors
/// When they do not.
pub fn every_cache_kind_equals_none(backend: &Backend<'_>) -> Result<(), Failure> {
    for model in models() {
        let source = Source::tiny(&model)?;
        for &precision in &backend.precisions {
            let generate = |cache: CacheKind| {
                let engine =
                    Engine::new(backend, model.name, &source, &options(backend, precision, cache, false))?;
                let tokens = Rng::new(2).tokens(13, model.vocab_size);
                let mut session = engine.session()?;
                let mut logits = session.step(&tokens[..9], Last)?;
                for token in tokens[9..].chunks(1) {
                    logits.extend(session.step(token, Last)?);
                }
                Ok::<_, Failure>((engine.case, logits))
            };
            let (_, expected) = generate(CacheKind::None)?;
            for &cache in backend.caches.iter().filter(|&&cache| cache != CacheKind::None) {
                let (case, found) = generate(cache)?;
                equal(&case, precision, &found, &expected)?;
            }
        }
    }
    Ok(())
}

/// Sequences of different lengths in one step, prefill and decode mixed, give what each gives by itself.
///
/// # Errors
/// When they do not.
pub fn ragged_batches_equal_one_by_one(backend: &Backend<'_>) -> Result<(), Failure> {
    each_engine(backend, |engine, expected, rng| {
        let (case, precision) = (engine.case.as_str(), engine.options.precision);
        let vocab_size = engine.model.vocab_size();
        let (lengths, more) = ([7, 1, 12, 3], [1, 5, 1, 8]);
        let tokens = lengths.map(|length| rng.tokens(length, vocab_size));
        let continuations = more.map(|length| rng.tokens(length, vocab_size));

        let mut sessions = Vec::new();
        for _ in 0..lengths.len() {
            sessions.push((engine.session()?, engine.session()?));
        }
        for round in [&tokens, &continuations] {
            let mut batch: Vec<_> = sessions
                .iter_mut()
                .zip(round)
                .map(|((together, _), tokens)| (together, &tokens[..], Last))
                .collect();
            let together = step_together(engine, &mut batch).in_case(case)?;
            for (((_, alone), tokens), found) in sessions.iter_mut().zip(round).zip(&together) {
                equal(case, precision, found, &alone.step(tokens, Last)?)?;
            }
        }
        for (((mut together, _), first), second) in sessions.into_iter().zip(&tokens).zip(&continuations) {
            let next = rng.tokens(1, vocab_size);
            let whole = [&first[..], &second[..], &next[..]].concat();
            let found = together.step(&next, Last)?;
            equal(case, precision, &found, last(engine, &expected.logits(case, &whole)?))?;
        }
        Ok(())
    })
}

/// A prompt in pieces of odd sizes, of which only the last asks for logits, gives what it gives in one.
///
/// # Errors
/// When it does not.
pub fn chunked_prefill_equals_one_prefill(backend: &Backend<'_>) -> Result<(), Failure> {
    each_engine(backend, |engine, expected, rng| {
        let (case, precision) = (engine.case.as_str(), engine.options.precision);
        let tokens = rng.tokens(23, engine.model.vocab_size());
        let whole = engine.session()?.step(&tokens, Last)?;
        equal(case, precision, &whole, last(engine, &expected.logits(case, &tokens)?))?;
        for sizes in [&[1, 5, 3, 13, 1][..], &[11, 12], &[22, 1]] {
            let mut session = engine.session()?;
            let (mut rest, mut logits) = (&tokens[..], Vec::new());
            for &size in sizes {
                let (chunk, later) = rest.split_at(size);
                rest = later;
                logits = session.step(chunk, if later.is_empty() { Last } else { NoLogits })?;
            }
            equal(&format!("{case} in {sizes:?}"), precision, &logits, &whole)?;
        }
        Ok(())
    })
}

/// A cache cut to a prefix and given other tokens goes on as one that never held the rest; cut to nothing, it is
/// empty.
///
/// # Errors
/// When it does not.
pub fn truncated_caches_go_on_as_fresh_ones(backend: &Backend<'_>) -> Result<(), Failure> {
    each_engine(backend, |engine, _, rng| {
        let (case, precision) = (engine.case.as_str(), engine.options.precision);
        let vocab_size = engine.model.vocab_size();
        let (first, second) = (rng.tokens(15, vocab_size), rng.tokens(4, vocab_size));
        for kept in [9, 1, 0] {
            let mut session = engine.session()?;
            session.step(&first, Last)?;
            let unchanged = [session.cache.truncate(first.len() + 3), session.cache.len()];
            let reached = session.cache.truncate(kept);
            // A backend may keep less than the tokens that a window needs.
            let fits = reached == kept || reached == 0;
            let (length, empty) = (session.cache.len(), session.cache.is_empty());
            if unchanged != [first.len(); 2] || !fits || (length, empty) != (reached, reached == 0) {
                let what =
                    format!("truncated from 15 to 18 and {kept}: {unchanged:?}, {reached} and {length}");
                return Err(Failure::departure(case, what));
            }
            if reached < kept {
                session.step(&first[..kept], NoLogits)?;
            }
            let found = session.step(&second, Last)?;
            let mut fresh = engine.session()?;
            if kept > 0 {
                fresh.step(&first[..kept], NoLogits)?;
            }
            equal(&format!("{case} cut to {kept}"), precision, &found, &fresh.step(&second, Last)?)?;
        }
        Ok(())
    })
}

/// Sequences that step in turn do not see each other, nor what a dropped one left in memory.
///
/// # Errors
/// When they do.
pub fn sequences_are_isolated(backend: &Backend<'_>) -> Result<(), Failure> {
    each_engine(backend, |engine, expected, rng| {
        let (case, precision) = (engine.case.as_str(), engine.options.precision);
        let vocab_size = engine.model.vocab_size();
        let prompts = [rng.tokens(10, vocab_size), rng.tokens(10, vocab_size)];
        let mut dropped = engine.session()?;
        dropped.step(&rng.tokens(20, vocab_size), Last)?;
        drop(dropped);
        let mut sessions = [engine.session()?, engine.session()?];
        let mut found = [Vec::new(), Vec::new()];
        for at in 0..5 {
            for ((session, prompt), logits) in sessions.iter_mut().zip(&prompts).zip(&mut found) {
                *logits = session.step(&prompt[2 * at..2 * at + 2], Last)?;
            }
        }
        for (prompt, found) in prompts.iter().zip(&found) {
            equal(case, precision, found, last(engine, &expected.logits(case, prompt)?))?;
        }
        Ok(())
    })
}

/// No logits, the last token's, or all: of an engine that computes all, in one batch. An engine that computes only the
/// last token's either refuses a request for all, or answers it rightly.
///
/// # Errors
/// When it does neither.
pub fn requests_choose_the_logits(backend: &Backend<'_>) -> Result<(), Failure> {
    let model = TinyModel::llama();
    let source = Source::tiny(&model)?;
    for (precision, cache) in backend.kinds() {
        for all_logits in [true, false] {
            let engine =
                Engine::new(backend, model.name, &source, &options(backend, precision, cache, all_logits))?;
            check_requests(&engine, &source, precision)?;
        }
    }
    Ok(())
}

fn check_requests(engine: &Engine, source: &Source, precision: Precision) -> Result<(), Failure> {
    let (case, vocab_size) = (engine.case.as_str(), engine.model.vocab_size());
    let reference = Expected::new(case, &source.graph, &source.weights, precision)?;
    let mut rng = Rng::new(3);
    let tokens = [5, 9, 2].map(|length| rng.tokens(length, vocab_size));
    let mut sessions = [engine.session()?, engine.session()?, engine.session()?];
    let [first, second, third] = &mut sessions;
    let mut batch = [(first, &tokens[0][..], NoLogits), (second, &tokens[1], All), (third, &tokens[2], Last)];
    let found = match step_together(engine, &mut batch) {
        Err(roundhouse_backend::BackendError::InvalidArgument(_)) if !engine.options.all_logits => {
            return Ok(());
        }
        result => result.in_case(case)?,
    };
    if !found[0].is_empty() {
        return Err(Failure::departure(case, format!("{} logits where none were asked for", found[0].len())));
    }
    equal(case, precision, &found[1], &reference.logits(case, &tokens[1])?)?;
    equal(case, precision, &found[2], last(engine, &reference.logits(case, &tokens[2])?))
}
