//! The table `events`: appending to it and reading from it. Floor 2.

use std::{collections::HashMap, time::Duration};

use entity::events::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::{
    Statement, Value,
    sea_query::{self, Expr, ExprTrait, Func, JoinType, Query, SelectStatement},
};

use super::{Store, StoreError, backend::Backend, bounded::Part, rows};
use crate::domain::{
    AggregateId, AggregateType, Event, EventFilter, EventId, EventType, Order, Partition, Position,
    Version,
    append::{AppendRequest, AppendedEvent, Outcome},
};

/// The keys that one statement takes: SQLite has 32,766 parameters, and a key up to four.
pub(super) const KEYS_A_STATEMENT: usize = 8000;

/// Which events of one aggregate: those of versions `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventRange {
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// The first version.
    pub first: Version,
    /// The last version.
    pub last: Version,
}

/// Which events of one partition's log to read: the positions above `above` and up to `up_to`, in an order.
#[derive(Clone, Copy, Debug)]
pub struct EventScan<'a> {
    /// The partition.
    pub partition: Partition,
    /// Only positions above this one.
    pub above: Position,
    /// Only positions up to this one.
    pub up_to: Position,
    /// What must hold for them.
    pub filter: &'a EventFilter,
    /// From which end.
    pub order: Order,
    /// How many at most.
    pub limit: u64,
    /// How many bytes at most, about: the page ends with the row that reaches them. Only for the oldest first.
    pub max_bytes: Option<usize>,
}

/// How an append over several partitions waits for their locks.
#[derive(Clone, Copy, Debug)]
pub struct LockWaits {
    /// The partition whose lock it waits for before it holds any other, and for how long.
    pub first: Option<(Partition, Duration)>,
    /// How long it waits for each of the others, while it may hold some: whoever needs those waits as well.
    pub others: Duration,
}

/// What an append over several partitions has come to.
#[derive(Debug)]
pub enum AppendedAcross {
    /// All parts were judged.
    Judged(Vec<Outcome<AppendedEvent>>),
    /// Somebody else held the lock of this partition for longer than it waits; nothing was done.
    Held(Partition),
}

impl Store {
    /// Appends a batch of requests to one partition in one transaction. Each request is judged on its own.
    ///
    /// No id of an event or a command may come twice in a batch, and every aggregate must lie in the partition.
    ///
    /// # Errors
    /// When the database fails; then nothing was appended, unless the outcome is unknown.
    pub async fn append_events(
        &self,
        partition: Partition,
        requests: &[&AppendRequest],
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        self.backend
            .append_events(partition, requests, self.clock.now())
            .await
    }

    /// Appends one request with events of several partitions in one transaction: the locks of the partitions are taken
    /// in ascending order, but for the one that is waited for first, and one refusal undoes all. The parts must be in
    /// ascending order of their partitions.
    ///
    /// # Errors
    /// When the database fails; then nothing was appended, unless the outcome is unknown.
    pub async fn append_events_across(
        &self,
        parts: &[(Partition, AppendRequest)],
        waits: LockWaits,
    ) -> Result<AppendedAcross, StoreError> {
        self.backend
            .append_events_across(parts, waits, self.clock.now())
            .await
    }

