//! Figures of the database as a whole, for those who watch over it: places, what waits, connections. Floor 2.

use sea_orm::sea_query::{Expr, Func, Query};
use uuid::Uuid;

use super::{Store, StoreError, rows::Row};
use crate::domain::{Partition, Position};

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

    /// The names of the event handlers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn handler_names(&self) -> Result<Vec<(Uuid, String)>, StoreError> {
        let select = Query::select()
            .columns(["id", "handler_name"])
            .from("event_handlers")
            .limit(MOST_ROWS)
            .to_owned();
        let name = |row| {
            let mut row = Row::of(row);
            Ok((row.next()?, row.next()?))
        };
        self.select(&select).await?.iter().map(name).collect()
    }

    /// How many deliveries wait or are dead, by handler and status.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delivery_counts(&self) -> Result<Vec<DeliveryCount>, StoreError> {
        let select = Query::select()
            .columns(["handler_id", "status"])
            .expr(Func::count(Expr::col("id")))
            .from("deliveries")
            .group_by_col("handler_id")
            .group_by_col("status")
            .limit(MOST_ROWS)
            .to_owned();
        let count = |row| {
            let mut row = Row::of(row);
            Ok(DeliveryCount {
                handler_id: row.next()?,
                status: row.next()?,
                count: row.next()?,
            })
        };
        self.select(&select).await?.iter().map(count).collect()
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
