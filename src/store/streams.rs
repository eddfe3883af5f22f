//! The tables `streams` and `event_streams`. Floor 2.

use std::collections::HashMap;

use entity::{event_streams, streams};
use futures_util::future::try_join_all;
use sea_orm::{
    Statement,
    sea_query::{Expr, ExprTrait, Func, Order, Query, SelectStatement},
};

use super::{Store, StoreError, events::KEYS_A_STATEMENT, rows, rows::Row};
use crate::domain::{
    CheckpointStep, Entry, EventId, NewEntry, Partition, Position, Stream, StreamName,
    append::{AppendedEntry, Outcome},
};

/// Which entries of one stream: those at positions `first` to `last`, both included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryRange {
    /// The stream.
    pub stream_name: StreamName,
    /// The first position.
    pub first: Position,
    /// The last position.
    pub last: Position,
}

impl Store {
    /// Appends a batch of entries to the streams of one partition in one transaction. Each is judged on its own.
    ///
    /// No stream may get the same event id twice in a batch, and every stream must lie in the partition.
    ///
    /// # Errors
    /// When the database fails; then nothing was appended, unless the outcome is unknown.
    pub async fn append_entries(
        &self,
        partition: Partition,
        entries: &[&NewEntry],
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        self.backend
            .append_entries(partition, entries, self.clock.now())
            .await
    }

    /// Appends entries that show events of one partition, each with its stream's partition, and moves that partition's checkpoint
    /// `publish`: all of it in one transaction, or nothing. None where the checkpoint is elsewhere or belongs to another runner.
    ///
    /// No stream may get the same event id twice.
    ///
    /// # Errors
    /// When the database fails; then nothing was appended, unless the outcome is unknown.
    pub async fn publish_entries(
        &self,
        partition: Partition,
        step: CheckpointStep,
        entries: &[(Partition, NewEntry)],
    ) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError> {
        self.backend
            .publish_entries(partition, step, entries, self.clock.now())
            .await
    }

