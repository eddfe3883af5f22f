//! What came of handing events to event handlers on this server. Floor 3.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::add;

/// Counts what becomes of deliveries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeliveryCounts {
    delivered: IntCounter,
    failed: IntCounter,
    dead: IntCounter,
}

impl DeliveryCounts {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let outcomes = Opts::new(
            "tidings_deliveries_total",
            "Attempts of this server to hand an event to a handler, by outcome; dead: those among the failed that were the last.",
        );
        let outcomes = add(registry, IntCounterVec::new(outcomes, &["outcome"])?)?;
        Ok(Self {
            delivered: outcomes.with_label_values(&["delivered"]),
            failed: outcomes.with_label_values(&["failed"]),
            dead: outcomes.with_label_values(&["dead"]),
        })
    }

    /// Counts attempts that succeeded.
    pub fn delivered(&self, count: usize) {
        self.delivered
            .inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Counts an attempt that failed.
    pub fn failed(&self) {
        self.failed.inc();
    }

    /// Counts a delivery whose last attempt failed.
    pub fn dead(&self) {
        self.dead.inc();
    }
}
