//! Engines by the names that requests give.

use std::sync::Arc;

use roundhouse_engine::{EngineKey, Manifest};
use roundhouse_store::ListRequest;

use super::{Engines, LoadError, LoadedEngine};

/// Why a name finds no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None has it.
    #[error("no loaded engine is {name:?}: load it first; loaded are: {loaded}")]
    NotLoaded {
        /// The name given.
        name: String,
        /// The loaded ones.
        loaded: String,
    },
    /// No name was given and there is not exactly one engine.
    #[error("the request names no engine and {count} are loaded: name one")]
    Unnamed {
        /// How many are loaded.
        count: usize,
    },
    /// Several engines of this model.
    #[error("{count} loaded engines are of model {name:?}: name one by its key")]
    Ambiguous {
        /// The name given.
        name: String,
        /// How many have it.
        count: usize,
    },
    /// None is loaded, and none that runs here is in the store.
    #[error("no engine of the store that runs on this machine is of model {name:?}: compile one")]
    NotStored {
        /// The name given.
        name: String,
    },
    /// None is loaded, and there are several in the store.
    #[error(
        "{count} engines of the store run on this machine and are of model {name:?}: name one by its key"
    )]
    AmbiguousInStore {
        /// The name given.
        name: String,
        /// How many have it.
        count: usize,
    },
}

/// Why a request has no engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UseError {
    /// None has its name.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The one that has it cannot be loaded.
    #[error(transparent)]
    Load(#[from] Arc<LoadError>),
}

impl Engines {
    /// The engine of this key, if loaded.
    #[must_use]
    pub fn get(&self, key: &EngineKey) -> Option<Arc<LoadedEngine>> {
        self.loaded.read().iter().find(|engine| engine.manifest().key == *key).map(Arc::clone)
    }

    /// The engine of this key or model; without a name the only one.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, name: Option<&str>) -> Result<Arc<LoadedEngine>, FindError> {
        let loaded = self.loaded.read();
        let found = match name {
            None => match &loaded[..] {
                [only] => only,
                several => return Err(FindError::Unnamed { count: several.len() }),
            },
            Some(name) => {
                let has_name = |manifest: &Manifest| manifest.key.as_str() == name || manifest.model == name;
                let matching: Vec<_> = loaded.iter().filter(|engine| has_name(engine.manifest())).collect();
                match &matching[..] {
                    [one] => *one,
                    [] => {
                        let describe = |engine: &Arc<LoadedEngine>| {
                            format!("{} ({})", engine.manifest().key, engine.manifest().model)
                        };
                        let loaded = loaded.iter().map(describe).collect::<Vec<_>>().join(", ");
                        return Err(FindError::NotLoaded { name: name.to_owned(), loaded });
                    }
                    several => {
                        return Err(FindError::Ambiguous { name: name.to_owned(), count: several.len() });
                    }
                }
            }
        };
        found.touch();
        Ok(Arc::clone(found))
    }

    /// The engine of this key or model, as [`Engines::find`]. One that is not loaded is, where the executor loads engines
    /// on demand: by its key, or by its model where exactly one engine of the store is of it and runs on this machine.
    ///
    /// # Errors
    /// [`UseError`].
    pub async fn find_or_load(self: &Arc<Self>, name: Option<&str>) -> Result<Arc<LoadedEngine>, UseError> {
        match (self.find(name), name) {
            (Err(FindError::NotLoaded { .. }), Some(name)) if self.config.load_on_demand => {
                let key = match EngineKey::parse(name) {
                    Some(key) => key,
                    None => self.stored(name).await?,
                };
                let loaded = self.load(&key).await?;
                loaded.engine.touch();
                Ok(loaded.engine)
            }
            (found, _) => Ok(found?),
        }
    }

    /// The key of the only engine of a model that is in the store and runs on this machine.
    async fn stored(&self, model: &str) -> Result<EngineKey, UseError> {
        let mut keys = Vec::new();
        let mut page_token: Option<String> = None;
        loop {
            let request = ListRequest {
                page_size: ListRequest::MAX_PAGE_SIZE,
                page_token: page_token.as_deref(),
                model: Some(model),
            };
            let page = self.store.list(request).await.map_err(|error| Arc::new(LoadError::Store(error)))?;
            let runs_here = |manifest: &Manifest| self.backends.runtime_for(manifest).is_ok();
            keys.extend(page.manifests.into_iter().filter(runs_here).map(|manifest| manifest.key));
            page_token = page.next_page_token;
            if page_token.is_none() {
                break;
            }
        }
        let count = keys.len();
        match (keys.pop(), count) {
            (Some(key), 1) => Ok(key),
            (None, _) => Err(FindError::NotStored { name: model.to_owned() }.into()),
            (Some(_), _) => Err(FindError::AmbiguousInStore { name: model.to_owned(), count }.into()),
        }
    }
}
