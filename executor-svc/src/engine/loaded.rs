//! An engine with everything that its generations need: model, tokenizer, chat template, scheduler.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use roundhouse_backend::{BackendError, Model, Runtime};
use roundhouse_engine::{EngineFiles, Manifest, ManifestError, MemoryPlan, blob_names};
use roundhouse_guided::{GrammarCompiler, GuideError};
use roundhouse_store::{PulledEngine, StoreError};
use roundhouse_text::{ChatTemplate, TextError, Tokenizer, TokenizerConfig};

use crate::images::{ImageInput, ImageInputError, NoImages};
use crate::metrics::ExecutorMetrics;
use crate::scheduler::{Scheduler, SchedulerConfig, SchedulerParts};
use crate::session::{KvCache, KvCost, KvMemory, KvMemoryExhausted, SessionState, Sessions};

/// An engine in memory.
pub struct LoadedEngine {
    manifest: Manifest,
    model: Arc<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    images: Result<ImageInput, NoImages>,
    /// Made when a request is first guided.
    grammars: OnceLock<Result<GrammarCompiler, GuideError>>,
    scheduler: Scheduler,
    kv_cost: Arc<KvCost>,
    /// Keeps the mapped files in the local cache.
    _pulled: PulledEngine,
    /// What templates that print the date print: one moment for as long as the engine is loaded, so that a session's
    /// earlier turns render the same in its later ones.
    loaded: SystemTime,
    /// When a request asked for it last.
    last_used: Mutex<Instant>,
}

/// What all engines of an executor share.
#[derive(Clone)]
pub struct SharedParts {
    /// For keys and values.
    pub memory: Arc<KvMemory>,
    /// Whose idle caches give their memory to generations.
    pub sessions: Arc<Sessions>,
    /// Of which each engine has its own.
    pub metrics: Arc<ExecutorMetrics>,
}

/// Why an engine cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store or the local cache.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No runtime here runs it, or it is broken.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The manifest lacks something.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The tokenizer or chat template.
    #[error("engine {key}: {source}")]
    Text {
        /// The engine.
        key: String,
        /// What is wrong.
        source: TextError,
    },
    /// How it takes images.
    #[error("engine {key}: {source}")]
    Images {
        /// The engine.
        key: String,
        /// What is wrong.
        source: ImageInputError,
    },
    /// The system gave no thread.
    #[error("no thread for the scheduler: {0}")]
    Thread(std::io::Error),
    /// No room in the memory for engines.
    #[error("an engine of {wanted} bytes does not fit: {used} of {total} bytes are in use")]
    Memory {
        /// Bytes that it takes.
        wanted: u64,
        /// Bytes that others take.
        used: u64,
        /// Bytes there are.
        total: u64,
        /// Whether it would not fit alone either. Else it will when engines that are in use no longer are.
        never: bool,
    },
    /// The service is going down.
    #[error("the executor is going down")]
    Stopped,
    /// A fault of the executor.
    #[error("loading ended abnormally: {0}")]
    Panicked(String),
}

