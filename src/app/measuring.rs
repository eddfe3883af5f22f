//! What metrics are made of that only the whole knows. Floor 5.

use std::{error::Error, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{App, PING_TIMEOUT};
use crate::metrics::{DatabaseFigures, Figures, Metrics, QueueFigure};

/// How long the database may take for one of the figures. Prometheus waits for ten seconds.
const FIGURE_TIMEOUT: Duration = Duration::from_secs(1);

/// Removes counts of events that are too old until it is stopped.
pub(super) async fn remove_old_counts(metrics: Arc<Metrics>, stop: CancellationToken) {
    metrics.old_counts().run(stop).await;
}

/// Writes the counts of events until it is stopped.
pub(super) async fn keep_counts(metrics: Arc<Metrics>, stop: CancellationToken) {
    if let Some(counts) = metrics.event_counts() {
        counts.run(stop).await;
    }
}

impl App {
    /// All metrics, as Prometheus reads them. Where the database does not answer, without what it would say.
    pub async fn metrics_text(&self, client_connections: usize) -> String {
        self.metrics.text(self.figures(client_connections)).await
    }

    async fn figures(&self, client_connections: usize) -> Figures {
        // By itself: a figure that is slow does not make a database that answers seem away.
        let pinged = self.store.ping(PING_TIMEOUT).await;
        let database = match &pinged {
            Ok(()) => {
                DatabaseFigures::read(&self.store, FIGURE_TIMEOUT, self.handlers.probe_time()).await
            }
            Err(error) => {
                let error = error as &dyn Error;
                tracing::warn!(error, "the database has no figures for the metrics");
                DatabaseFigures::default()
            }
        };
        let queues = self.appender.queue_lengths();
        let queue = |length: &crate::appender::QueueLength| QueueFigure {
            log: length.log,
            partition: length.partition.0,
            requests: length.requests,
            bytes: length.bytes,
        };
        Figures {
            queues: queues.iter().map(queue).collect(),
            client_connections,
            is_database_up: pinged.is_ok(),
            database,
        }
    }
}
