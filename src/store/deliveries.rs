//! The table `deliveries`: events that were given to a handler and are not done. Floor 2.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use entity::deliveries::{Column, Entity};
use sea_orm::{
    Value,
    sea_query::{Expr, ExprTrait, Order, Query, SelectStatement},
};

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
        let mut select = select_deliveries();
        select
            .expr(self.now())
            .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
            .and_where(Expr::col(Column::HandlerId).eq(handler.0))
            .and_where(Expr::col(Column::Status).eq(DeliveryStatus::Retrying.as_str()))
            .order_by(Column::NextAttemptAt, Order::Asc)
            .limit((limit + taken.len() + 1) as u64);
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
        let positions: Vec<_> = due.iter().map(|delivery| delivery.position).collect();
        let mut events = self.events_at(partition, &positions).await?;
        let mut bytes = 0;
        for delivery in due {
            let Some(event) = events.remove(&delivery.position) else {
                continue;
            };
            bytes += event.size_bytes();
            found.due.push((delivery, event));
            if bytes > DUE_BYTES {
                found.next = Some(Duration::ZERO);
                break;
            }
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
            let of = self.backend.uuid_in(
                Expr::col(Column::AggregateId),
                &mut chunk.iter().map(|id| id.0),
            );
            let select = Query::select()
                .distinct()
                .column(Column::AggregateId)
                .from(Entity)
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(handler.0))
                .and_where(of)
                .and_where(Expr::col(Column::Status).is_in(["RETRYING", "WAITING"]))
                .to_owned();
            for row in &self.select(&select).await? {
                held_back.insert(AggregateId(Row::of(row).next()?));
            }
        }
        Ok(held_back)
    }

    /// The deliveries of a handler that are not done, in the order of their ids, behind one of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn deliveries_page(
        &self,
        handler: HandlerId,
        status: Option<DeliveryStatus>,
        after: Option<DeliveryId>,
        limit: u64,
    ) -> Result<Vec<Delivery>, StoreError> {
        let mut page = Vec::new();
        for partition in self.partitions.iter() {
            let mut select = select_deliveries();
            select
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(Expr::col(Column::HandlerId).eq(handler.0))
                .order_by(Column::Id, Order::Asc)
                .limit(limit);
            if let Some(status) = status {
                select.and_where(Expr::col(Column::Status).eq(status.as_str()));
            }
            if let Some(after) = after {
                select.and_where(Expr::col(Column::Id).gt(after.0));
            }
            for row in &self.select(&select).await? {
                page.push(delivery(&mut Row::of(row))?);
            }
        }
        page.sort_by_key(|delivery| delivery.id);
        page.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(page)
    }

    /// Finds events by their positions in a partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_at(
        &self,
        partition: Partition,
        positions: &[Position],
    ) -> Result<HashMap<Position, Event>, StoreError> {
        use entity::events as table;
        let mut found = HashMap::with_capacity(positions.len());
        for chunk in positions.chunks(KEYS_A_STATEMENT) {
            let select = rows::select_event(&mut Query::select())
                .from(table::Entity)
                .and_where(Expr::col(table::Column::PartitionNo).eq(partition.number()))
                .and_where(
                    Expr::col(table::Column::Position)
                        .is_in(chunk.iter().map(|position| position.0)),
                )
                .to_owned();
            for row in &self.select(&select).await? {
                let event = rows::event(row)?;
                found.insert(event.position, event);
            }
        }
        Ok(found)
    }

    /// Puts dead deliveries of a handler back in line: all, or those with these ids. Answers how many.
    ///
    /// # Errors
    /// When the database fails; then nothing was done, unless the outcome is unknown.
    pub async fn retry_dead(
        &self,
        handler: HandlerId,
        ids: Option<&[DeliveryId]>,
    ) -> Result<u64, StoreError> {
        let partitions = || self.partitions.iter().map(Partition::number);
        let build =
            |update: &sea_orm::sea_query::UpdateStatement| self.backend.dialect().build(update);
        let mut line_up = Query::update();
        line_up
            .table(Entity)
            .value(Column::Status, DeliveryStatus::Waiting.as_str())
            .value(Column::Attempts, 0)
            .value(Column::UpdatedAt, self.now())
            .and_where(Expr::col(Column::PartitionNo).is_in(partitions()))
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
            .and_where(Expr::col(Column::PartitionNo).is_in(partitions()))
            .and_where(Expr::col(Column::HandlerId).eq(handler.0))
            .and_where(Expr::col(Column::Status).eq(DeliveryStatus::Waiting.as_str()))
            .and_where(Expr::cust(
                "NOT EXISTS (SELECT 1 FROM deliveries o WHERE o.partition_no = deliveries.partition_no \
                 AND o.handler_id = deliveries.handler_id AND o.aggregate_id = deliveries.aggregate_id \
                 AND (o.status = 'RETRYING' OR o.status = 'WAITING' AND o.event_position < deliveries.event_position))",
            ));
        let statements = vec![
            self.lock_handler(handler),
            build(&line_up),
            build(&promote),
            self.revise_handler(handler),
        ];
        let written = self.backend.write_all(statements).await?;
        Ok(written.get(1).map_or(0, |written| written.affected))
    }

    /// Stores that an event that was given to a handler again has failed, unless a delivery of it is stored. Answers what is
    /// stored.
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
                   last_error, next_attempt_at, updated_at) SELECT $1, $2, $3, $4, $5, 'RETRYING', 1, $6, $7, $8 \
                   WHERE EXISTS (SELECT 1 FROM event_handlers h WHERE h.id = $3) AND NOT EXISTS ( \
                   SELECT 1 FROM deliveries d WHERE d.partition_no = $1 AND d.handler_id = $3 AND d.aggregate_id = $5 \
                   AND d.event_position = $4)";
        let now = self.clock.now();
        let values: [Value; 8] = [
            event.partition.number().into(),
            id.0.into(),
            handler.0.into(),
            event.position.0.into(),
            event.aggregate_id.0.into(),
            error.as_str().into(),
            now.after(delay).to_utc().into(),
            now.to_utc().into(),
        ];
        let statements = vec![
            self.lock_handler(handler),
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
    fn lock_handler(&self, handler: HandlerId) -> sea_orm::Statement {
        let partitions: Vec<String> = self
            .partitions
            .iter()
            .map(|partition| partition.number().to_string())
            .collect();
        let sql = format!(
            "UPDATE checkpoints SET position = position WHERE partition_no IN ({}) AND name = $1",
            partitions.join(", ")
        );
        self.statement(&sql, [handler.checkpoint_name().into()])
    }

    /// Tells the handler's dispatchers that there is something new.
    fn revise_handler(&self, handler: HandlerId) -> sea_orm::Statement {
        let sql = "UPDATE event_handlers SET revision = revision + 1 WHERE id = $1";
        self.statement(sql, [handler.0.into()])
    }
}

pub(super) fn select_deliveries() -> SelectStatement {
    Query::select()
        .columns([
            (Entity, Column::PartitionNo),
            (Entity, Column::Id),
            (Entity, Column::HandlerId),
            (Entity, Column::EventPosition),
            (Entity, Column::AggregateId),
            (Entity, Column::Status),
            (Entity, Column::Attempts),
            (Entity, Column::LastError),
            (Entity, Column::NextAttemptAt),
            (Entity, Column::UpdatedAt),
        ])
        .from(Entity)
        .to_owned()
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
