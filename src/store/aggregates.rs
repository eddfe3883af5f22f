//! The table `aggregates`. Floor 2.

use std::{collections::HashMap, time::Duration};

use entity::aggregates::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::sea_query::{Cond, Expr, ExprTrait, Query, SelectStatement};

use super::{Store, StoreError, events::KEYS_A_STATEMENT, rows};
use crate::domain::{Aggregate, AggregateId, AggregateType, Order, Partition, Timestamp};

impl Store {
    /// Makes an aggregate without events, unless it is there already. Answers it, and whether it was made. Waits for so long
    /// for a lock of PostgreSQL that somebody else holds.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_aggregate(
        &self,
        id: AggregateId,
        aggregate_type: &AggregateType,
        lock_wait: Duration,
    ) -> Result<(Aggregate, bool), StoreError> {
        let partition = self.partitions.of_aggregate(id);
        self.backend
            .create_aggregate(partition, id, aggregate_type, lock_wait, self.clock.now())
            .await
    }

    /// Finds aggregates by their ids, all in one statement.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn aggregates_by_id(
        &self,
        ids: &[AggregateId],
    ) -> Result<HashMap<AggregateId, Aggregate>, StoreError> {
        let chunks = ids.chunks(KEYS_A_STATEMENT).map(|chunk| async move {
            let mut select = rows::select_aggregate(&mut Query::select())
                .from(Entity)
                .to_owned();
            self.where_partitions_of(&mut select, chunk);
            let ids = Expr::col(Column::Id);
            select.and_where(self.backend.uuid_in(ids, &mut chunk.iter().map(|id| id.0)));
            self.select(&select).await
        });
        let rows = try_join_all(chunks).await?;
        rows.iter()
            .flatten()
            .map(|row| rows::aggregate(row).map(|aggregate| (aggregate.id, aggregate)))
            .collect()
    }

    /// A page of aggregates in the order of their creation, behind the one that `after` names.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn aggregates_page(
        &self,
        types: Option<&[AggregateType]>,
        order: Order,
        after: Option<(Timestamp, AggregateId)>,
        limit: u64,
    ) -> Result<Vec<Aggregate>, StoreError> {
        let of_partitions = self
            .partitions
            .iter()
            .map(|partition| self.aggregates_of_partition(partition, types, order, after, limit));
        let mut page: Vec<Aggregate> = try_join_all(of_partitions)
            .await?
            .into_iter()
            .flatten()
            .collect();
        page.sort_unstable_by_key(|aggregate| (aggregate.created_at, aggregate.id));
        if order == Order::NewestFirst {
            page.reverse();
        }
        page.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(page)
    }

    async fn aggregates_of_partition(
        &self,
        partition: Partition,
        types: Option<&[AggregateType]>,
        order: Order,
        after: Option<(Timestamp, AggregateId)>,
        limit: u64,
    ) -> Result<Vec<Aggregate>, StoreError> {
        let mut select = rows::select_aggregate(&mut Query::select())
            .from(Entity)
            .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
            .limit(limit)
            .to_owned();
        let sql_order = super::events::sql_order(order);
        select
            .order_by(Column::CreatedAt, sql_order.clone())
            .order_by(Column::Id, sql_order);
        if let Some(types) = types {
            select.and_where(
                Expr::col(Column::AggregateType).is_in(types.iter().map(AggregateType::as_str)),
            );
        }
        if let Some((created_at, id)) = after {
            let place = Expr::tuple([Expr::val(created_at.to_utc()), Expr::val(id.0)]);
            let row = Expr::tuple([Expr::col(Column::CreatedAt), Expr::col(Column::Id)]);
            select.and_where(match order {
                Order::OldestFirst => row.gt(place),
                Order::NewestFirst => row.lt(place),
            });
        }
        self.select(&select)
            .await?
            .iter()
            .map(rows::aggregate)
            .collect()
    }

    fn where_partitions_of(&self, select: &mut SelectStatement, ids: &[AggregateId]) {
        let mut partitions: Vec<i16> = ids
            .iter()
            .map(|id| self.partitions.of_aggregate(*id).number())
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        select.cond_where(Cond::all().add(Expr::col(Column::PartitionNo).is_in(partitions)));
    }
}
