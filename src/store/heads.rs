//! The newest position of each log in each partition. Floor 2.

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
        let statement = Statement::from_string(backend, Self::heads_sql());
        let mut heads = Heads::default();
        for row in self.read(statement).await? {
            heads.add(Row::of(&row))?;
        }
        Ok(heads)
    }

    /// The statement that finds them: a row for each partition, in their order. It begins with a table that is divided as the
    /// others are, so that an engine that divides them can ask each part for its own.
    pub(super) fn heads_sql() -> &'static str {
        "SELECT CAST(COALESCE((SELECT MAX(position) FROM events e WHERE e.partition_no = l.partition_no), 0) AS bigint), \
         CAST(COALESCE((SELECT MAX(entry_position) FROM event_streams s WHERE s.partition_no = l.partition_no), 0) AS bigint), \
         CAST(COALESCE((SELECT MAX(change_position) FROM read_models m WHERE m.partition_no = l.partition_no), 0) AS bigint) \
         FROM partition_locks l WHERE l.log = 'events' ORDER BY l.partition_no"
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
