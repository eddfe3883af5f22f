//! Which aggregates there are to fold anew, in the order of their ids, and how much is still to fold. Floor 2.

use entity::{aggregates, events, read_models};
use sea_orm::sea_query::{Cond, Expr, ExprTrait, Func, Order, Query, SelectStatement, SimpleExpr};

use super::{Store, StoreError, rows};
use crate::domain::{AggregateId, AggregateType, Partition, Position, Timestamp, Version};

/// Which aggregates are folded anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebuildScope {
    /// One.
    Aggregate(AggregateId),
    /// Those of a type.
    Type(AggregateType),
    /// All.
    All,
}

/// An aggregate to fold anew.
#[derive(Clone, Debug)]
pub struct RebuildTarget {
    /// Its id.
    pub aggregate_id: AggregateId,
    /// What it is.
    pub aggregate_type: AggregateType,
    /// The version of its newest event.
    pub version: Version,
    /// The change that its read model has; none where there is none.
    pub change_position: Option<Position>,
}

/// How much there is to fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildSize {
    /// Aggregates with events.
    pub aggregates: u64,
    /// Their events.
    pub events: u64,
}

impl Store {
    /// How much there is to fold anew.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rebuild_size(&self, scope: &RebuildScope) -> Result<RebuildSize, StoreError> {
        use aggregates::{Column, Entity};
        let events = Func::sum(Expr::col((Entity, Column::CurrentVersion)));
        let events = Func::coalesce([events.into(), Expr::val(0)]);
        let mut select = Query::select()
            .expr(Expr::col((Entity, Column::Id)).count())
            .expr(Expr::expr(events).cast_as("bigint"))
            .from(Entity)
            .and_where(
                Expr::col((Entity, Column::PartitionNo))
                    .is_in(self.partitions.iter().map(Partition::number)),
            )
            .to_owned();
        where_scope(&mut select, scope);
        let rows = self.select(&select).await?;
        let Some(row) = rows.first() else {
            return Ok(RebuildSize::default());
        };
        let mut row = rows::Row::of(row);
        Ok(RebuildSize {
            aggregates: row.next::<i64>()?.unsigned_abs(),
            events: row.next::<i64>()?.unsigned_abs(),
        })
    }

    /// The next aggregates of a partition with events, in the order of their ids, each with the change that its read model has.
    /// Both are of one instant: the read model has no event in it that the aggregate is not said to have.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rebuild_targets(
        &self,
        partition: Partition,
        scope: &RebuildScope,
        after: Option<AggregateId>,
        limit: u64,
    ) -> Result<Vec<RebuildTarget>, StoreError> {
        use aggregates::{Column, Entity};
        // A look-up for each row of the page: a join would be planned by statistics, which may not be there.
        let of_aggregate = Query::select()
            .column((read_models::Entity, read_models::Column::ChangePosition))
            .from(read_models::Entity)
            .and_where(
                Expr::col((read_models::Entity, read_models::Column::PartitionNo))
                    .equals((Entity, Column::PartitionNo)),
            )
            .and_where(
                Expr::col((read_models::Entity, read_models::Column::AggregateId))
                    .equals((Entity, Column::Id)),
            )
            .to_owned();
        let mut select = Query::select()
            .columns([
                (Entity, Column::Id),
                (Entity, Column::AggregateType),
                (Entity, Column::CurrentVersion),
            ])
            .expr(SimpleExpr::from(of_aggregate))
            .from(Entity)
            .and_where(Expr::col((Entity, Column::PartitionNo)).eq(partition.number()))
            .order_by((Entity, Column::Id), Order::Asc)
            .limit(limit)
            .to_owned();
        if let Some(after) = after {
            select.and_where(Expr::col((Entity, Column::Id)).gt(after.0));
        }
        where_scope(&mut select, scope);
        let rows = self.select(&select).await?;
        rows.iter()
            .map(|row| {
                let mut row = rows::Row::of(row);
                Ok(RebuildTarget {
                    aggregate_id: AggregateId(row.next()?),
                    aggregate_type: AggregateType::stored(row.text()?),
                    version: Version(row.next()?),
                    change_position: row.next::<Option<i64>>()?.map(Position),
                })
            })
            .collect()
    }

    /// When the oldest event was appended that lies behind these positions, one for each partition; none where there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn oldest_event_behind(
        &self,
        positions: &[Position],
    ) -> Result<Option<Timestamp>, StoreError> {
        use events::{Column, Entity};
        let next = self.partitions.iter().zip(positions);
        let next = next.fold(Cond::any(), |any, (partition, position)| {
            any.add(
                Cond::all()
                    .add(Expr::col(Column::PartitionNo).eq(partition.number()))
                    .add(Expr::col(Column::Position).eq(position.next().0)),
            )
        });
        let select = Query::select()
            .column(Column::CreatedAt)
            .from(Entity)
            .cond_where(next)
            .to_owned();
        let rows = self.select(&select).await?;
        let times = rows.iter().map(|row| rows::Row::of(row).instant());
        let times: Vec<Timestamp> = times.collect::<Result<_, _>>()?;
        Ok(times.into_iter().min())
    }
}

fn where_scope(select: &mut SelectStatement, scope: &RebuildScope) {
    use aggregates::{Column, Entity};
    select.and_where(Expr::col((Entity, Column::CurrentVersion)).gt(0));
    match scope {
        RebuildScope::Aggregate(id) => {
            select.and_where(Expr::col((Entity, Column::Id)).eq(id.0));
        }
        RebuildScope::Type(aggregate_type) => {
            select
                .and_where(Expr::col((Entity, Column::AggregateType)).eq(aggregate_type.as_str()));
        }
        RebuildScope::All => {}
    }
}