impl LoadedEngine {
    /// Loads an engine from local files. Blocks.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        pulled: PulledEngine,
        runtime: &dyn Runtime,
        shared: SharedParts,
        config: SchedulerConfig,
    ) -> Result<Self, LoadError> {
        let files = pulled.files();
        let text_error = |source| LoadError::Text { key: files.manifest.key.to_string(), source };
        // The tokenizer and the model are read at the same time: together they are the cold start.
        let (text, model) = std::thread::scope(|scope| {
            let text = scope.spawn(|| read_text(files));
            let model = runtime.load(files);
            (text.join(), model)
        });
        let model: Arc<dyn Model> = Arc::from(model?);
        let text = text.map_err(|_| LoadError::Panicked("reading the tokenizer".to_owned()))?;
        let (tokenizer, template) = text.map_err(text_error)?;
        let tokenizer = Arc::new(tokenizer);
        let images = ImageInput::read(files, &*model, &tokenizer);
        let images =
            images.map_err(|source| LoadError::Images { key: files.manifest.key.to_string(), source })?;
        let kv_cost = Arc::new(KvCost::new(model.memory_plan(), model.cache_growth()));
        let parts = SchedulerParts {
            model: Arc::clone(&model),
            tokenizer: Arc::clone(&tokenizer),
            kv_cost: Arc::clone(&kv_cost),
            memory: shared.memory,
            sessions: shared.sessions,
            metrics: shared.metrics.of_engine(&files.manifest),
        };
        let scheduler = Scheduler::start(parts, config).map_err(LoadError::Thread)?;
        Ok(Self {
            manifest: files.manifest.clone(),
            model,
            tokenizer,
            template,
            images,
            grammars: OnceLock::new(),
            scheduler,
            kv_cost,
            _pulled: pulled,
            loaded: SystemTime::now(),
            last_used: Mutex::new(Instant::now()),
        })
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its memory.
    #[must_use]
    pub fn memory_plan(&self) -> MemoryPlan {
        self.model.memory_plan()
    }

    /// Bytes of its weights and its workspace.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let plan = self.memory_plan();
        plan.weight_bytes.saturating_add(plan.workspace_bytes)
    }

    /// Notes that a request asks for it.
    pub fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }

    /// When a request asked for it last.
    #[must_use]
    pub fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Its chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`].
    pub fn template(&self) -> Result<&ChatTemplate, TextError> {
        self.template.as_ref().ok_or(TextError::NoChatTemplate)
    }

    /// How it takes images.
    ///
    /// # Errors
    /// [`NoImages`].
    pub fn images(&self) -> Result<&ImageInput, NoImages> {
        self.images.as_ref().map_err(NoImages::clone)
    }

    /// The model, for its components: sequences run by the scheduler.
    #[must_use]
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Makes grammars of its tokens. The first call takes a moment.
    ///
    /// # Errors
    /// [`GuideError::Tokenizer`].
    pub fn grammars(&self) -> Result<&GrammarCompiler, GuideError> {
        let made = self.grammars.get_or_init(|| {
            let end_tokens = &self.manifest.info.eos_token_ids;
            GrammarCompiler::new(Arc::clone(&self.tokenizer), self.vocab_size(), end_tokens)
        });
        made.as_ref().map_err(GuideError::clone)
    }

    /// What its templates print as the time.
    #[must_use]
    pub fn template_time(&self) -> SystemTime {
        self.loaded
    }

    /// Runs its generations.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The longest sequence it takes.
    #[must_use]
    pub fn max_seq_len(&self) -> usize {
        self.manifest.options.max_seq_len as usize
    }

    /// Columns of its logits.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    /// What the keys and values of its sequences cost.
    #[must_use]
    pub fn kv_cost(&self) -> &Arc<KvCost> {
        &self.kv_cost
    }

    /// An empty state for a sequence of at most `max_seq_len` tokens, whose cache takes its memory from `memory` when it
    /// needs it.
    ///
    /// # Errors
    /// [`KvMemoryExhausted`] when so many tokens would not fit the whole memory.
    pub fn new_state(
        &self,
        max_seq_len: usize,
        memory: &Arc<KvMemory>,
    ) -> Result<SessionState, KvMemoryExhausted> {
        let cache = KvCache::new(Arc::clone(&self.kv_cost), max_seq_len, memory)?;
        Ok(SessionState::new(cache))
    }
}

fn read_text(files: &EngineFiles) -> Result<(Tokenizer, Option<ChatTemplate>), TextError> {
    let config = match files.paths.get(blob_names::TOKENIZER_CONFIG) {
        Some(path) => TokenizerConfig::from_file(path)?,
        None => TokenizerConfig::default(),
    };
    // Every engine has a tokenizer: the compiler refuses checkpoints without one. A manifest without it names a file
    // that is not there, which is the error that its reader sees.
    let tokenizer = files.paths.get(blob_names::TOKENIZER).map_or_else(
        || Tokenizer::from_file(std::path::Path::new(blob_names::TOKENIZER), &config),
        |path| Tokenizer::from_file(path, &config),
    )?;
    let template = match files.paths.get(blob_names::CHAT_TEMPLATE) {
        Some(path) => {
            let source = std::fs::read_to_string(path)
                .map_err(|source| TextError::Read { path: path.clone(), source })?;
            Some(ChatTemplate::new(&source, config.special_tokens.clone())?)
        }
        None => None,
    };
    Ok((tokenizer, template))
}
