//! The table of what is built, as a client has it from `ListModelFamilies`.

use anyhow::{Result, ensure};
use roundhouse_engine::{CacheKind, Precision};
use roundhouse_proto::compiler::{Backend, ListModelFamiliesRequest, ModelFamily};

use crate::golden::{self, TinyModel};
use crate::golden_images::is_vision_language;
use crate::harness::{Shared, cache_message, precision_message};

/// An engine of the table, of a tiny checkpoint.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The checkpoint, and what Transformers computes with it.
    pub golden: TinyModel,
    /// The engine's precision.
    pub precision: Precision,
    /// Its cache.
    pub cache: CacheKind,
}

/// Every engine that a backend builds in these precisions, of every tiny checkpoint of a text model.
///
/// # Errors
/// When the backend builds none, or a family of which it builds some has no checkpoint here.
pub async fn cells(shared: &Shared, backend: Backend, precisions: &[Precision]) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    let listed = families(shared).await?;
    for family in listed.iter().filter(|family| !is_vision_language(&family.architecture)) {
        let goldens = golden::tiny_models_of(&family.architecture)?;
        let built = family.support.iter().find(|support| support.backend() == backend);
        for built in built.iter().flat_map(|support| &support.precisions) {
            ensure!(!goldens.is_empty(), "{} is listed, and has no tiny checkpoint", family.architecture);
            let known = precisions.iter().copied().find(|&each| precision_message(each) == built.precision());
            let Some(precision) = known else { continue };
            for golden in &goldens {
                let caches = CacheKind::ALL
                    .iter()
                    .filter(|&&each| built.caches().any(|cache| cache == cache_message(each)));
                cells.extend(caches.map(|&cache| Cell { golden: golden.clone(), precision, cache }));
            }
        }
    }
    ensure!(!cells.is_empty(), "{backend:?} builds nothing in {precisions:?}");
    Ok(cells)
}

/// The families that the compiler lists.
///
/// # Errors
/// When it does not answer.
pub async fn families(shared: &Shared) -> Result<Vec<ModelFamily>> {
    let listed = shared.compiler.client.clone().list_model_families(ListModelFamiliesRequest {}).await?;
    Ok(listed.into_inner().families)
}
