//! The newest position of each log in each partition. Floor 2.

use std::fmt::Write;

use sea_orm::Statement;

use super::{Store, StoreError, rows::Row};
use crate::domain::Position;

/// The newest positions, one for each partition; 0 where a log is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// Of the events.
    pub events: Vec<Position>,
    /// Of the stream entries.
    pub entries: Vec<Position>,
    /// Of the changes of read models.
    pub changes: Vec<Position>,
}

impl Store {
    /// Reads the newest positions of all logs: one index look-up for each log and partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn heads(&self) -> Result<Heads, StoreError> {
        let backend = self.backend.dialect();
        let statement = Statement::from_string(backend, self.heads_sql());
        let mut heads = Heads::default();
        for row in self.read(statement).await? {
            heads.add(Row::of(&row))?;
        }
        Ok(heads)
    }

    /// The statement that finds them: a row for each partition, in their order.
    pub(super) fn heads_sql(&self) -> String {
        let mut sql = String::from("WITH partitions (no) AS (VALUES ");
        for partition in self.partitions.iter() {
            let comma = if partition.0 == 0 { "" } else { "," };
            let _ = write!(sql, "{comma}({partition})");
        }
        sql.push_str(
            ") SELECT CAST(COALESCE((SELECT MAX(position) FROM events WHERE partition_no = no), 0) AS bigint), \
             CAST(COALESCE((SELECT MAX(entry_position) FROM event_streams WHERE partition_no = no), 0) AS bigint), \
             CAST(COALESCE((SELECT MAX(change_position) FROM read_models WHERE partition_no = no), 0) AS bigint) \
             FROM partitions ORDER BY no",
        );
        sql
    }
}

impl Heads {
    /// Adds those of the next partition.
    pub(super) fn add(&mut self, mut row: Row<'_>) -> Result<(), StoreError> {
        self.events.push(Position(row.next()?));
        self.entries.push(Position(row.next()?));
        self.changes.push(Position(row.next()?));
        Ok(())
    }
}
