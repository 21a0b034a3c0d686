//! `up`, `compiler` and `executor`: the services as processes.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use roundhouse_compiler::{CompilerConfig, CompilerService};
use roundhouse_executor::{ExecutorConfig, ExecutorService};
use roundhouse_hub::HubConfig;
use roundhouse_rpc::{Readiness, Server, ServerConfig, shutdown_signal};
use roundhouse_telemetry::metrics::{Metrics, MetricsServer};
use tonic::service::Routes;

use crate::clients::ServiceArgs;
use crate::image_args::ImageArgs;
use crate::tensorrt_library::LibraryArgs;

/// Where a service listens.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListenArgs {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, env = "ROUNDHOUSE_ADDRESS", value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// Write the address to this file once the service listens.
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// Serve the metrics over HTTP at /metrics of this address, for Prometheus; port 0 takes a free one.
    #[arg(long, env = "ROUNDHOUSE_METRICS_ADDRESS", value_name = "IP:PORT")]
    metrics_address: Option<SocketAddr>,
    /// Write the address of the metrics to this file once they are served.
    #[arg(long, value_name = "FILE", requires = "metrics_address")]
    metrics_address_file: Option<PathBuf>,
    /// After SIGTERM, how many seconds running calls may take to end.
    #[arg(long, default_value_t = 30)]
    drain_seconds: u64,
}

impl ListenArgs {
    /// Of a service inside a command, which binds its own server.
    const fn embedded() -> Self {
        Self {
            address: None,
            address_file: None,
            metrics_address: None,
            metrics_address_file: None,
            drain_seconds: 0,
        }
    }

    async fn bind(&self, default_port: u16) -> anyhow::Result<Server> {
        let address = self.address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], default_port)));
        let drain_timeout = Duration::from_secs(self.drain_seconds);
        let server = Server::bind(&ServerConfig { address, drain_timeout }).await?;
        if let Some(path) = &self.address_file {
            write_address(path, server.address())?;
        }
        Ok(server)
    }

    /// Serves the metrics where asked to, until the process ends.
    async fn serve_metrics(&self, metrics: Vec<Metrics>) -> anyhow::Result<()> {
        let Some(address) = self.metrics_address else { return Ok(()) };
        let server = MetricsServer::bind(address).await?;
        tracing::info!(address = %server.address(), "metrics");
        if let Some(path) = &self.metrics_address_file {
            write_address(path, server.address())?;
        }
        tokio::spawn(server.serve(metrics, std::future::pending()));
        Ok(())
    }
}

/// Options of the compiler service.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompilerOptions {
    /// Where checkpoints of object stores are cached and engines are built. The hub's cache is where Python has it.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Refuse models that are folders or files of this machine.
    #[arg(long)]
    no_local_paths: bool,
    /// Use the hub's cache only, never the network; HF_HUB_OFFLINE=1 says the same.
    #[arg(long)]
    offline: bool,
    /// Compilations at a time.
    #[arg(long, default_value_t = 1)]
    concurrent_builds: usize,
    /// Compilations that wait.
    #[arg(long, default_value_t = 64)]
    queue_limit: usize,
}

