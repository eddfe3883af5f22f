//! The table `deliveries`: events that were given to a handler and are not done. Floor 2.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use entity::deliveries::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::{
    DbBackend, IdenStatic, Statement, Value,
    sea_query::{Expr, ExprTrait, Func, Order, Query, SelectStatement},
};
use uuid::Uuid;

use super::{Store, StoreError, events::KEYS_A_STATEMENT, rows, rows::Row};
use crate::domain::{
    AggregateId, Delivery, DeliveryId, DeliveryStatus, Event, HandlerId, LastError, Partition,
    Position,
};

/// About so many bytes of events are read at a time together with their deliveries.
const DUE_BYTES: usize = 1 << 20;

/// The deliveries of one handler in one partition that are due.
#[derive(Clone, Debug, Default)]
pub struct DueDeliveries {
    /// The first of them, with their events.
    pub due: Vec<(Delivery, Event)>,
    /// In which time the next one is due, those left out; none where there is none.
    pub next: Option<Duration>,
}

impl Store {
    /// Finds the deliveries that are due, the longest due first, without those that are `taken`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due_deliveries(
        &self,
        partition: Partition,
        handler: HandlerId,
        taken: &HashSet<DeliveryId>,
        limit: usize,
    ) -> Result<DueDeliveries, StoreError> {
        let most = (limit + taken.len() + 1) as u64;
        let mut select = match self.backend.dialect() {
            DbBackend::Postgres => {
                let call = Func::cust("tidings_due_deliveries")
                    .arg(partition.number())
                    .arg(handler.0)
                    .arg(i64::try_from(most).unwrap_or(i64::MAX));
                delivery_columns().from_function(call, Entity).to_owned()
            }
            _ => select_deliveries()
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(handler.0))
                .and_where(Expr::col(Column::Status).eq(DeliveryStatus::Retrying.as_str()))
                .limit(most)
                .to_owned(),
        };
        select
            .expr(self.now())
            .order_by(Column::NextAttemptAt, Order::Asc);
        let mut found = DueDeliveries::default();
        let mut due = Vec::new();
        for row in &self.select(&select).await? {
            let mut row = Row::of(row);
            let delivery = delivery(&mut row)?;
            if taken.contains(&delivery.id) {
                continue;
            }
            let now = row.instant()?;
            let at = delivery.next_attempt_at.unwrap_or(now);
            if at > now || due.len() >= limit {
                found.next = Some(at.since(now));
                break;
            }
            due.push(delivery);
        }
        let mut events = self.first_events_at(partition, &due, DUE_BYTES).await?;
        let mut bytes = 0;
        for delivery in due {
            if let Some(event) = events.remove(&delivery.position) {
                bytes += event.data.as_str().len() + event.metadata.as_str().len();
                found.due.push((delivery, event));
            }
        }
        if bytes >= DUE_BYTES {
            found.next = Some(Duration::ZERO);
        }
        Ok(found)
    }

    /// Which of some aggregates have a delivery of a handler that is under way or waits.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn held_back(
        &self,
        partition: Partition,
        handler: HandlerId,
        aggregates: &[AggregateId],
    ) -> Result<HashSet<AggregateId>, StoreError> {
        let mut held_back = HashSet::new();
        for chunk in aggregates.chunks(KEYS_A_STATEMENT) {
            let keys: Vec<_> = chunk.iter().map(|id| (partition, id.0, 0, 0)).collect();
            let (relation, mut values) = self.backend.uuid_ranges(&keys);
            values.push(handler.0.into());
            let is_held_back = self.backend.is_held_back(values.len());
            let sql = format!(
                "WITH aggregates (no, id, low, high) AS ({relation}) SELECT a.id FROM aggregates a WHERE {is_held_back}"
            );
            for row in &self.read(self.statement(&sql, values)).await? {
                held_back.insert(AggregateId(Row::of(row).next()?));
            }
        }
        Ok(held_back)
    }

    /// The first deliveries of several handlers that are not done, in the order of their ids, behind one of them, all in one
    /// statement: `first` of each at most. None where they are larger than `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deliveries_of_handlers(
        &self,
        handlers: &[HandlerId],
        status: Option<DeliveryStatus>,
        after: Option<DeliveryId>,
        first: usize,
        max_bytes: usize,
    ) -> Result<Option<HashMap<HandlerId, Vec<Delivery>>>, StoreError> {
        let chunks = handlers
            .chunks(KEYS_A_STATEMENT / self.partitions.get())
            .map(|chunk| {
                let statement = self.select_of_handlers(chunk, status, after, first);
                self.read_all_or_none(statement, max_bytes, |row| delivery(&mut Row::of(row)))
            });
        let mut found: HashMap<HandlerId, Vec<Delivery>> = HashMap::new();
        for chunk in try_join_all(chunks).await? {
            let Some(deliveries) = chunk else {
                return Ok(None);
            };
            for delivery in deliveries {
                found.entry(delivery.handler_id).or_default().push(delivery);
            }
        }
        for deliveries in found.values_mut() {
            deliveries.sort_unstable_by_key(|delivery| delivery.id);
            deliveries.truncate(first);
        }
        Ok(Some(found))
    }

    /// Reads each handler's deliveries in each partition up to the last one that is asked for, which is looked up first.
    fn select_of_handlers(
        &self,
        handlers: &[HandlerId],
        status: Option<DeliveryStatus>,
        after: Option<DeliveryId>,
        first: usize,
    ) -> Statement {
        let of_partition = |partition| handlers.iter().map(move |id| (partition, id.0, 0, 0));
        let keys: Vec<_> = self.partitions.iter().flat_map(of_partition).collect();
        let (relation, mut values) = self.backend.uuid_ranges(&keys);
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let status = status.map(|status| bind(status.as_str().into()));
        let after = after.map(|after| bind(after.0.into()));
        let wanted = |alias: &str| {
            let status = status
                .iter()
                .map(|it| format!(" AND {alias}.status = {it}"));
            let after = after.iter().map(|it| format!(" AND {alias}.id > {it}"));
            status.chain(after).collect::<String>()
        };
        let offset = bind(i64::try_from(first.saturating_sub(1)).unwrap_or(0).into());
        let last = bind(Uuid::max().into());
        let columns: Vec<String> = COLUMNS
            .iter()
            .map(|column| format!("d.{}", column.as_str()))
            .collect();
        let sql = format!(
            "WITH asked (no, id, low, high) AS ({relation}), \
             bounds AS MATERIALIZED ( \
                 SELECT asked.no, asked.id, COALESCE((SELECT k.id FROM deliveries k \
                     WHERE k.partition_no = l.partition_no AND k.handler_id = asked.id{} \
                     ORDER BY k.id LIMIT 1 OFFSET {offset}), {last}) AS up_to \
                 FROM asked JOIN partition_locks l ON l.partition_no = asked.no AND l.log = 'events') \
             SELECT {} FROM bounds b JOIN deliveries d \
             ON d.partition_no = b.no AND d.handler_id = b.id AND d.id <= b.up_to{}",
            wanted("k"),
            columns.join(", "),
            wanted("d"),
        );
        self.statement(&sql, values)
    }

    /// Finds events by their places in the log, all in one statement. None where they are larger than `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_at(
        &self,
        places: &[(Partition, Position)],
        max_bytes: usize,
    ) -> Result<Option<HashMap<(Partition, Position), Event>>, StoreError> {
        let mut found = HashMap::with_capacity(places.len());
        for chunk in places.chunks(KEYS_A_STATEMENT) {
            let keys: Vec<_> = chunk
                .iter()
                .map(|(partition, position)| (*partition, Uuid::nil(), position.0, 0))
                .collect();
            let (relation, values) = self.backend.uuid_ranges(&keys);
            let sql = format!(
                "WITH places (no, id, position, ord) AS ({relation}) SELECT {} FROM places p \
                 JOIN events e ON e.partition_no = p.no AND e.position = p.position",
                rows::event_columns_of("e"),
            );
            let statement = self.statement(&sql, values);
            let events = self.read_all_or_none(statement, max_bytes, rows::event);
            let Some(events) = events.await? else {
                return Ok(None);
            };
            found.extend(
                events
                    .into_iter()
                    .map(|event| ((event.partition, event.position), event)),
            );
        }
        Ok(Some(found))
    }

    /// Finds the events of deliveries in one partition, of the first of them up to the one with which they have `max_bytes` of
    /// JSON. The database measures them before it reads them.
    async fn first_events_at(
        &self,
        partition: Partition,
        deliveries: &[Delivery],
        max_bytes: usize,
    ) -> Result<HashMap<Position, Event>, StoreError> {
        if deliveries.is_empty() {
            return Ok(HashMap::new());
        }
        let keys: Vec<_> = (0_i64..)
            .zip(deliveries)
            .map(|(ord, delivery)| (partition, delivery.id.0, delivery.position.0, ord))
            .collect();
        let (relation, values) = self.backend.uuid_ranges(&keys);
        let bytes = "OCTET_LENGTH(CAST(e.event_data AS text)) + OCTET_LENGTH(CAST(e.event_metadata AS text))";
        let sql = format!(
            "WITH due (no, id, position, ord) AS ({relation}), \
             sized AS MATERIALIZED (SELECT d.no, d.position, d.ord, {bytes} AS bytes FROM due d \
             JOIN events e ON e.partition_no = d.no AND e.position = d.position), \
             summed AS MATERIALIZED (SELECT no, position, \
             SUM(bytes) OVER (ORDER BY ord ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before FROM sized) \
             SELECT {} FROM summed s JOIN events e ON e.partition_no = s.no AND e.position = s.position \
             WHERE s.bytes_before < {max_bytes}",
            rows::event_columns_of("e"),
        );
        let events = self.read(self.statement(&sql, values)).await?;
        events
            .iter()
            .map(|row| rows::event(row).map(|event| (event.position, event)))
            .collect()
    }

    /// Puts dead deliveries of a handler back in line: all, or those with these ids. Answers how many.
    ///
    /// Each partition is a transaction of its own: one that has to wait for what runs in another would hold up this one's.
    ///
    /// # Errors
    /// When the database fails: the same again does what was not done.
    pub async fn retry_dead(
        &self,
        handler: HandlerId,
        ids: Option<&[DeliveryId]>,
    ) -> Result<u64, StoreError> {
        let build =
            |update: &sea_orm::sea_query::UpdateStatement| self.backend.dialect().build(update);
        let mut count = 0;
        for partition in self.partitions.iter() {
            let mut line_up = Query::update();
            line_up
                .table(Entity)
                .value(Column::Status, DeliveryStatus::Waiting.as_str())
                .value(Column::Attempts, 0)
                .value(Column::UpdatedAt, self.now())
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(handler.0))
                .and_where(Expr::col(Column::Status).eq(DeliveryStatus::Dead.as_str()));
            if let Some(ids) = ids {
                let of = self
                    .backend
                    .uuid_in(Expr::col(Column::Id), &mut ids.iter().map(|id| id.0));
                line_up.and_where(of);
            }
            let mut promote = Query::update();
            promote
                .table(Entity)
                .value(Column::Status, DeliveryStatus::Retrying.as_str())
                .value(Column::NextAttemptAt, self.now())
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(handler.0))
                .and_where(Expr::col(Column::Status).eq(DeliveryStatus::Waiting.as_str()))
                .and_where(Expr::cust(
                    "NOT EXISTS (SELECT 1 FROM deliveries o WHERE o.partition_no = deliveries.partition_no \
                     AND o.handler_id = deliveries.handler_id AND o.aggregate_id = deliveries.aggregate_id \
                     AND (o.status = 'RETRYING' OR o.status = 'WAITING' AND o.event_position < deliveries.event_position))",
                ));
            let statements = vec![
                self.lock_handler(partition, handler),
                build(&line_up),
                build(&promote),
                self.revise_handler(handler),
            ];
            let written = self.backend.write_all(statements).await?;
            count += written.get(1).map_or(0, |written| written.affected);
        }
        Ok(count)
    }

    /// Stores that an event that was given to a handler again has failed, unless a delivery of it is stored, or the handler has
    /// not come to it by itself yet. Where another one of its aggregate is under way it waits. Answers what is stored.
    ///
    /// # Errors
    /// When the database fails; then nothing was done, unless the outcome is unknown.
    pub async fn store_failed(
        &self,
        handler: HandlerId,
        event: &Event,
        id: DeliveryId,
        error: &LastError,
        delay: Duration,
    ) -> Result<Option<Delivery>, StoreError> {
        let sql = "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, \
                   last_error, next_attempt_at, updated_at) \
                   SELECT $1, $2, $3, $4, $5, CASE WHEN u.is_busy THEN 'WAITING' ELSE 'RETRYING' END, 1, $6, \
                   CASE WHEN u.is_busy THEN NULL ELSE $7 END, $8 FROM (SELECT EXISTS (SELECT 1 FROM deliveries d \
                   WHERE d.partition_no = $1 AND d.handler_id = $3 AND d.aggregate_id = $5 AND d.status = 'RETRYING') \
                   AS is_busy) u \
                   WHERE EXISTS (SELECT 1 FROM checkpoints c WHERE c.partition_no = $1 AND c.name = $9 AND c.position >= $4) \
                   AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.partition_no = $1 AND d.handler_id = $3 \
                   AND d.aggregate_id = $5 AND d.event_position = $4)";
        let now = self.clock.now();
        let values: [Value; 9] = [
            event.partition.number().into(),
            id.0.into(),
            handler.0.into(),
            event.position.0.into(),
            event.aggregate_id.0.into(),
            error.as_str().into(),
            now.after(delay).to_utc().into(),
            now.to_utc().into(),
            handler.checkpoint_name().into(),
        ];
        let statements = vec![
            self.lock_handler(event.partition, handler),
            self.statement(sql, values),
            self.revise_handler(handler),
        ];
        self.backend.write_all(statements).await?;
        let mut select = select_deliveries();
        select
            .and_where(Expr::col(Column::PartitionNo).eq(event.partition.number()))
            .and_where(Expr::col(Column::HandlerId).eq(handler.0))
            .and_where(Expr::col(Column::AggregateId).eq(event.aggregate_id.0))
            .and_where(Expr::col(Column::EventPosition).eq(event.position.0))
            .limit(1);
        let rows = self.select(&select).await?;
        rows.first()
            .map(|row| delivery(&mut Row::of(row)))
            .transpose()
    }

    /// Whoever changes deliveries of a handler has locked its checkpoint: otherwise two of them might each leave what comes next
    /// to the other.
    fn lock_handler(&self, partition: Partition, handler: HandlerId) -> sea_orm::Statement {
        let sql =
            "UPDATE checkpoints SET position = position WHERE partition_no = $1 AND name = $2";
        let name = handler.checkpoint_name();
        self.statement(sql, [partition.number().into(), name.into()])
    }

    /// Tells the handler's dispatchers that there is something new.
    fn revise_handler(&self, handler: HandlerId) -> sea_orm::Statement {
        let sql = "UPDATE event_handlers SET revision = revision + 1 WHERE id = $1";
        self.statement(sql, [handler.0.into()])
    }
}

