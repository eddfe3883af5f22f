//! Figures of the database as a whole, for those who watch over it: places, what waits, connections. Floor 2.

use std::time::Duration;

use sea_orm::{
    Statement,
    sea_query::{Expr, Func, Query},
};
use uuid::Uuid;

use super::{Store, StoreError, rows::Row};
use crate::domain::{Partition, Position, is_paused};

/// So many deliveries of one status are counted of a handler in a partition; more are told as these.
const MOST_COUNTED: u64 = 10_000;
/// The most rows that are read of what clients can make many of.
const MOST_ROWS: u64 = 20_000;

/// The connections of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// What they are for: `read` or `write`.
    pub pool: &'static str,
    /// How many are open.
    pub open: u64,
    /// How many are in use.
    pub in_use: u64,
    /// How many there can be.
    pub most: u64,
}

/// Where somebody who reads the log of events has got to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPlace {
    /// The partition.
    pub partition: Partition,
    /// Who it is, as it is stored.
    pub name: String,
    /// The last position that it is done with.
    pub position: Position,
}

/// An event handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerPlace {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whether what it calls has failed too often, so that it waits.
    pub is_paused: bool,
}

/// How many deliveries of a handler are not done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryCount {
    /// The handler.
    pub handler_id: Uuid,
    /// How far they are, as it is stored.
    pub status: String,
    /// How many.
    pub count: i64,
}

impl Store {
    /// The connections to the database that this server has.
    #[must_use]
    pub fn connections(&self) -> Vec<Connections> {
        self.backend.connections()
    }

    /// All checkpoints.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn checkpoint_places(&self) -> Result<Vec<CheckpointPlace>, StoreError> {
        let select = Query::select()
            .columns(["partition_no", "name", "position"])
            .from("checkpoints")
            .limit(MOST_ROWS)
            .to_owned();
        let place = |row| {
            let mut row = Row::of(row);
            Ok(CheckpointPlace {
                partition: row.partition()?,
                name: row.next()?,
                position: Position(row.next()?),
            })
        };
        self.select(&select).await?.iter().map(place).collect()
    }

    /// The event handlers by name, and whether each is paused; `probe` is the time that a probe behind a pause may take.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn handler_names(&self, probe: Duration) -> Result<Vec<HandlerPlace>, StoreError> {
        let now = self.clock.now();
        let select = Query::select()
            .columns(["id", "handler_name", "paused_until"])
            .from("event_handlers")
            .limit(MOST_ROWS)
            .to_owned();
        let handler = |row| {
            let mut row = Row::of(row);
            Ok(HandlerPlace {
                id: row.next()?,
                name: row.next()?,
                is_paused: is_paused(row.optional_instant()?, now, probe),
            })
        };
        self.select(&select).await?.iter().map(handler).collect()
    }

    /// How many deliveries wait, are tried again or are dead, of each handler: counted on their index, up to 10,000 in a partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delivery_counts(&self) -> Result<Vec<DeliveryCount>, StoreError> {
        let sql = format!(
            "SELECT handlers.id, statuses.status, CAST(SUM((SELECT COUNT(*) FROM ( \
                 SELECT 1 FROM deliveries WHERE partition_no = partitions.partition_no AND handler_id = handlers.id \
                 AND status = statuses.status LIMIT {MOST_COUNTED}) AS counted)) AS bigint) \
             FROM (SELECT id FROM event_handlers LIMIT {MOST_ROWS}) AS handlers \
             CROSS JOIN (SELECT 'RETRYING' AS status UNION ALL SELECT 'WAITING' UNION ALL SELECT 'DEAD') AS statuses \
             CROSS JOIN (SELECT partition_no FROM partition_locks WHERE log = 'events') AS partitions \
             GROUP BY handlers.id, statuses.status"
        );
        let count = |row| {
            let mut row = Row::of(row);
            Ok(DeliveryCount {
                handler_id: row.next()?,
                status: row.next()?,
                count: row.next()?,
            })
        };
        let statement = Statement::from_string(self.backend.dialect(), sql);
        self.read(statement).await?.iter().map(count).collect()
    }

    /// How many commands are pending.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pending_commands(&self) -> Result<i64, StoreError> {
        let select = Query::select()
            .expr(Func::count(Expr::col("id")))
            .from("commands")
            // Written out, so that the index of the pending ones alone is used.
            .and_where(Expr::cust("status = 'PENDING'"))
            .to_owned();
        let rows = self.select(&select).await?;
        rows.first().map_or(Ok(0), |row| Row::of(row).next())
    }
}
