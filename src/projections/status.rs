//! How far the read models are behind the log. Floor 4.

use super::Projections;
use crate::{
    domain::{AggregateId, Checkpoint, Position, Timestamp},
    store::StoreError,
};

/// How far the read models are behind the log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProjectionStatus {
    /// Events that are not folded yet.
    pub lag_events: u64,
    /// The age of the oldest of them, in milliseconds; 0 where there is none.
    pub lag_ms: f64,
    /// Read models with a fault.
    pub faulted: u64,
}

impl Projections {
    /// How far the read models are behind the log.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn status(&self, now: Timestamp) -> Result<ProjectionStatus, StoreError> {
        // The checkpoints come first: what is folded meanwhile only makes the answer too cautious.
        let checkpoints = self.store.checkpoints(Checkpoint::ReadModels).await?;
        let heads = self.store.heads().await?.events;
        let behind = |(head, at): (&Position, &Position)| (head.0 - at.0).max(0).unsigned_abs();
        let lag_events = heads.iter().zip(&checkpoints).map(behind).sum();
        let oldest = match lag_events {
            0 => None,
            _ => self.store.oldest_event_behind(&checkpoints).await?,
        };
        let age_micros = oldest.map_or(0, |oldest| now.as_micros() - oldest.as_micros());
        let (faulted, _) = self.store.faulted_models(0).await?;
        Ok(ProjectionStatus {
            lag_events,
            lag_ms: age_micros.max(0) as f64 / 1e3,
            faulted,
        })
    }

    /// How many read models have a fault, and the aggregates of the first few.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn faulted(&self, named: u64) -> Result<(u64, Vec<AggregateId>), StoreError> {
        self.store.faulted_models(named).await
    }
}