    /// Finds events by their ids over all partitions, all in one statement.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_by_id(
        &self,
        ids: &[EventId],
    ) -> Result<HashMap<EventId, Event>, StoreError> {
        let events = self.events_by_id_up_to(ids, usize::MAX).await?;
        Ok(events.unwrap_or_default())
    }

    /// The same, or none where they are larger than `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_by_id_up_to(
        &self,
        ids: &[EventId],
        max_bytes: usize,
    ) -> Result<Option<HashMap<EventId, Event>>, StoreError> {
        let chunks = ids.chunks(KEYS_A_STATEMENT).map(|chunk| async move {
            let partitions = self.partitions.iter().map(Partition::number);
            let ids = Expr::col(Column::Id);
            let mut select = select_events();
            select
                .and_where(Expr::col(Column::PartitionNo).is_in(partitions))
                .and_where(self.backend.uuid_in(ids, &mut chunk.iter().map(|id| id.0)));
            let statement = self.backend.dialect().build(&select);
            self.read_all_or_none(statement, max_bytes, rows::event)
                .await
        });
        let chunks: Option<Vec<_>> = try_join_all(chunks).await?.into_iter().collect();
        let events = chunks.map(|chunks| chunks.into_iter().flatten());
        Ok(events.map(|events| events.map(|event| (event.id, event)).collect()))
    }

    /// Reads a part of one partition's log.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scan_events(&self, scan: &EventScan<'_>) -> Result<Vec<Event>, StoreError> {
        if scan.above >= scan.up_to {
            return Ok(Vec::new());
        }
        let mut select = self.scan(scan);
        if let Some(max_bytes) = scan.max_bytes {
            let json = "event_data,event_metadata";
            select = rows::bounded(select, rows::EVENT_COLUMNS, json, "position", max_bytes);
        }
        self.select(&select)
            .await?
            .iter()
            .map(rows::event)
            .collect()
    }

    /// Reads a part of one partition's log, from either end, up to `max_bytes`. What the scan itself says of them is not looked at.
    pub(super) async fn scan_event_part(
        &self,
        scan: &EventScan<'_>,
        max_bytes: usize,
    ) -> Result<Part<Event>, StoreError> {
        if scan.above >= scan.up_to {
            return Ok(Part {
                rows: Vec::new(),
                is_cut: false,
            });
        }
        self.read_part(&self.scan(scan), max_bytes, rows::event)
            .await
    }

    /// The same together with the log's head, both as of one instant.
    pub(super) async fn scan_event_part_and_head(
        &self,
        scan: &EventScan<'_>,
        max_bytes: usize,
    ) -> Result<(Position, Part<Event>), StoreError> {
        let newest = Func::max(Expr::col(Column::Position));
        let head = Query::select()
            .expr_as(Func::coalesce([newest.into(), Expr::val(0_i64)]), "head")
            .from(Entity)
            .and_where(Expr::col(Column::PartitionNo).eq(scan.partition.number()))
            .to_owned();
        let always = Expr::cust("1 = 1");
        let select = Query::select()
            .column(("log", "head"))
            .columns(rows::EVENT_COLUMNS.iter().map(|column| ("page", *column)))
            .from_subquery(head, "log")
            .join_subquery(JoinType::LeftJoin, self.scan(scan), "page", always)
            .order_by(("page", "position"), sql_order(scan.order))
            .to_owned();
        let part = self
            .read_part(&select, max_bytes, rows::head_and_event)
            .await?;
        let head = part.rows.first().map_or(Position::START, |(head, _)| *head);
        let rows = part.rows.into_iter().filter_map(|(_, event)| event);
        Ok((
            head,
            Part {
                rows: rows.collect(),
                is_cut: part.is_cut,
            },
        ))
    }

    fn scan(&self, scan: &EventScan<'_>) -> SelectStatement {
        let mut select = select_events();
        select
            .and_where(Expr::col(Column::PartitionNo).eq(scan.partition.number()))
            .limit(scan.limit);
        // A bound that bounds nothing would tempt a planner to go through the positions, event by event.
        if scan.above > Position::START {
            select.and_where(Expr::col(Column::Position).gt(scan.above.0));
        }
        if scan.up_to < Position::MAX {
            select.and_where(Expr::col(Column::Position).lte(scan.up_to.0));
        }
        // In one aggregate the versions are in the order of the positions, and have the index.
        let by = if scan.filter.aggregate_id.is_some() {
            Column::Version
        } else {
            Column::Position
        };
        select.order_by(by, sql_order(scan.order));
        where_filter(self.backend.as_ref(), &mut select, scan.filter);
        select
    }

    /// Reads ranges of several aggregates in one statement; the events come in no order. None where they are larger than
    /// `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_in_ranges(
        &self,
        ranges: &[EventRange],
        max_bytes: usize,
    ) -> Result<Option<Vec<Event>>, StoreError> {
        let chunks = ranges
            .chunks(KEYS_A_STATEMENT)
            .map(|chunk| self.events_in_chunk(chunk, max_bytes));
        let chunks: Option<Vec<_>> = try_join_all(chunks).await?.into_iter().collect();
        Ok(chunks.map(|chunks| chunks.into_iter().flatten().collect()))
    }

    /// Reads ranges of several aggregates to fold them, in one statement, one range for each, up to the event that reaches
    /// `max_bytes` over all: at least one. The events come by aggregate and in the order of their versions, without their
    /// metadata, which no fold looks at.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_to_fold(
        &self,
        ranges: &[EventRange],
        max_bytes: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let (relation, values) = self.relation(ranges);
        let columns = rows::EVENT_COLUMNS.join(", ");
        let stored = self.backend.stored_bytes("e.event_data");
        // What is stored is measured without being read, and as text it may be longer; both are bounded.
        let sql = format!(
            "WITH ranges (no, id, low, high) AS ({relation}), \
             sized AS (SELECT e.partition_no, e.position, SUM({stored}) \
             OVER (ORDER BY e.aggregate_id, e.version ROWS UNBOUNDED PRECEDING) - ({stored}) AS bytes_before \
             FROM ranges r JOIN events e \
             ON e.partition_no = r.no AND e.aggregate_id = r.id AND e.version BETWEEN r.low AND r.high), \
             page AS MATERIALIZED (SELECT e.partition_no, e.position, e.id, e.aggregate_id, e.aggregate_type, e.event_type, \
             CAST(e.event_data AS text) AS event_data, '{{}}' AS event_metadata, e.version, e.created_at \
             FROM sized s JOIN events e ON e.partition_no = s.partition_no AND e.position = s.position \
             WHERE s.bytes_before < {max_bytes}), \
             summed AS (SELECT page.*, SUM(LENGTH(event_data)) \
             OVER (ORDER BY aggregate_id, version ROWS UNBOUNDED PRECEDING) - LENGTH(event_data) AS chars_before FROM page) \
             SELECT {columns} FROM summed WHERE chars_before < {max_bytes} ORDER BY aggregate_id, version",
        );
        let backend = self.backend.dialect();
        let rows = self
            .read(Statement::from_sql_and_values(backend, sql, values))
            .await?;
        rows.iter().map(rows::event).collect()
    }

    async fn events_in_chunk(
        &self,
        ranges: &[EventRange],
        max_bytes: usize,
    ) -> Result<Option<Vec<Event>>, StoreError> {
        let (relation, values) = self.relation(ranges);
        let sql = format!(
            "WITH ranges (no, id, low, high) AS ({relation}) \
             SELECT e.partition_no, e.position, e.id, e.aggregate_id, e.aggregate_type, e.event_type, \
             CAST(e.event_data AS text), CAST(e.event_metadata AS text), e.version, e.created_at \
             FROM ranges r JOIN events e \
             ON e.partition_no = r.no AND e.aggregate_id = r.id AND e.version BETWEEN r.low AND r.high",
        );
        let backend = self.backend.dialect();
        let page = Statement::from_sql_and_values(backend, sql, values);
        self.read_all_or_none(page, max_bytes, rows::event).await
    }

    /// Ranges as a relation (partition, aggregate, first version, last version) and its values.
    fn relation(&self, ranges: &[EventRange]) -> (String, Vec<Value>) {
        let key = |range: &EventRange| {
            let partition = self.partitions.of_aggregate(range.aggregate_id);
            let (first, last) = (i64::from(range.first.0), i64::from(range.last.0));
            (partition, range.aggregate_id.0, first, last)
        };
        let keys: Vec<_> = ranges.iter().map(key).collect();
        self.backend.uuid_ranges(&keys)
    }
}

