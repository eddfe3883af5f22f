//! What metrics are made of that only the whole knows. Floor 5.

use std::{error::Error, sync::Arc};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{App, PING_TIMEOUT};
use crate::metrics::{DatabaseFigures, Figures, Metrics, QueueFigure};

/// Writes the counts of events until it is stopped.
pub(super) async fn keep_counts(metrics: Arc<Metrics>, stop: CancellationToken) {
    if let Some(counts) = metrics.event_counts() {
        counts.run(stop).await;
    }
}

impl App {
    /// All metrics, as Prometheus reads them. Where the database does not answer soon, without what it would say.
    pub async fn metrics_text(&self, client_connections: usize) -> String {
        self.metrics.text(self.figures(client_connections)).await
    }

    async fn figures(&self, client_connections: usize) -> Figures {
        let database = match timeout(PING_TIMEOUT, DatabaseFigures::read(&self.store)).await {
            Ok(Ok(figures)) => Some(figures),
            Ok(Err(error)) => {
                let error = &error as &dyn Error;
                tracing::warn!(error, "the database has no figures for the metrics");
                None
            }
            Err(_) => {
                tracing::warn!("the database has no figures for the metrics in time");
                None
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
            database,
        }
    }
}