/// Options of the executor service.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExecutorOptions {
    /// Where pulled engines are kept.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of pulled engines to keep.
    #[arg(long, value_name = "BYTES")]
    cache_limit_bytes: Option<u64>,
    /// Engines to load before the service is ready: keys, comma-separated.
    #[arg(long, value_delimiter = ',', value_name = "KEY,…")]
    load: Vec<String>,
    /// Bytes for the weights and workspaces of loaded engines: idle ones make room for another one. All stay by default.
    #[arg(long, value_name = "BYTES")]
    engine_memory_bytes: Option<u64>,
    /// Load an engine of the store when a request names it: by its key, or by its model where there is one for this
    /// machine.
    #[arg(long)]
    load_on_demand: bool,
    /// Bytes for the KV caches of all sessions.
    #[arg(long, default_value_t = 4 << 30)]
    kv_memory_bytes: u64,
    /// Bytes of memory for the keys and values that requests share; 0 shares nothing.
    #[arg(long, default_value_t = 1 << 30)]
    prefix_cache_bytes: u64,
    /// Folder of this executor alone for shared keys and values that leave memory; without one they are dropped.
    #[arg(long, value_name = "DIR")]
    prefix_cache_dir: Option<PathBuf>,
    /// Bytes of it.
    #[arg(long, default_value_t = 16 << 30)]
    prefix_cache_disk_bytes: u64,
    #[command(flatten)]
    images: ImageArgs,
    /// Generations of one engine that may run or wait at a time.
    #[arg(long, default_value_t = 256)]
    max_generations: usize,
    /// Sessions at a time.
    #[arg(long, default_value_t = 1024)]
    max_sessions: usize,
    /// Seconds that an idle session lives.
    #[arg(long, default_value_t = 900)]
    session_idle_seconds: u64,
    /// Seconds that an idle session keeps its cache; then its next turn computes what is not shared of it again.
    #[arg(long, default_value_t = 300)]
    session_cache_seconds: u64,
    /// Where sessions are stored at the ends of their turns, for other executors to go on with: a folder, s3://…, gs://…
    /// or az://….
    #[arg(long, env = "ROUNDHOUSE_SESSION_STORE", value_name = "URL")]
    session_store: Option<String>,
    /// Seconds that a client may leave its stream unread.
    #[arg(long, default_value_t = 30)]
    stall_seconds: u64,
    /// Seconds that a generation may wait for its first step.
    #[arg(long, default_value_t = 60)]
    queue_seconds: u64,
    /// Seconds that a step may take before health turns NOT_SERVING.
    #[arg(long, default_value_t = 120)]
    step_timeout_seconds: u64,
    /// How many times as long as a step of one token a step with running streams may take because of new prompts;
    /// steps of up to 5 ms, of up to eight prompt tokens, and a quarter more than the streams take by themselves are always allowed.
    #[arg(long, default_value_t = 2.5)]
    prompt_slowdown: f64,
    /// New tokens in one step over all sequences.
    #[arg(long, default_value_t = 512)]
    step_token_budget: usize,
    /// Threads of the CPU backend; one a core by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// `roundhouse compiler`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompilerArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Engine store: a folder, s3://…, gs://… or az://….
    #[arg(long, env = "ROUNDHOUSE_STORE", value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    options: CompilerOptions,
    #[command(flatten)]
    library: LibraryArgs,
    /// The home folder of the command that embeds the service; as `home` finds it for a service by itself.
    #[arg(skip)]
    home: Option<PathBuf>,
}

/// `roundhouse executor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExecutorArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Engine store: a folder, s3://…, gs://… or az://….
    #[arg(long, env = "ROUNDHOUSE_STORE", value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    options: ExecutorOptions,
    #[command(flatten)]
    library: LibraryArgs,
    /// The home folder of the command that embeds the service; as `home` finds it for a service by itself.
    #[arg(skip)]
    home: Option<PathBuf>,
}

/// `roundhouse up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Engine store: a folder, s3://…, gs://… or az://….
    #[arg(long, env = "ROUNDHOUSE_STORE", value_name = "URL")]
    store: Option<String>,
    #[command(flatten)]
    compiler: CompilerOptions,
    #[command(flatten)]
    executor: ExecutorOptions,
    #[command(flatten)]
    library: LibraryArgs,
}

impl CompilerArgs {
    /// Of a compiler service inside a command.
    pub(crate) fn embedded(args: &ServiceArgs) -> Self {
        let home = home(args.home.as_deref());
        Self {
            listen: ListenArgs::embedded(),
            store: Some(store(args.store.as_deref(), &home)),
            options: CompilerOptions {
                work_dir: Some(home.join("compiler")),
                no_local_paths: false,
                offline: false,
                concurrent_builds: 1,
                queue_limit: 64,
            },
            library: args.library.clone(),
            home: Some(home),
        }
    }

