//! What backends promise that find tokens themselves.

use std::ops::ControlFlow;

use roundhouse_backend::LogitsRequest::None as NoLogits;
use roundhouse_backend::{BackendError, GreedySequence};

use super::compare::{Expected, among_the_largest};
use super::engine::{Engine, Session, Source, options};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::Rng;
use crate::tiny_models::TinyModel;

/// The prompts' lengths but for the last token.
const LENGTHS: [usize; 3] = [5, 1, 9];
/// Steps of each run, and after how many of its tokens the caller wants no more, if it does.
const RUNS: [(usize, Option<usize>); 4] = [(1, None), (4, None), (5, Some(2)), (3, None)];

/// Tokens that a backend finds itself, for sequences of different lengths in runs of several steps, are those of the
/// largest logits of all tokens before, within the precision's tolerance. A run that is to end hands over no more than
/// one step that had begun. Caches go on where their tokens end.
///
/// # Errors
/// When they are not.
pub fn tokens_found_are_those_of_the_largest_logits(backend: &Backend<'_>) -> Result<(), Failure> {
    for model in [TinyModel::mistral(), TinyModel::gemma2()] {
        let source = Source::tiny(&model)?;
        for (precision, cache) in backend.kinds() {
            let engine =
                Engine::new(backend, model.name, &source, &options(backend, precision, cache, false))?;
            let Some(sequences) = decode(&engine, &mut Rng::new(11))? else { continue };
            let expected = Expected::new(&engine.case, &source.graph, &source.weights, precision)?;
            for (tokens, prompt) in sequences.iter().zip(LENGTHS) {
                let (_, context) = tokens.split_last().unwrap_or((&0, &[]));
                let logits = expected.logits(&engine.case, context)?;
                let rows = logits.chunks_exact(engine.model.vocab_size());
                for (place, row) in rows.enumerate().skip(prompt) {
                    among_the_largest(&engine.case, precision, row, tokens[place + 1])?;
                }
            }
        }
    }
    Ok(())
}

/// Prompts and the tokens found after them; `None` where the backend finds none.
fn decode(engine: &Engine, rng: &mut Rng) -> Result<Option<Vec<Vec<u32>>>, Failure> {
    let mut tokens: Vec<Vec<u32>> =
        LENGTHS.iter().map(|length| rng.tokens(length + 1, engine.model.vocab_size())).collect();
    let mut sessions = LENGTHS.iter().map(|_| engine.session()).collect::<Result<Vec<_>, _>>()?;
    for (session, tokens) in sessions.iter_mut().zip(&tokens) {
        session.step(&tokens[..tokens.len() - 1], NoLogits)?;
    }
    for (steps, until) in RUNS {
        let Some(found) = run(engine, &mut sessions, &tokens, steps, until).in_case(&engine.case)? else {
            return Ok(None);
        };
        let begun = until.map_or(1..=steps, |until| until..=until + 1);
        if !begun.contains(&found.len()) || found.iter().any(|found| found.len() != LENGTHS.len()) {
            let what = format!("{found:?} was found in up to {steps} steps, until {until:?}");
            return Err(Failure::departure(&engine.case, what));
        }
        for (index, (tokens, session)) in tokens.iter_mut().zip(&sessions).enumerate() {
            tokens.extend(found.iter().map(|found| found[index]));
            if session.cache.len() + 1 != tokens.len() {
                let what = format!("a cache has {} of {} tokens", session.cache.len(), tokens.len());
                return Err(Failure::departure(&engine.case, what));
            }
        }
    }
    Ok(Some(tokens))
}

/// Runs steps until `until` of them were handed over; the tokens of each.
fn run(
    engine: &Engine,
    sessions: &mut [Session<'_>],
    tokens: &[Vec<u32>],
    steps: usize,
    until: Option<usize>,
) -> Result<Option<Vec<Vec<u32>>>, BackendError> {
    let parts = sessions.iter_mut().zip(tokens);
    let batch = parts.map(|(session, tokens)| GreedySequence {
        cache: &mut *session.cache,
        token: tokens.last().copied().unwrap_or(0),
    });
    let mut batch: Vec<GreedySequence<'_>> = batch.collect();
    let mut found: Vec<Vec<u32>> = Vec::new();
    let mut each = |tokens: &[u32]| {
        found.push(tokens.to_vec());
        if until == Some(found.len()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let is_found = engine.model.decode_greedily(&mut batch, steps, &mut each)?;
    Ok(is_found.then_some(found))
}
