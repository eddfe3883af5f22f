//! Removes counts of events that are too old. Floor 3.
//!
//! Any server that works in the background does it, also one that counts nothing itself: doing it twice does no harm.

use std::{error::Error, sync::Arc, time::Duration};

use prometheus::{IntCounter, Registry};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::add;
use crate::{
    domain::{Clock, Timestamp},
    store::{Store, StoreError},
};

/// How often it is looked for counts that are too old, and how soon again where that has failed.
const REMOVE_EVERY: Duration = Duration::from_secs(3600);
const PAUSE_AFTER_FAULT: Duration = Duration::from_secs(60);

/// Removes what is older than it may be.
pub struct OldCounts {
    store: Store,
    clock: Arc<dyn Clock>,
    retention: Duration,
    failures: IntCounter,
}

impl OldCounts {
    pub(super) fn register(
        registry: &Registry,
        store: Store,
        clock: Arc<dyn Clock>,
        retention: Duration,
    ) -> prometheus::Result<Self> {
        let failures = IntCounter::new(
            "tidings_event_metrics_removal_failures_total",
            "How often old counts of events could not be removed.",
        )?;
        Ok(Self {
            store,
            clock,
            retention,
            failures: add(registry, failures)?,
        })
    }

    /// Removes once an hour until it is stopped.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            // Cut off, the rest goes another time.
            let removed = tokio::select! {
                () = stop.cancelled() => return,
                removed = self.remove() => removed,
            };
            let pause = match removed {
                Ok(()) => REMOVE_EVERY,
                Err(error) => {
                    self.failures.inc();
                    let error = &error as &dyn Error;
                    tracing::warn!(error, "old counts of events are not removed; trying again");
                    PAUSE_AFTER_FAULT
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    async fn remove(&self) -> Result<(), StoreError> {
        let retention_micros = i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX);
        let now_micros = self.clock.now().as_micros();
        let before = Timestamp::from_micros(now_micros.saturating_sub(retention_micros));
        self.store.remove_event_metrics_before(before).await
    }
}
