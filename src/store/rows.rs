//! Rows to values of the domain. The columns come in the order of the lists here. Floor 2.

use chrono::{DateTime, Utc};
use entity::{aggregates, event_streams, events};
use sea_orm::{
    DbErr, QueryResult, TryGetable,
    sea_query::{Expr, ExprTrait, IntoColumnRef, Order, Query, SelectStatement, SimpleExpr},
    sqlx::{self, Row as _},
};
use uuid::Uuid;

use super::StoreError;
use crate::domain::{
    Aggregate, AggregateId, AggregateType, Entry, Event, EventId, EventType, Json, Partition,
    Position, StreamName, Timestamp, Version,
};

/// JSON as text: PostgreSQL has it in a form of its own.
fn json_text(column: impl IntoColumnRef) -> SimpleExpr {
    Expr::col(column).cast_as("text")
}

/// The rows of a statement in the order of `position`, up to the one with which they have `max_chars` characters of JSON:
/// at least one. So a page is bounded in memory whatever its rows are like, before they are read.
pub(super) fn bounded(
    rows: SelectStatement,
    columns: &'static [&'static str],
    json: &str,
    position: &'static str,
    max_chars: usize,
) -> SelectStatement {
    let chars = json
        .split(',')
        .map(|column| format!("LENGTH({column})"))
        .collect::<Vec<_>>()
        .join(" + ");
    let before =
        format!("SUM({chars}) OVER (ORDER BY {position} ROWS UNBOUNDED PRECEDING) - ({chars})");
    let summed = Query::select()
        .columns(columns.iter().copied())
        .expr_as(Expr::cust(before), "chars_before")
        .from_subquery(rows, "page")
        .to_owned();
    let max_chars = i64::try_from(max_chars).unwrap_or(i64::MAX);
    Query::select()
        .columns(columns.iter().copied())
        .from_subquery(summed, "summed")
        .and_where(Expr::col("chars_before").lt(max_chars))
        .order_by(position, Order::Asc)
        .to_owned()
}

/// The columns of [`select_event`].
pub(super) const EVENT_COLUMNS: &[&str] = &[
    "partition_no",
    "position",
    "id",
    "aggregate_id",
    "aggregate_type",
    "event_type",
    "event_data",
    "event_metadata",
    "version",
    "created_at",
];

/// The columns of [`select_entry`].
pub(super) const ENTRY_COLUMNS: &[&str] = &[
    "partition_no",
    "entry_position",
    "stream_name",
    "position",
    "event_id",
    "event_type",
    "event_data",
    "created_at",
];

/// Adds the columns that [`event`] reads.
pub(super) fn select_event(select: &mut SelectStatement) -> &mut SelectStatement {
    use events::{Column, Entity};
    select
        .column((Entity, Column::PartitionNo))
        .column((Entity, Column::Position))
        .column((Entity, Column::Id))
        .column((Entity, Column::AggregateId))
        .column((Entity, Column::AggregateType))
        .column((Entity, Column::EventType))
        .expr_as(json_text((Entity, Column::EventData)), "event_data")
        .expr_as(json_text((Entity, Column::EventMetadata)), "event_metadata")
        .column((Entity, Column::Version))
        .column((Entity, Column::CreatedAt))
}

/// Adds the columns that [`entry`] reads.
pub(super) fn select_entry(select: &mut SelectStatement) -> &mut SelectStatement {
    use event_streams::{Column, Entity};
    select
        .column((Entity, Column::PartitionNo))
        .column((Entity, Column::EntryPosition))
        .column((Entity, Column::StreamName))
        .column((Entity, Column::Position))
        .column((Entity, Column::EventId))
        .column((Entity, Column::EventType))
        .expr_as(json_text((Entity, Column::EventData)), "event_data")
        .column((Entity, Column::CreatedAt))
}

/// Adds the columns that [`aggregate`] reads.
pub(super) fn select_aggregate(select: &mut SelectStatement) -> &mut SelectStatement {
    use aggregates::Column;
    select.columns([
        Column::Id,
        Column::AggregateType,
        Column::CurrentVersion,
        Column::CreatedAt,
        Column::UpdatedAt,
    ])
}

