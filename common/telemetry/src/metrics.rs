//! Metrics: typed names, one registry a service, and the text that Prometheus reads.

pub mod names;
mod server;

pub use names::{CounterName, GaugeName, HistogramName};
pub use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::histogram::Histogram;
pub use server::{MetricsServer, MetricsServerError};

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Before every name.
const PREFIX: &str = "roundhouse";

/// The `Content-Type` of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The metrics of a service. Cheap to clone; all clones are one registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

/// Counters of one name, by their labels.
pub type Counters<L> = Family<L, Counter>;

/// Histograms of one name, by their labels.
pub type Histograms<L> = Family<L, Histogram, Buckets>;

/// The upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// What can be seen only when it is asked for, such as a queue's length.
pub trait Observed: Send + Sync + 'static {
    /// Says what there is now.
    ///
    /// # Errors
    /// Only what [`Observations`] returns.
    fn observe(&self, observations: &mut Observations<'_>) -> std::fmt::Result;
}

/// Takes what an [`Observed`] says.
pub struct Observations<'a>(DescriptorEncoder<'a>);

impl Observations<'_> {
    /// The values of a gauge by their labels, each set of labels once.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &GaugeName,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> std::fmt::Result {
        let mut family =
            self.0.encode_descriptor(name.name, name.help, name.unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Observations<'_> {
    /// A count that is kept elsewhere.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn counter(&mut self, name: &CounterName, value: u64) -> std::fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name.name, name.help, None, MetricType::Counter)?)
    }
}

struct Collected<T>(Arc<T>);

impl<T> Debug for Collected<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Collected")
    }
}

impl<T: Observed> Collector for Collected<T> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.0.observe(&mut Observations(encoder))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { registry: Arc::new(Mutex::new(Registry::with_prefix(PREFIX))) }
    }
}

impl Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Adds counters. A name is added once to a registry.
    #[must_use]
    pub fn counters<L>(&self, name: &CounterName) -> Counters<L>
    where
        L: EncodeLabelSet + Clone + Debug + Hash + Eq + Send + Sync + 'static,
    {
        let counters = Counters::<L>::default();
        self.registry.lock().register(name.name, name.help, counters.clone());
        counters
    }

    /// Adds histograms of seconds. A name is added once to a registry.
    #[must_use]
    pub fn histograms<L>(&self, name: &HistogramName) -> Histograms<L>
    where
        L: EncodeLabelSet + Clone + Debug + Hash + Eq + Send + Sync + 'static,
    {
        let histograms = Histograms::<L>::new_with_constructor(Buckets(name.buckets));
        self.registry.lock().register_with_unit(
            name.name,
            name.help,
            prometheus_client::registry::Unit::Seconds,
            histograms.clone(),
        );
        histograms
    }

    /// Adds what is observed whenever the metrics are read.
    pub fn observe(&self, observed: Arc<impl Observed>) {
        self.registry.lock().register_collector(Box::new(Collected(observed)));
    }

    /// All of them, as Prometheus reads them.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Labels = [(&'static str, &'static str); 1];

    struct Queue;

    impl Observed for Queue {
        fn observe(&self, observations: &mut Observations<'_>) -> std::fmt::Result {
            observations.gauge::<Labels>(&names::NUM_REQUESTS_WAITING, [([("model", "m")], 3.0)])
        }
    }

    #[test]
    fn what_is_counted_and_observed_is_in_the_text() {
        let metrics = Metrics::default();
        let tokens = metrics.counters::<Labels>(&names::GENERATION_TOKENS);
        let latency = metrics.histograms::<Labels>(&names::INTER_TOKEN_LATENCY);
        metrics.observe(Arc::new(Queue));
        tokens.get_or_create(&[("model", "m")]).inc_by(7);
        latency.get_or_create(&[("model", "m")]).observe(0.03);
        let text = metrics.text().unwrap();
        for line in [
            "roundhouse_generation_tokens_total{model=\"m\"} 7",
            "roundhouse_inter_token_latency_seconds_count{model=\"m\"} 1",
            "roundhouse_inter_token_latency_seconds_bucket{model=\"m\",le=\"0.025\"} 0",
            "roundhouse_inter_token_latency_seconds_bucket{model=\"m\",le=\"0.05\"} 1",
            "roundhouse_num_requests_waiting{model=\"m\"} 3.0",
            "# TYPE roundhouse_num_requests_waiting gauge",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