/// The columns that [`delivery`] reads, which are all of the table.
pub(super) const COLUMNS: [Column; 10] = [
    Column::PartitionNo,
    Column::Id,
    Column::HandlerId,
    Column::EventPosition,
    Column::AggregateId,
    Column::Status,
    Column::Attempts,
    Column::LastError,
    Column::NextAttemptAt,
    Column::UpdatedAt,
];

/// The same in SQL, for an alias of the table.
pub(super) fn columns_of(alias: &str) -> String {
    let columns = COLUMNS.map(|column| format!("{alias}.{}", column.as_str()));
    columns.join(", ")
}

fn select_deliveries() -> SelectStatement {
    delivery_columns().from(Entity).to_owned()
}

fn delivery_columns() -> SelectStatement {
    let columns = COLUMNS.map(|column| (Entity, column));
    Query::select().columns(columns).to_owned()
}

pub(super) fn delivery(row: &mut Row<'_>) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        partition: row.partition()?,
        id: DeliveryId(row.next()?),
        handler_id: HandlerId(row.next()?),
        position: Position(row.next()?),
        aggregate_id: AggregateId(row.next()?),
        status: {
            let text: String = row.next()?;
            DeliveryStatus::stored(&text)
                .ok_or_else(|| StoreError::Inconsistent(format!("no delivery can be {text}")))?
        },
        attempts: row.next()?,
        last_error: row.next::<Option<String>>()?.map(LastError::stored),
        next_attempt_at: row.optional_instant()?,
        updated_at: row.instant()?,
    })
}
