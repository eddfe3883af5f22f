//! The store: the only user of the database. Floor 2. No transaction leaves it.
//!
//! What the two databases do differently lies in `backend`; one file here for each family of tables.

mod aggregates;
mod backend;
mod bounded;
mod checkpoints;
mod commands;
mod deliveries;
mod domains;
mod due_commands;
mod error;
mod events;
mod exports;
mod figures;
mod giving_way;
mod guard;
mod handlers;
mod heads;
mod imports;
mod leases;
mod metrics;
mod open;
mod pages;
mod read_models;
mod rebuilds;
mod rows;
mod streams;

use std::{sync::Arc, time::Duration};

use sea_orm::{QueryResult, Statement, sea_query::SelectStatement};

use backend::Backend;
pub use backend::Doorbell;
use bounded::Part;
pub use commands::{CommandFilter, CommandPage, CommandPlace};
pub use deliveries::DueDeliveries;
pub use domains::DomainInForce;
pub use due_commands::DueCommands;
pub use error::{OpenError, StoreError};
pub use events::{AppendedAcross, EventRange, EventScan, LockWaits};
pub use exports::{ExportedDelivery, SnapshotRow};
pub use figures::{CheckpointPlace, Connections, DeliveryCount, HandlerPlace};
pub use giving_way::GivingWay;
use guard::Guard;
pub use guard::{Seen, SeenLog};
pub use handlers::{MOST_HANDLERS, NewHandler, SQL_CALLS_AT_A_TIME, SqlFunctions};
pub use heads::Heads;
pub use imports::{ImportBatch, ImportOutcome, ImportPlace, ImportRefusal, ImportedDelivery};
pub use leases::LeaseGrant;
pub use pages::{EventPage, EventPageOutcome};
pub use read_models::{LoadedModels, ReadModelList, ReadModelPage};
pub use rebuilds::{RebuildScope, RebuildSize, RebuildTarget};
pub use streams::EntryRange;

use crate::domain::{Clock, DatabaseId, PartitionCount};

/// An open database.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    database_id: DatabaseId,
    partitions: PartitionCount,
    statements: Arc<std::sync::atomic::AtomicU64>,
    lost: tokio_util::sync::CancellationToken,
}

impl Store {
    /// The id of the database.
    #[must_use]
    pub fn database_id(&self) -> DatabaseId {
        self.database_id
    }

    /// How many partitions the database has.
    #[must_use]
    pub fn partitions(&self) -> PartitionCount {
        self.partitions
    }

    /// How long a write waits for a lock that somebody else holds.
    #[must_use]
    pub fn lock_timeout(&self) -> Duration {
        self.backend.lock_timeout()
    }

    /// For a transaction that is about to be tried, and that others may make the victim of a deadlock.
    #[must_use]
    pub fn giving_way(&self) -> GivingWay {
        GivingWay::begin(self.lock_timeout())
    }

    /// Which database it is: `sqlite` or `postgres`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.backend.kind()
    }

    /// How many statements have read from the database since the start.
    #[must_use]
    pub fn statements_read(&self) -> u64 {
        self.statements.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What tells servers on one database that there is something to read; `None` where only one server can be.
    #[must_use]
    pub fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        self.backend.doorbell()
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// When it gives none within `time_out`.
    pub async fn ping(&self, time_out: Duration) -> Result<(), StoreError> {
        let sign = Statement::from_string(self.backend.dialect(), "SELECT 1");
        match tokio::time::timeout(time_out, self.backend.read(sign, usize::MAX)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(StoreError::Unreachable(sea_orm::DbErr::ConnectionAcquire(
                sea_orm::ConnAcquireErr::Timeout,
            ))),
        }
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.backend.close().await;
    }

    /// Reads rows. A pooled connection may have died while nobody used it, so a lost one is tried once again.
    async fn select(&self, select: &SelectStatement) -> Result<Vec<QueryResult>, StoreError> {
        self.read(self.backend.dialect().build(select)).await
    }

    async fn read(&self, statement: Statement) -> Result<Vec<QueryResult>, StoreError> {
        let part = self.read_up_to(statement, usize::MAX).await?;
        Ok(part.rows)
    }

    /// The same up to the row with which they have `max_bytes`: at least one.
    async fn read_up_to(
        &self,
        statement: Statement,
        max_bytes: usize,
    ) -> Result<Part<QueryResult>, StoreError> {
        self.statements
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match self.backend.read(statement.clone(), max_bytes).await {
            Err(StoreError::ConnectionLost(_)) => self.backend.read(statement, max_bytes).await,
            answer => answer,
        }
    }
}
