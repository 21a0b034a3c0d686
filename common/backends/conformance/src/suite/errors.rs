//! What steps that cannot be leave behind: nothing.

use roundhouse_backend::BackendError::{self, CacheFull, InvalidArgument};
use roundhouse_backend::LogitsRequest::Last;
use roundhouse_engine::{CacheKind, Precision};

use super::compare::equal;
use super::engine::{Engine, MAX_SEQ_LEN, Source, options, step_together};
use super::failure::InCase as _;
use super::{Backend, Failure};
use crate::Rng;
use crate::tiny_models::TinyModel;

/// A step with one impossible sequence fails with the right error and changes no sequence of its batch: both go on as
/// if it had not been tried.
///
/// # Errors
/// When it does not.
pub fn failed_steps_change_nothing(backend: &Backend<'_>) -> Result<(), Failure> {
    let model = TinyModel::mistral();
    let source = Source::tiny(&model)?;
    for (precision, cache) in backend.kinds() {
        let engine = Engine::new(backend, model.name, &source, &options(backend, precision, cache, false))?;
        let vocab_size = engine.model.vocab_size();
        let mut rng = Rng::new(4);
        let (prompt, next) = (rng.tokens(6, vocab_size), rng.tokens(3, vocab_size));
        let too_many = rng.tokens(MAX_SEQ_LEN as usize - prompt.len() + 1, vocab_size);
        let bad_token = [next[0], vocab_size as u32];
        let largest = [u32::MAX];
        let full: fn(&BackendError) -> bool =
            |error| matches!(error, CacheFull { tokens: 35, length: 6, capacity: 40 });
        let invalid: fn(&BackendError) -> bool = |error| matches!(error, InvalidArgument(_));
        let tries = [
            ("too many tokens", &too_many[..], full),
            ("a token outside of the vocabulary", &bad_token, invalid),
            ("the largest token", &largest, invalid),
            ("no tokens", &[], invalid),
        ];
        for (what, tokens, is_right) in tries {
            let case = format!("{} {what}", engine.case);
            let (mut good, mut bad) = (engine.session()?, engine.session()?);
            good.step(&prompt, Last)?;
            bad.step(&prompt, Last)?;
            match step_together(&engine, &mut [(&mut good, &next, Last), (&mut bad, tokens, Last)]) {
                Err(error) if is_right(&error) => {}
                Err(error) => return Err(Failure::departure(&case, format!("the wrong error: {error:?}"))),
                Ok(_) => return Err(Failure::departure(&case, "it was accepted")),
            }
            let lengths = [good.cache.len(), bad.cache.len()];
            if lengths != [prompt.len(); 2] {
                return Err(Failure::departure(&case, format!("lengths changed to {lengths:?}")));
            }
            let mut fresh = engine.session()?;
            fresh.step(&prompt, Last)?;
            let expected = fresh.step(&next, Last)?;
            for session in [&mut good, &mut bad] {
                equal(&case, precision, &session.step(&next, Last)?, &expected)?;
            }
        }
    }
    Ok(())
}

/// A cache larger than the engine's sequences, and a cache of another model, are refused; a cache is as large as asked
/// for, and can be filled to the last token.
///
/// # Errors
/// When they are not, or it is not.
pub fn requests_beyond_the_engine_are_refused(backend: &Backend<'_>) -> Result<(), Failure> {
    let model = TinyModel::llama();
    let source = Source::tiny(&model)?;
    let precision = backend.precisions.first().copied().unwrap_or(Precision::Fp32);
    for &cache in &backend.caches {
        let options = options(backend, precision, cache, false);
        let engine = Engine::new(backend, model.name, &source, &options)?;
        let case = engine.case.as_str();
        match engine.model.new_cache(MAX_SEQ_LEN as usize + 1) {
            Err(InvalidArgument(_)) => {}
            Err(error) => return Err(Failure::departure(case, format!("a large cache: {error:?}"))),
            Ok(_) => return Err(Failure::departure(case, "a cache larger than max_seq_len was given")),
        }
        let other = Engine::new(backend, model.name, &source, &options)?;
        let mut foreign = other.session()?;
        match step_together(&engine, &mut [(&mut foreign, &[1, 2], Last)]) {
            Err(InvalidArgument(_)) if foreign.cache.is_empty() => {}
            result => return Err(Failure::departure(case, format!("another model's cache: {result:?}"))),
        }
        fill(&engine, cache)?;
    }
    Ok(())
}

/// Fills a cache of 8 tokens.
fn fill(engine: &Engine, kind: CacheKind) -> Result<(), Failure> {
    let case = engine.case.as_str();
    let mut session = engine.session()?;
    session.cache = engine.model.new_cache(8).in_case(case)?;
    if session.cache.capacity() != 8 || !session.cache.is_empty() {
        let what = format!("a new cache of 8 holds {} of {}", session.cache.len(), session.cache.capacity());
        return Err(Failure::departure(case, what));
    }
    session.step(&[1, 2, 3, 4, 5], Last)?;
    session.step(&[6, 7, 8], Last)?;
    if kind != CacheKind::None && session.cache.bytes() == 0 {
        return Err(Failure::departure(case, "a full cache holds no bytes"));
    }
    match session.try_step(&[9], Last) {
        Err(CacheFull { tokens: 1, length: 8, capacity: 8 }) => Ok(()),
        result => Err(Failure::departure(case, format!("a ninth token of 8: {result:?}"))),
    }
}