/// Reads the columns of [`select_event`].
pub(super) fn event(row: &QueryResult) -> Result<Event, StoreError> {
    event_of(Row::of(row))
}

/// Reads a head, and behind it the columns of [`select_event`], which are NULL where there is no event.
pub(super) fn head_and_event(row: &QueryResult) -> Result<(Position, Option<Event>), StoreError> {
    let mut row = Row::of(row);
    let head = Position(row.next()?);
    let has_event = row.peek::<Option<i16>>()?.is_some();
    let event = has_event.then(|| event_of(row)).transpose()?;
    Ok((head, event))
}

fn event_of(mut row: Row<'_>) -> Result<Event, StoreError> {
    Ok(Event {
        partition: row.partition()?,
        position: Position(row.next()?),
        id: EventId(row.next()?),
        aggregate_id: AggregateId(row.next()?),
        aggregate_type: AggregateType::stored(row.text()?),
        event_type: EventType::stored(row.text()?),
        data: Json::stored(row.text()?),
        metadata: Json::stored(row.text()?),
        version: Version(row.next()?),
        created_at: row.instant()?,
    })
}

/// Reads the columns of [`select_entry`].
pub(super) fn entry(row: &QueryResult) -> Result<Entry, StoreError> {
    let mut row = Row::of(row);
    Ok(Entry {
        partition: row.partition()?,
        entry_position: Position(row.next()?),
        stream_name: StreamName::stored(row.text()?),
        position: Position(row.next()?),
        event_id: EventId(row.next()?),
        event_type: EventType::stored(row.text()?),
        data: Json::stored(row.text()?),
        created_at: row.instant()?,
    })
}

/// Reads the columns of [`select_aggregate`].
pub(super) fn aggregate(row: &QueryResult) -> Result<Aggregate, StoreError> {
    let mut row = Row::of(row);
    Ok(Aggregate {
        id: AggregateId(row.next::<Uuid>()?),
        aggregate_type: AggregateType::stored(row.text()?),
        version: Version(row.next()?),
        created_at: row.instant()?,
        updated_at: row.instant()?,
    })
}

/// A row that is read column by column.
pub(super) struct Row<'a> {
    row: &'a QueryResult,
    column: usize,
}

impl<'a> Row<'a> {
    pub(super) fn of(row: &'a QueryResult) -> Self {
        Self { row, column: 0 }
    }

    /// The next column's value.
    pub(super) fn next<T: TryGetable>(&mut self) -> Result<T, StoreError> {
        let value = self.row.try_get_by_index(self.column).map_err(unreadable)?;
        self.column += 1;
        Ok(value)
    }

    /// The next column as text, where it lies in the row: the library would make a `String` of it first.
    pub(super) fn text(&mut self) -> Result<&'a str, StoreError> {
        let text = match (self.row.try_as_pg_row(), self.row.try_as_sqlite_row()) {
            (Some(row), _) => row.try_get(self.column),
            (_, Some(row)) => row.try_get(self.column),
            _ => Err(sqlx::Error::ColumnIndexOutOfBounds {
                index: self.column,
                len: 0,
            }),
        };
        self.column += 1;
        text.map_err(|error| StoreError::Inconsistent(format!("a row cannot be read: {error}")))
    }

    /// The next column's value, which is read again after this.
    pub(super) fn peek<T: TryGetable>(&self) -> Result<T, StoreError> {
        self.row.try_get_by_index(self.column).map_err(unreadable)
    }

    /// The next column as the number of a partition.
    pub(super) fn partition(&mut self) -> Result<Partition, StoreError> {
        let number = self.next::<i16>()?;
        u8::try_from(number)
            .map(Partition)
            .map_err(|_| StoreError::Inconsistent(format!("there is no partition {number}")))
    }

    /// The next column as an instant.
    pub(super) fn instant(&mut self) -> Result<Timestamp, StoreError> {
        Ok(self.next::<DateTime<Utc>>()?.into())
    }
}

fn unreadable(error: DbErr) -> StoreError {
    StoreError::Inconsistent(format!("a row cannot be read: {error}"))
}
