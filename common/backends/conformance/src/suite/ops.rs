//! Every op by itself.

use std::collections::BTreeMap;

use roundhouse_backend::{BackendError, LogitsRequest};
use roundhouse_engine::CacheKind;

use super::compare::{Expected, equal};
use super::engine::{Engine, options, step_together};
use super::failure::InCase as _;
use super::op_graphs::op_cases;
use super::{Backend, Failure};
use crate::Rng;

/// Every op, in a small graph with random weights, between an embedding and a projection to logits, in every precision
/// without a cache, for two sequences of different lengths at once.
///
/// A backend need not run what no model has, such as attention spelt out as matrix products. `unsupported` are the
/// cases that it refuses with [`BackendError::Unsupported`]; it has to refuse those and no others. (`kv_cache_update`,
/// which no graph without a cache has, is tested with every model.)
///
/// # Errors
/// When an op computes something else, or is refused or accepted unexpectedly.
pub fn ops(backend: &Backend<'_>, unsupported: &[&str]) -> Result<(), Failure> {
    let mut refused: BTreeMap<&str, bool> = BTreeMap::new();
    for &precision in &backend.precisions {
        for case in op_cases(precision.dtype())? {
            let options = options(backend, precision, CacheKind::None, !case.last_token);
            let engine = match Engine::new(backend, case.name, &case.source, &options) {
                Err(Failure::Backend {
                    source: BackendError::Unsupported { .. } | BackendError::UnsupportedNodes { .. },
                    ..
                }) => {
                    refused.insert(case.name, true);
                    continue;
                }
                engine => engine?,
            };
            refused.entry(case.name).or_insert(false);
            let expected = Expected::new(&engine.case, &case.source.graph, &case.source.weights, precision)?;
            let mut rng = Rng::new(5);
            let mut tokens = [5, 3].map(|length| rng.tokens(length, engine.model.vocab_size()));
            // The token that masks hide, and that sees nothing itself.
            tokens.iter_mut().for_each(|tokens| tokens[1] = 0);
            let request = if case.last_token { LogitsRequest::Last } else { LogitsRequest::All };
            let (mut first, mut second) = (engine.session()?, engine.session()?);
            let mut batch = [(&mut first, &tokens[0][..], request), (&mut second, &tokens[1][..], request)];
            let found = step_together(&engine, &mut batch).in_case(&engine.case)?;
            for (found, tokens) in found.iter().zip(&tokens) {
                let all = expected.logits(&engine.case, tokens)?;
                let first = if case.last_token { all.len() - engine.model.vocab_size() } else { 0 };
                equal(&engine.case, precision, found, &all[first..])?;
            }
        }
    }
    for name in unsupported {
        if refused.get(name) != Some(&true) {
            return Err(Failure::departure(name, "it is listed as unsupported and was not refused"));
        }
    }
    match refused.iter().find(|(name, refused)| **refused && !unsupported.contains(name)) {
        Some((name, _)) => Err(Failure::departure(name, "it was refused and is not listed as unsupported")),
        None => Ok(()),
    }
}
