//! Rows to values of the domain. The columns come in the order of the lists here. Floor 2.

use chrono::{DateTime, Utc};
use entity::{aggregates, commands, event_streams, events, read_models};
use sea_orm::{
    DbErr, QueryResult, TryGetable,
    sea_query::{Expr, ExprTrait, IntoColumnRef, Order, Query, SelectStatement, SimpleExpr},
    sqlx::{self, Row as _},
};
use uuid::Uuid;

use super::StoreError;
use crate::domain::{
    Aggregate, AggregateId, AggregateType, Command, CommandId, CommandStatus, CommandType, Entry,
    Event, EventId, EventType, Json, Partition, Position, ReadModel, ReadModelSource, StreamName,
    Timestamp, Version,
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

/// The columns of [`select_command`].
pub(super) const COMMAND_COLUMNS: &[&str] = &[
    "partition_no",
    "id",
    "aggregate_id",
    "command_type",
    "command_data",
    "command_metadata",
    "status",
    "reason",
    "attempts",
    "not_before",
    "first_version",
    "last_version",
    "created_at",
    "processed_at",
];

/// The columns of [`select_read_model`].
pub(super) const READ_MODEL_COLUMNS: &[&str] = &[
    "partition_no",
    "aggregate_id",
    "aggregate_type",
    "model_data",
    "version",
    "source",
    "fault",
    "deleted_at",
    "change_position",
    "created_at",
    "updated_at",
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

/// Adds the columns that [`command`] reads.
pub(super) fn select_command(select: &mut SelectStatement) -> &mut SelectStatement {
    use commands::{Column, Entity};
    select
        .column((Entity, Column::PartitionNo))
        .column((Entity, Column::Id))
        .column((Entity, Column::AggregateId))
        .column((Entity, Column::CommandType))
        .expr_as(json_text((Entity, Column::CommandData)), "command_data")
        .expr_as(
            json_text((Entity, Column::CommandMetadata)),
            "command_metadata",
        )
        .column((Entity, Column::Status))
        .column((Entity, Column::Reason))
        .column((Entity, Column::Attempts))
        .column((Entity, Column::NotBefore))
        .column((Entity, Column::FirstVersion))
        .column((Entity, Column::LastVersion))
        .column((Entity, Column::CreatedAt))
        .column((Entity, Column::ProcessedAt))
}

/// The columns that [`command`] reads, of a relation that is called `alias`.
pub(super) fn command_columns_of(alias: &str) -> String {
    columns_of(alias, COMMAND_COLUMNS)
}

/// The columns that [`event`] reads, of a relation that is called `alias`.
pub(super) fn event_columns_of(alias: &str) -> String {
    columns_of(alias, EVENT_COLUMNS)
}

fn columns_of(alias: &str, columns: &[&str]) -> String {
    let of = |column: &&str| match *column {
        json if json.ends_with("_data") || json.ends_with("_metadata") => {
            format!("CAST({alias}.{json} AS text)")
        }
        column => format!("{alias}.{column}"),
    };
    columns.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// Adds the columns that [`read_model`] reads.
pub(super) fn select_read_model(select: &mut SelectStatement) -> &mut SelectStatement {
    use read_models::{Column, Entity};
    select
        .column((Entity, Column::PartitionNo))
        .column((Entity, Column::AggregateId))
        .column((Entity, Column::AggregateType))
        .expr_as(json_text((Entity, Column::ModelData)), "model_data")
        .column((Entity, Column::Version))
        .column((Entity, Column::Source))
        .column((Entity, Column::Fault))
        .column((Entity, Column::DeletedAt))
        .column((Entity, Column::ChangePosition))
        .column((Entity, Column::CreatedAt))
        .column((Entity, Column::UpdatedAt))
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

/// Reads the columns of [`select_read_model`].
pub(super) fn read_model(row: &QueryResult) -> Result<ReadModel, StoreError> {
    let mut row = Row::of(row);
    Ok(ReadModel {
        partition: row.partition()?,
        aggregate_id: AggregateId(row.next()?),
        aggregate_type: AggregateType::stored(row.text()?),
        data: Json::stored(row.text()?),
        version: Version(row.next()?),
        source: row.source()?,
        fault: row.next()?,
        deleted_at: row.next::<Option<DateTime<Utc>>>()?.map(Timestamp::from),
        change_position: Position(row.next()?),
        created_at: row.instant()?,
        updated_at: row.instant()?,
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

/// Reads the columns of [`select_command`].
pub(super) fn command(row: &QueryResult) -> Result<Command, StoreError> {
    let mut row = Row::of(row);
    Ok(Command {
        partition: row.partition()?,
        id: CommandId(row.next()?),
        aggregate_id: AggregateId(row.next()?),
        command_type: CommandType::stored(row.text()?),
        data: Json::stored(row.text()?),
        metadata: Json::stored(row.text()?),
        status: command_status(&row.next::<String>()?)?,
        reason: row.next()?,
        attempts: row.next()?,
        not_before: row.optional_instant()?,
        versions: row
            .next::<Option<i32>>()?
            .map(Version)
            .zip(row.next::<Option<i32>>()?.map(Version)),
        created_at: row.instant()?,
        processed_at: row.optional_instant()?,
    })
}

/// Reads a stored status.
pub(super) fn command_status(text: &str) -> Result<CommandStatus, StoreError> {
    CommandStatus::stored(text)
        .ok_or_else(|| StoreError::Inconsistent(format!("no command can be {text}")))
}

/// A row that is read column by column.
pub(super) struct Row<'a> {
    row: &'a QueryResult,
    column: usize,
}

impl<'a> Row<'a> {
    pub(super) fn of(row: &'a QueryResult) -> Self {
        Self::at(row, 0)
    }

    /// The same from a column on.
    pub(super) fn at(row: &'a QueryResult, column: usize) -> Self {
        Self { row, column }
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

    /// The next column as the source of a read model.
    pub(super) fn source(&mut self) -> Result<ReadModelSource, StoreError> {
        let text: String = self.next()?;
        ReadModelSource::stored(&text).ok_or_else(|| {
            StoreError::Inconsistent(format!("a read model cannot come from `{text}`"))
        })
    }

    /// The next column as an instant.
    pub(super) fn instant(&mut self) -> Result<Timestamp, StoreError> {
        Ok(self.next::<DateTime<Utc>>()?.into())
    }

    /// The next column as an instant, if there is one.
    pub(super) fn optional_instant(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.next::<Option<DateTime<Utc>>>()?.map(Timestamp::from))
    }
}

fn unreadable(error: DbErr) -> StoreError {
    StoreError::Inconsistent(format!("a row cannot be read: {error}"))
}
