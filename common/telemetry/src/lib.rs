//! Tracing for services and the command line: one call in `main`; metrics, each registry a service; and what the system says
//! of this process.
//!
//! Logs go to standard error, as text or JSON lines. With an OTLP endpoint, spans go there too.

#![forbid(unsafe_code)]

pub mod metrics;
mod process;

pub use process::{peak_memory_bytes, resident_memory_bytes};

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to trace and where to.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// `service.name` of the spans.
    pub service: &'static str,
    /// Directives of `tracing_subscriber::EnvFilter`, e.g. `info,roundhouse_executor=debug`.
    pub filter: String,
    /// How logs are written.
    pub format: LogFormat,
    /// An OTLP gRPC endpoint, e.g. `http://localhost:4317`; without one no spans are exported.
    pub otlp_endpoint: Option<String>,
}

/// Telemetry that could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not of the form.
    #[error("log filter {filter:?}: {source}")]
    Filter {
        /// The filter given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter could not be made.
    #[error("OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Telemetry runs already.
    #[error(transparent)]
    AlreadyStarted(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps the exporter alive; the last spans are sent when it is dropped.
#[derive(Debug)]
#[must_use = "spans are exported only while this lives"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts tracing for this process. With an endpoint it must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the filter is malformed, the exporter cannot be made, or tracing was started before.
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(&config.filter)
            .map_err(|source| TelemetryError::Filter { filter: config.filter.clone(), source })?;
        let output = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let logs = match config.format {
            LogFormat::Text => output.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => output.json().boxed(),
        };
        let provider =
            config.otlp_endpoint.as_deref().map(|endpoint| exporter(config.service, endpoint)).transpose()?;
        let spans = provider
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(config.service)));
        tracing_subscriber::registry().with(filter).with(logs).with(spans).try_init()?;
        Ok(Self { provider })
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

fn exporter(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}
