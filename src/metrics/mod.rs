//! Metrics: what Prometheus is told, and the counts of events by type in the database. Floor 3.
//!
//! What happens often is counted where it happens. What stands in the database or in a queue is looked at when somebody
//! asks.

mod counts;
mod deliveries;
mod figures;
mod process;
mod removal;
mod requests;

use std::{sync::Arc, time::Duration};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

pub use counts::EventCounts;
pub use deliveries::DeliveryCounts;
pub use figures::{DatabaseFigures, Figures, QueueFigure};
pub use removal::OldCounts;
pub use requests::{OK, Operation};

use self::{figures::Gauges, process::Process, requests::Requests};
use crate::{
    config::Observability,
    domain::{
        Clock,
        append::{BatchReport, LogName},
    },
    store::Store,
};

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a tenth of a millisecond to half a minute, which is how long a request may take.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];
const BATCH_SIZES: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// What is measured of one log that is appended to.
struct LogMetrics {
    appended: IntCounter,
    batch_size: Histogram,
    commit_seconds: Histogram,
    append_seconds: Histogram,
    failures: IntCounter,
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    process: Process,
    gauges: Gauges,
    requests: Requests,
    subscriptions: IntGauge,
    websockets: IntGauge,
    leases: IntGauge,
    events: LogMetrics,
    entries: LogMetrics,
    counts: Option<EventCounts>,
    old_counts: OldCounts,
    deliveries: DeliveryCounts,
    /// One asks at a time.
    asking: tokio::sync::Mutex<()>,
}

/// Something that is counted for as long as this lives.
pub struct Counted(IntGauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// The metrics of a server.
    #[must_use]
    pub fn new(store: &Store, clock: Arc<dyn Clock>, config: &Observability) -> Arc<Self> {
        Self::register(store, clock, config).map_or_else(
            |error| {
                unreachable!("the names of the metrics are right, and each is there once: {error}")
            },
            Arc::new,
        )
    }

    fn register(
        store: &Store,
        clock: Arc<dyn Clock>,
        config: &Observability,
    ) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| add(&registry, IntGauge::new(name, help)?);
        let [events, entries] = log_metrics(&registry)?;
        let started_at_seconds = clock.now().as_micros() as f64 / 1e6;
        let counts = config
            .event_metrics
            .then(|| EventCounts::new(store.clone(), clock.clone()));
        let retention = config.event_metrics_retention;
        Ok(Self {
            process: Process::register(&registry, started_at_seconds)?,
            gauges: Gauges::register(&registry, store)?,
            requests: Requests::register(&registry)?,
            subscriptions: gauge("tidings_subscriptions", "Subscriptions that run.")?,
            websockets: gauge("tidings_websockets", "Websockets that are open.")?,
            leases: gauge(
                "tidings_leases_held",
                "Partitions that this server works on in the background.",
            )?,
            events,
            entries,
            counts,
            old_counts: OldCounts::register(&registry, store.clone(), clock, retention)?,
            deliveries: DeliveryCounts::register(&registry)?,
            asking: tokio::sync::Mutex::default(),
            registry,
        })
    }

    /// Counts a request that was answered, or a subscription that has ended.
    pub fn count_request(&self, operation: Operation, code: &str, took: Option<Duration>) {
        self.requests.count(operation, code, took);
    }

    /// Measures a batch.
    pub fn count_batch(&self, batch: &BatchReport<'_>) {
        let log = match batch.log {
            LogName::Events => &self.events,
            LogName::Entries => &self.entries,
        };
        if !batch.is_committed {
            return log.failures.inc();
        }
        let appended: usize = batch.requests.iter().map(|(_, count)| count).sum();
        log.appended
            .inc_by(u64::try_from(appended).unwrap_or(u64::MAX));
        log.batch_size.observe(batch.size as f64);
        log.commit_seconds.observe(batch.took.as_secs_f64());
        for (took, _) in batch.requests {
            log.append_seconds.observe(took.as_secs_f64());
        }
        if let Some(counts) = self.counts.as_ref().filter(|_| !batch.events.is_empty()) {
            counts.add_batch(batch.events, batch.requests);
        }
    }

    /// Counts a subscription while it runs.
    #[must_use]
    pub fn subscription(&self) -> Counted {
        counted(&self.subscriptions)
    }

    /// Counts a websocket while it is open.
    #[must_use]
    pub fn websocket(&self) -> Counted {
        counted(&self.websockets)
    }

    /// Counts a lease while it is held.
    #[must_use]
    pub fn lease(&self) -> Counted {
        counted(&self.leases)
    }

    /// The counts of events by type; none where they are turned off.
    #[must_use]
    pub fn event_counts(&self) -> Option<&EventCounts> {
        self.counts.as_ref()
    }

    /// What removes counts of events that are too old, also where none are added.
    #[must_use]
    pub fn old_counts(&self) -> &OldCounts {
        &self.old_counts
    }

    /// What is counted of event handlers.
    #[must_use]
    pub fn deliveries(&self) -> &DeliveryCounts {
        &self.deliveries
    }

    /// Everything, as Prometheus reads it.
    pub async fn text(&self, figures: impl Future<Output = Figures>) -> String {
        let _turn = self.asking.lock().await;
        self.gauges.set(figures.await);
        self.gauges.set_counts(self.counts.as_ref());
        self.process.update();
        let mut text = String::with_capacity(16 << 10);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }
}

fn counted(gauge: &IntGauge) -> Counted {
    gauge.inc();
    Counted(gauge.clone())
}

/// Registers a metric.
fn add<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> prometheus::Result<T> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// A gauge by some labels.
fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn log_metrics(registry: &Registry) -> prometheus::Result<[LogMetrics; 2]> {
    let counter = |name: &str, help: &str| {
        add(
            registry,
            IntCounterVec::new(Opts::new(name, help), &["log"])?,
        )
    };
    let histogram = |name: &str, help: &str, buckets: &[f64]| {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        add(registry, HistogramVec::new(options, &["log"])?)
    };
    let appended = counter(
        "tidings_appended_total",
        "Events and stream entries that clients and commands have appended by this server; not the entries that are published.",
    )?;
    let batch_size = histogram(
        "tidings_batch_size",
        "Events or entries that went to the database together, with the commands among them.",
        BATCH_SIZES,
    )?;
    let commit_seconds = histogram(
        "tidings_commit_duration_seconds",
        "How long the database took for a batch.",
        SECONDS,
    )?;
    let append_seconds = histogram(
        "tidings_append_duration_seconds",
        "How long appends took, from taking the request to its commit.",
        SECONDS,
    )?;
    let failures = counter(
        "tidings_commit_failures_total",
        "Batches that the database did not take.",
    )?;
    let of_log = |log: LogName| {
        let labels = [log.as_str()];
        LogMetrics {
            appended: appended.with_label_values(&labels),
            batch_size: batch_size.with_label_values(&labels),
            commit_seconds: commit_seconds.with_label_values(&labels),
            append_seconds: append_seconds.with_label_values(&labels),
            failures: failures.with_label_values(&labels),
        }
    };
    Ok([of_log(LogName::Events), of_log(LogName::Entries)])
}
