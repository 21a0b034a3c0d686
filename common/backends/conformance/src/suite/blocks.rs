//! What keys and values promise that leave a cache and come into another one.

use std::ops::Range;

use roundhouse_backend::LogitsRequest::{All, Last, None as NoLogits};
use roundhouse_backend::{BackendError, KvBlock};

use super::engine::{Engine, MAX_SEQ_LEN, Session, Source, options};
use super::failure::InCase as _;
use super::windows::Engines;
use super::{Backend, Failure};
use crate::Rng;
use crate::tiny_models::TinyModel;

/// Positions of a block here. No divisor of a ring's length, so that blocks lie across its end.
const BLOCK: usize = 16;

/// A cache that takes in the blocks of another one's first tokens goes on bit for bit as a cache that computed them,
/// however much of a sequence that is much longer than the windows it takes in; and giving them changes nothing. A
/// backend that copies no keys and values says so.
///
/// # Errors
/// When it does not.
pub fn imported_blocks_go_on_as_computed_tokens(backend: &Backend<'_>) -> Result<(), Failure> {
    Engines::each(backend, |engines| {
        let tokens = engines.tokens(165);
        for engine in &engines.engines {
            let Some(blocks) = blocks(engine, &tokens[..9 * BLOCK])? else { continue };
            for taken in [1, 2, 5, 9] {
                let case = format!("{} after {taken} blocks", engine.case);
                let mut computed = engine.session()?;
                for block in tokens[..taken * BLOCK].chunks(BLOCK) {
                    computed.step(block, NoLogits)?;
                }
                let mut imported = engine.session()?;
                for block in &blocks[..taken] {
                    imported.cache.import(block).in_case(&case)?;
                }
                let lengths = (computed.cache.len(), imported.cache.len());
                if lengths != (taken * BLOCK, taken * BLOCK) {
                    return Err(Failure::departure(&case, format!("the lengths are {lengths:?}")));
                }
                goes_on_alike(&case, [&mut computed, &mut imported], &tokens[taken * BLOCK..])?;
            }
        }
        Ok(())
    })
}

/// The blocks of a sequence, each taken as soon as its tokens are computed; none where the backend copies none.
fn blocks(engine: &Engine, tokens: &[u32]) -> Result<Option<Vec<KvBlock>>, Failure> {
    let mut session = engine.session()?;
    let mut blocks = Vec::new();
    for block in tokens.chunks(BLOCK) {
        let first = session.cache.len();
        session.step(block, NoLogits)?;
        match session.cache.export(first..first + BLOCK) {
            Ok(block) => blocks.push(block),
            Err(BackendError::Unsupported { .. }) => return Ok(None),
            Err(error) => return Err(Failure::departure(&engine.case, format!("a block: {error:?}"))),
        }
    }
    Ok(Some(blocks))
}

/// Fails unless both sequences give the same bits for some tokens at once and then one by one.
fn goes_on_alike(case: &str, sessions: [&mut Session<'_>; 2], tokens: &[u32]) -> Result<(), Failure> {
    let (first, rest) = tokens.split_at(tokens.len() - 6);
    let [mut left, mut right] = [Vec::new(), Vec::new()];
    for (session, logits) in sessions.into_iter().zip([&mut left, &mut right]) {
        logits.extend(session.step(first, All)?);
        for token in rest.chunks(1) {
            logits.extend(session.step(token, Last)?);
        }
    }
    match left.iter().zip(&right).position(|(left, right)| left.to_bits() != right.to_bits()) {
        None => Ok(()),
        Some(at) => {
            let what = format!("logit {at} is {} with imported blocks and {} without", right[at], left[at]);
            Err(Failure::departure(case, what))
        }
    }
}

/// Blocks that are not the cache's, do not follow its last token or do not fit are refused and change nothing, and so
/// are positions that it does not hold; positions that a window has let go of are said to be lost.
///
/// # Errors
/// When they are not.
pub fn blocks_that_do_not_follow_are_refused(backend: &Backend<'_>) -> Result<(), Failure> {
    let model = TinyModel::mistral();
    let source = Source::tiny(&model)?;
    for (precision, cache) in backend.kinds() {
        let engine = Engine::new(backend, model.name, &source, &options(backend, precision, cache, false))?;
        let case = engine.case.as_str();
        let tokens = Rng::new(12).tokens(2 * BLOCK, engine.model.vocab_size());
        let Some(blocks) = blocks(&engine, &tokens)? else { continue };
        let [first, second] = &blocks[..] else {
            return Err(Failure::departure(case, format!("{} blocks instead of 2", blocks.len())));
        };
        let mut session = engine.session()?;
        let invalid = |error: &BackendError| matches!(error, BackendError::InvalidArgument(_));
        let full = |error: &BackendError| matches!(error, BackendError::CacheFull { .. });
        refused(case, "a block before its time", &mut session, second, invalid)?;
        session.cache.import(first).in_case(case)?;
        refused(case, "a block twice", &mut session, first, invalid)?;
        let foreign = KvBlock::new("another engine".into(), second.positions(), second.bytes().to_vec());
        refused(case, "another engine's block", &mut session, &foreign, invalid)?;
        let short = &second.bytes()[..second.bytes().len() - 1];
        let short = KvBlock::new(second.engine().into(), second.positions(), short.to_vec());
        refused(case, "a block of missing bytes", &mut session, &short, invalid)?;
        for positions in [0..0, 0..BLOCK + 1, BLOCK..BLOCK + 1, 0..MAX_SEQ_LEN as usize] {
            match session.cache.export(positions.clone()) {
                Err(BackendError::InvalidArgument(_)) => {}
                result => return Err(Failure::departure(case, format!("{positions:?}: {result:?}"))),
            }
        }
        let mut small = engine.session()?;
        small.cache = engine.model.new_cache(BLOCK + 2).in_case(case)?;
        small.cache.import(first).in_case(case)?;
        refused(case, "a block beyond the capacity", &mut small, second, full)?;
        // What was refused has left no trace.
        let mut computed = engine.session()?;
        computed.step(&tokens[..BLOCK], NoLogits)?;
        let left = session.step(&tokens[BLOCK..], Last)?;
        if left != computed.step(&tokens[BLOCK..], Last)? {
            return Err(Failure::departure(case, "blocks that were refused changed the logits"));
        }
    }
    Engines::each(backend, |engines| {
        let tokens = engines.tokens(160);
        for engine in &engines.engines {
            let mut session = engine.session()?;
            session.step(&tokens, NoLogits)?;
            let last: Range<usize> = tokens.len() - BLOCK..tokens.len();
            match (session.cache.export(last), session.cache.export(0..BLOCK)) {
                (Ok(_), Ok(_) | Err(BackendError::PositionsLost { .. }))
                | (Err(BackendError::Unsupported { .. }), Err(BackendError::Unsupported { .. })) => {}
                results => {
                    let what = format!("the last and the first block of a long sequence: {results:?}");
                    return Err(Failure::departure(&engine.case, what));
                }
            }
        }
        Ok(())
    })
}

/// Fails unless the block is refused with the right error and the length stays.
fn refused(
    case: &str,
    what: &str,
    session: &mut Session<'_>,
    block: &KvBlock,
    is_right: fn(&BackendError) -> bool,
) -> Result<(), Failure> {
    let before = session.cache.len();
    match session.cache.import(block) {
        Err(error) if is_right(&error) && session.cache.len() == before => Ok(()),
        result => {
            let length = session.cache.len();
            let what = format!("{what}: {result:?}, and the length went from {before} to {length}");
            Err(Failure::departure(case, what))
        }
    }
}