    fn config(&self) -> CompilerConfig {
        let home = home(self.home.as_deref());
        let work_dir = self.options.work_dir.clone().unwrap_or_else(|| home.join("compiler"));
        let mut hub = HubConfig::from_env();
        hub.cache = work_dir.join("checkpoints");
        hub.local_paths = !self.options.no_local_paths;
        hub.offline |= self.options.offline;
        CompilerConfig {
            store: store(self.store.as_deref(), &home),
            build_dir: work_dir.join("builds"),
            hub,
            tensorrt: self.library.search(&home),
            nvrtc: self.library.nvrtc(&home),
            concurrent_builds: self.options.concurrent_builds,
            queue_limit: self.options.queue_limit,
        }
    }
}

impl ExecutorArgs {
    /// Of an executor service inside a command.
    pub(crate) fn embedded(args: &ServiceArgs) -> Self {
        let (store, cache_dir) = embedded_executor_places(args);
        Self {
            listen: ListenArgs::embedded(),
            store: Some(store),
            options: ExecutorOptions {
                cache_dir: Some(cache_dir),
                cache_limit_bytes: None,
                load: Vec::new(),
                engine_memory_bytes: None,
                load_on_demand: false,
                kv_memory_bytes: 4 << 30,
                prefix_cache_bytes: 1 << 30,
                prefix_cache_dir: None,
                prefix_cache_disk_bytes: 16 << 30,
                images: ImageArgs::default(),
                max_generations: 256,
                max_sessions: 1024,
                session_idle_seconds: 24 * 3600,
                session_cache_seconds: 24 * 3600,
                session_store: None,
                stall_seconds: 600,
                queue_seconds: 600,
                step_timeout_seconds: 120,
                prompt_slowdown: 2.5,
                step_token_budget: 512,
                threads: args.threads,
            },
            library: args.library.clone(),
            home: args.home.clone(),
        }
    }

    fn config(&self) -> ExecutorConfig {
        let home = home(self.home.as_deref());
        let options = &self.options;
        ExecutorConfig {
            store: store(self.store.as_deref(), &home),
            cache_dir: options.cache_dir.clone().unwrap_or_else(|| home.join("executor")),
            cache_limit_bytes: options.cache_limit_bytes,
            engine_memory_bytes: options.engine_memory_bytes,
            load_on_demand: options.load_on_demand,
            kv_memory_bytes: options.kv_memory_bytes,
            prefix_cache_bytes: options.prefix_cache_bytes,
            prefix_cache_dir: options.prefix_cache_dir.clone(),
            prefix_cache_disk_bytes: options.prefix_cache_disk_bytes,
            images: options.images.config(),
            max_generations: options.max_generations,
            max_sessions: options.max_sessions,
            session_idle_timeout: Duration::from_secs(options.session_idle_seconds),
            session_cache_timeout: Duration::from_secs(options.session_cache_seconds),
            session_store: options.session_store.clone(),
            stall_timeout: Duration::from_secs(options.stall_seconds),
            queue_timeout: Duration::from_secs(options.queue_seconds),
            step_timeout: Duration::from_secs(options.step_timeout_seconds),
            step_token_budget: options.step_token_budget,
            prompt_slowdown: options.prompt_slowdown,
            threads: options.threads,
            tensorrt: self.library.search(&home),
        }
    }
}

/// The folder for everything that is not asked for elsewhere.
pub(crate) fn home(given: Option<&Path>) -> PathBuf {
    let of_user = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        cache.unwrap_or_else(std::env::temp_dir).join("roundhouse")
    };
    given.map_or_else(
        || std::env::var_os("ROUNDHOUSE_HOME").map_or_else(of_user, PathBuf::from),
        Path::to_path_buf,
    )
}

fn store(given: Option<&str>, home: &Path) -> String {
    given.map_or_else(|| home.join("store").display().to_string(), str::to_owned)
}