    /// Finds streams by their names, all in one statement.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn streams_by_name(
        &self,
        names: &[StreamName],
    ) -> Result<HashMap<StreamName, Stream>, StoreError> {
        let mut partitions: Vec<i16> = names
            .iter()
            .map(|name| self.partitions.of_stream(name).number())
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut select = select_streams();
        select
            .and_where(Expr::col((streams::Entity, streams::Column::PartitionNo)).is_in(partitions))
            .and_where(
                Expr::col((streams::Entity, streams::Column::Name))
                    .is_in(names.iter().map(StreamName::as_str)),
            );
        let rows = self.select(&select).await?;
        rows.iter()
            .map(|row| stream(row).map(|stream| (stream.name.clone(), stream)))
            .collect()
    }

    /// A page of streams in the order of their names, behind the name `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn streams_page(
        &self,
        after: Option<&StreamName>,
        limit: u64,
    ) -> Result<Vec<Stream>, StoreError> {
        let of_partitions = self.partitions.iter().map(|partition| async move {
            let mut select = select_streams();
            select
                .and_where(
                    Expr::col((streams::Entity, streams::Column::PartitionNo))
                        .eq(partition.number()),
                )
                .order_by((streams::Entity, streams::Column::Name), Order::Asc)
                .limit(limit);
            if let Some(after) = after {
                select.and_where(
                    Expr::col((streams::Entity, streams::Column::Name)).gt(after.as_str()),
                );
            }
            self.select(&select)
                .await?
                .iter()
                .map(stream)
                .collect::<Result<Vec<_>, _>>()
        });
        let mut page: Vec<Stream> = try_join_all(of_partitions)
            .await?
            .into_iter()
            .flatten()
            .collect();
        page.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        page.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(page)
    }

    /// Reads the entries of one partition above a place in its log of entries, in its order: about `max_bytes` at most.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scan_entries(
        &self,
        partition: Partition,
        above: Position,
        limit: u64,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut select = select_entries();
        select
            .and_where(Expr::col(event_streams::Column::PartitionNo).eq(partition.number()))
            .and_where(Expr::col(event_streams::Column::EntryPosition).gt(above.0))
            .order_by(event_streams::Column::EntryPosition, Order::Asc)
            .limit(limit);
        let select = rows::bounded(
            select,
            rows::ENTRY_COLUMNS,
            "event_data",
            "entry_position",
            max_bytes,
        );
        self.select(&select)
            .await?
            .iter()
            .map(rows::entry)
            .collect()
    }

    /// Reads the entries of one stream above a position, in its order: about `max_bytes` at most.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scan_stream(
        &self,
        name: &StreamName,
        above: Position,
        limit: u64,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut select = select_entries();
        select
            .and_where(
                Expr::col(event_streams::Column::PartitionNo)
                    .eq(self.partitions.of_stream(name).number()),
            )
            .and_where(Expr::col(event_streams::Column::StreamName).eq(name.as_str()))
            .and_where(Expr::col(event_streams::Column::Position).gt(above.0))
            .order_by(event_streams::Column::Position, Order::Asc)
            .limit(limit);
        let select = rows::bounded(
            select,
            rows::ENTRY_COLUMNS,
            "event_data",
            "position",
            max_bytes,
        );
        self.select(&select)
            .await?
            .iter()
            .map(rows::entry)
            .collect()
    }

    /// Finds an entry by its event's id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn entry_by_event_id(
        &self,
        name: &StreamName,
        id: EventId,
    ) -> Result<Option<Entry>, StoreError> {
        let mut select = select_entries();
        select
            .and_where(
                Expr::col(event_streams::Column::PartitionNo)
                    .eq(self.partitions.of_stream(name).number()),
            )
            .and_where(Expr::col(event_streams::Column::StreamName).eq(name.as_str()))
            .and_where(Expr::col(event_streams::Column::EventId).eq(id.0));
        self.select(&select)
            .await?
            .first()
            .map(rows::entry)
            .transpose()
    }

    /// Reads ranges of several streams in one statement; the entries come in no order. None where they are larger than
    /// `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn entries_in_ranges(
        &self,
        ranges: &[EntryRange],
        max_bytes: usize,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        let chunks = ranges
            .chunks(KEYS_A_STATEMENT)
            .map(|chunk| self.entries_in_chunk(chunk, max_bytes));
        let chunks: Option<Vec<_>> = try_join_all(chunks).await?.into_iter().collect();
        Ok(chunks.map(|chunks| chunks.into_iter().flatten().collect()))
    }

    async fn entries_in_chunk(
        &self,
        ranges: &[EntryRange],
        max_bytes: usize,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        let keys: Vec<_> = ranges
            .iter()
            .map(|range| {
                let partition: Partition = self.partitions.of_stream(&range.stream_name);
                (
                    partition,
                    range.stream_name.as_str(),
                    range.first.0,
                    range.last.0,
                )
            })
            .collect();
        let (relation, values) = self.backend.name_ranges(&keys);
        let sql = format!(
            "WITH ranges (no, name, low, high) AS ({relation}) \
             SELECT e.partition_no, e.entry_position, e.stream_name, e.position, e.event_id, e.event_type, \
             CAST(e.event_data AS text), e.created_at FROM ranges r JOIN event_streams e \
             ON e.partition_no = r.no AND e.stream_name = r.name AND e.position BETWEEN r.low AND r.high",
        );
        let backend = self.backend.dialect();
        let page = Statement::from_sql_and_values(backend, sql, values);
        self.read_all_or_none(page, max_bytes, rows::entry).await
    }
}

fn select_entries() -> SelectStatement {
    rows::select_entry(&mut Query::select())
        .from(event_streams::Entity)
        .to_owned()
}

fn select_streams() -> SelectStatement {
    let newest = Query::select()
        .expr(Func::max(Expr::col((
            event_streams::Entity,
            event_streams::Column::Position,
        ))))
        .from(event_streams::Entity)
        .and_where(
            Expr::col((event_streams::Entity, event_streams::Column::PartitionNo))
                .equals((streams::Entity, streams::Column::PartitionNo)),
        )
        .and_where(
            Expr::col((event_streams::Entity, event_streams::Column::StreamName))
                .equals((streams::Entity, streams::Column::Name)),
        )
        .to_owned();
    Query::select()
        .column((streams::Entity, streams::Column::Name))
        .expr(Func::coalesce([newest.into(), Expr::val(0_i64)]))
        .from(streams::Entity)
        .to_owned()
}

fn stream(row: &sea_orm::QueryResult) -> Result<Stream, StoreError> {
    let mut row = Row::of(row);
    Ok(Stream {
        name: StreamName::stored(row.text()?),
        last_position: Position(row.next()?),
    })
}