/// The order of a statement for an order of a list.
pub(super) fn sql_order(order: Order) -> sea_query::Order {
    match order {
        Order::OldestFirst => sea_query::Order::Asc,
        Order::NewestFirst => sea_query::Order::Desc,
    }
}

fn select_events() -> SelectStatement {
    rows::select_event(&mut Query::select())
        .from(Entity)
        .to_owned()
}

fn where_filter(backend: &dyn Backend, select: &mut SelectStatement, filter: &EventFilter) {
    if let Some(id) = filter.aggregate_id {
        select.and_where(Expr::col(Column::AggregateId).eq(id.0));
    }
    if let Some(types) = &filter.aggregate_types {
        select.and_where(
            Expr::col(Column::AggregateType).is_in(types.iter().map(AggregateType::as_str)),
        );
    }
    if let Some(types) = &filter.event_types {
        select.and_where(Expr::col(Column::EventType).is_in(types.iter().map(EventType::as_str)));
    }
    if let Some(id) = &filter.correlation_id {
        select.and_where(backend.correlation_is(id));
    }
    if let Some(from) = filter.created_from {
        select.and_where(Expr::col(Column::CreatedAt).gte(from.to_utc()));
    }
    if let Some(before) = filter.created_before {
        select.and_where(Expr::col(Column::CreatedAt).lt(before.to_utc()));
    }
}