/// The store and the cache folder of an executor service inside a command.
pub(crate) fn embedded_executor_places(args: &ServiceArgs) -> (String, PathBuf) {
    let home = home(args.home.as_deref());
    (store(args.store.as_deref(), &home), home.join("executor"))
}

/// Writes an address to a file, which is there only when it is whole.
fn write_address(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let whole = path.with_extension("partial");
    std::fs::write(&whole, address.to_string()).with_context(|| whole.display().to_string())?;
    std::fs::rename(&whole, path).with_context(|| path.display().to_string())
}

/// From before anybody can know the address: who knows it can stop the service.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    shutdown_signal().context("cannot listen for signals")
}

/// Serves the compiler until SIGTERM.
pub(crate) async fn compiler(args: CompilerArgs) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let server = args.listen.bind(7610).await?;
    run_compiler(server, args, stop).await
}

/// Serves the executor until SIGTERM.
pub(crate) async fn executor(args: ExecutorArgs) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let server = args.listen.bind(7620).await?;
    run_executor(server, args, stop).await
}

/// Serves the compiler on `server` until `shutdown`.
pub(crate) async fn run_compiler(
    server: Server,
    args: CompilerArgs,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let service = CompilerService::open(args.config()).await?;
    args.listen.serve_metrics(vec![service.metrics().clone()]).await?;
    tracing::info!(address = %server.address(), "compiler service");
    let ready = |readiness: Readiness| async move { readiness.serving().await };
    let result =
        server.serve(service.routes(Routes::default()), CompilerService::NAMES, ready, shutdown).await;
    service.stop().await;
    Ok(result?)
}

/// Serves the executor on `server` until `shutdown`.
pub(crate) async fn run_executor(
    server: Server,
    args: ExecutorArgs,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let service = ExecutorService::open(args.config()).await?;
    args.listen.serve_metrics(vec![service.metrics().clone()]).await?;
    tracing::info!(address = %server.address(), "executor service");
    let preload = args.options.load.clone();
    let loader = service.clone();
    let ready = |readiness: Readiness| async move { load_and_serve(&loader, &preload, &readiness).await };
    let routes = service.routes(Routes::default());
    let result = server.serve(routes, ExecutorService::NAMES, ready, shutdown).await;
    service.stop().await;
    Ok(result?)
}

/// Serves both in one process until SIGTERM.
pub(crate) async fn up(args: UpArgs) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let server = args.listen.bind(7610).await?;
    let compiler = CompilerArgs {
        listen: args.listen.clone(),
        store: args.store.clone(),
        options: args.compiler,
        library: args.library.clone(),
        home: None,
    };
    let executor = ExecutorArgs {
        listen: args.listen,
        store: args.store,
        options: args.executor,
        library: args.library,
        home: None,
    };
    let compiler_service = CompilerService::open(compiler.config()).await?;
    let executor_service = ExecutorService::open(executor.config()).await?;
    let metrics = vec![compiler_service.metrics().clone(), executor_service.metrics().clone()];
    executor.listen.serve_metrics(metrics).await?;
    tracing::info!(address = %server.address(), "compiler and executor services");
    let routes = executor_service.routes(compiler_service.routes(Routes::default()));
    let names: Vec<&'static str> = [CompilerService::NAMES, ExecutorService::NAMES].concat();
    let loader = executor_service.clone();
    let ready = |readiness: Readiness| async move {
        load_and_serve(&loader, &executor.options.load, &readiness).await
    };
    let result = server.serve(routes, &names, ready, stop).await;
    compiler_service.stop().await;
    executor_service.stop().await;
    Ok(result?)
}

/// Loads the engines that were asked for; health turns SERVING only when all are there.
async fn load_and_serve(service: &ExecutorService, keys: &[String], readiness: &Readiness) {
    for key in keys {
        if let Err(error) = service.load(key).await {
            tracing::error!(key, %error, "not ready: an engine to load at the start could not be loaded");
            return;
        }
    }
    service.report_health(readiness).await;
}
