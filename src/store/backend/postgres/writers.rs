//! The connections that write: one for each partition and log, kept from batch to batch. Floor 2.
//!
//! Taking a connection from a pool and giving it back costs a task and a lock each time, which a lone writer would feel.

use std::time::{Duration, Instant};

use sea_orm::{
    DatabaseConnection,
    sqlx::{Connection, PgConnection, Postgres, pool::PoolConnection},
};
use tokio::sync::{Mutex, MutexGuard};

use super::not_acquired;
use crate::{domain::Partition, store::StoreError};

/// A connection that was not used for this long is asked for a sign of life first: what is lost then was never sent.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);

/// A connection that is kept.
#[derive(Default)]
struct Kept {
    connection: Option<(PoolConnection<Postgres>, Instant)>,
}

/// The connections of one log, one for each partition.
pub(super) struct Writers {
    pool: DatabaseConnection,
    kept: Vec<Mutex<Kept>>,
}

/// A partition's connection while a batch uses it.
pub(super) struct Writer<'a>(MutexGuard<'a, Kept>);

impl Writers {
    pub(super) fn new(pool: &DatabaseConnection, partitions: usize) -> Self {
        Self {
            pool: pool.clone(),
            kept: (0..partitions).map(|_| Mutex::default()).collect(),
        }
    }

    /// The connection of a partition; made again where it was lost.
    pub(super) async fn of(&self, partition: Partition) -> Result<Writer<'_>, StoreError> {
        let mut kept = self.kept[partition.index()].lock().await;
        if let Some((connection, used_at)) = &mut kept.connection
            && used_at.elapsed() > PING_AFTER_IDLE
            && connection.ping().await.is_err()
        {
            kept.connection = None;
        }
        if kept.connection.is_none() {
            let pool = self.pool.get_postgres_connection_pool();
            let connection = pool.acquire().await.map_err(not_acquired)?;
            kept.connection = Some((connection, Instant::now()));
        }
        Ok(Writer(kept))
    }

    /// Gives all connections back, so that the pool can close.
    pub(super) async fn release(&self) {
        for kept in &self.kept {
            kept.lock().await.connection = None;
        }
    }
}

impl Writer<'_> {
    /// Runs one batch. A connection that failed in a way that says nothing of its state is not used again.
    pub(super) async fn run<T>(
        &mut self,
        batch: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some((mut connection, _)) = self.0.connection.take() else {
            return Err(StoreError::Inconsistent(
                "a writer lost its connection".to_owned(),
            ));
        };
        let outcome = batch(&mut connection).await;
        match &outcome {
            Err(StoreError::ConnectionLost(_) | StoreError::Inconsistent(_)) => {
                drop(connection.detach());
            }
            _ => self.0.connection = Some((connection, Instant::now())),
        }
        outcome
    }
}
