//! What this server has seen of the logs, for the database to still have it when it has moved or was restored. Floor 2.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Store;
use crate::domain::{DatabaseId, Partition, Position};

/// The newest row of a log that this server has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which log.
    pub log: SeenLog,
    /// Of which partition.
    pub partition: Partition,
    /// Its place in it.
    pub position: Position,
    /// The id of the event; none where it is not known.
    pub id: Option<Uuid>,
}

/// The logs whose rows never go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenLog {
    /// The events.
    Events,
    /// The stream entries.
    Entries,
}

impl SeenLog {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Entries => "stream entries",
        }
    }
}

/// What a database is held to.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) database_id: DatabaseId,
    /// What this server has seen until now.
    pub(super) seen: Arc<dyn Fn() -> Vec<Seen> + Send + Sync>,
    pub(super) lost: CancellationToken,
}

impl Guard {
    /// Says so, once, and lets the server end: what it holds in memory is not true any more.
    pub(super) fn report_loss(&self, what: &str) {
        if !self.lost.is_cancelled() {
            tracing::error!(
                "the database has gone back behind what was read from it: {what}; this server stops"
            );
            self.lost.cancel();
        }
    }
}

impl Store {
    /// Has the database looked at, whenever it may be another one, for what `seen` says.
    pub fn hold_to(&self, seen: Arc<dyn Fn() -> Vec<Seen> + Send + Sync>) {
        self.backend.guard(Guard {
            database_id: self.database_id,
            seen,
            lost: self.lost.clone(),
        });
    }

    /// Tells that the database does not have any more what this server has seen.
    pub fn report_loss(&self, what: &str) {
        let guard = Guard {
            database_id: self.database_id,
            seen: Arc::new(Vec::new),
            lost: self.lost.clone(),
        };
        guard.report_loss(what);
    }

    /// Cancelled where the database does not have any more what this server has seen. It has to be started again then.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}
