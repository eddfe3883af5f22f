//! The pending commands of the table `commands` that a worker looks for, and the tries that failed. Floor 2.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entity::commands::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::sea_query::{Expr, ExprTrait, Func, Query, SelectStatement, SimpleExpr, UnionType};

use super::{
    Store, StoreError,
    bounded::{PAGE_BYTES, merge},
    commands::{place_of, select_commands, select_from},
    events::sql_order,
    rows::{self, Row},
};
use crate::domain::{AggregateId, Command, Order, Partition, Timestamp};

/// Lists of aggregates that are left out have lengths of this multiple, so that there are few forms of a statement.
const LEFT_OUT_STEP: usize = 64;

/// Commands whose time has come.
#[derive(Debug)]
pub struct DueCommands {
    /// The oldest of them, in the order of their creation.
    pub commands: Vec<Command>,
    /// Whether those are all.
    pub is_all: bool,
}

impl Store {
    /// The pending commands of a partition that are due, in the order of their creation, but for those of some aggregates:
    /// `most` of them, and fewer where they are large. One that was tried and waits for its next try holds back the later ones
    /// of its aggregate.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due_commands(
        &self,
        partition: Partition,
        most: usize,
        but: &[AggregateId],
    ) -> Result<DueCommands, StoreError> {
        let now = self.backend.now(self.clock.now());
        let parts = self.due(partition, &now, but);
        let select = |part: &SimpleExpr, limit: usize| {
            select_commands()
                .cond_where(part.clone())
                .order_by(Column::CreatedAt, sql_order(Order::OldestFirst))
                .order_by(Column::Id, sql_order(Order::OldestFirst))
                .limit(limit as u64)
                .to_owned()
        };
        let all = parts.iter().map(|part| select_from(select(part, most)));
        let all = union_of(all).expect("two parts");
        let read = self.read_part(&all, PAGE_BYTES, rows::command).await?;
        let is_large = read.is_cut;
        let read = if is_large {
            // One part comes behind the other, and one of the second may be older than what was read of the first. So each
            // is read by itself, and not much more of it than fits.
            let limit = read.rows.len().min(most);
            drop(read);
            let selects = parts.iter().map(|part| select(part, limit));
            let reads = selects.map(|select| async move {
                self.read_part(&select, PAGE_BYTES / 2, rows::command).await
            });
            merge(
                try_join_all(reads).await?,
                Order::OldestFirst,
                limit,
                place_of,
            )
        } else {
            merge(vec![read], Order::OldestFirst, most, place_of)
        };
        Ok(DueCommands {
            is_all: !is_large && read.rows.len() < most,
            commands: read.rows,
        })
    }

    /// Which of these partitions have a pending command that is due, as [`Store::due_commands`] finds them, of other aggregates
    /// than those that come with the partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn partitions_with_due_commands(
        &self,
        partitions: &[(Partition, Vec<AggregateId>)],
    ) -> Result<Vec<Partition>, StoreError> {
        let now = self.backend.now(self.clock.now());
        let parts = partitions.iter().flat_map(|(partition, but)| {
            self.due(*partition, &now, but).map(|part| {
                let one = Query::select()
                    .column(Column::PartitionNo)
                    .from(Entity)
                    .cond_where(part)
                    .limit(1)
                    .to_owned();
                Query::select()
                    .column(Column::PartitionNo)
                    .from_subquery(one, "due")
                    .to_owned()
            })
        });
        let Some(union) = union_of(parts) else {
            return Ok(Vec::new());
        };
        let rows = self.select(&union).await?;
        rows.iter().map(|row| Row::of(row).partition()).collect()
    }

    /// What holds for the commands of a partition that are due, in two parts, each of which is one range of the index.
    fn due(&self, partition: Partition, now: &SimpleExpr, but: &[AggregateId]) -> [SimpleExpr; 2] {
        let held_back = Query::select()
            .expr(Expr::val(1))
            .from_as(Entity, "tried")
            .and_where(Expr::col(("tried", Column::PartitionNo)).eq(partition.number()))
            .and_where(
                Expr::col(("tried", Column::AggregateId)).equals((Entity, Column::AggregateId)),
            )
            .and_where(Expr::cust(
                "tried.status = 'PENDING' AND tried.attempts > 0",
            ))
            .and_where(Expr::col(("tried", Column::NotBefore)).gt(now.clone()))
            .and_where(Expr::cust(
                "(tried.created_at, tried.id) < (commands.created_at, commands.id)",
            ))
            .to_owned();
        let not_before = || Expr::col((Entity, Column::NotBefore));
        [not_before().is_null(), not_before().lte(now.clone())].map(|is_due| {
            let due = Expr::col((Entity, Column::PartitionNo))
                .eq(partition.number())
                .and(Expr::cust("commands.status = 'PENDING'"))
                .and(is_due)
                .and(Expr::exists(held_back.clone()).not());
            if but.is_empty() {
                return due;
            }
            let padding = but.len().next_multiple_of(LEFT_OUT_STEP) - but.len();
            let mut ids = but.iter().map(|id| id.0);
            let mut padded = ids.by_ref().chain(std::iter::repeat_n(but[0].0, padding));
            let aggregate = Expr::col((Entity, Column::AggregateId));
            due.and(self.backend.uuid_in(aggregate, &mut padded).not())
        })
    }

    /// How long it is until the next pending command of a partition is due that is not due yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_due_in(&self, partition: Partition) -> Result<Option<Duration>, StoreError> {
        let now = self.backend.now(self.clock.now());
        let select = Query::select()
            .expr(Func::min(Expr::col(Column::NotBefore)))
            .expr(now.clone())
            .from(Entity)
            .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
            .and_where(Expr::cust("status = 'PENDING'"))
            .and_where(Expr::col(Column::NotBefore).gt(now))
            .to_owned();
        let rows = self.select(&select).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let mut row = Row::of(row);
        let next: Option<DateTime<Utc>> = row.next()?;
        let now = row.instant()?;
        Ok(next.map(|next| Timestamp::from(next).since(now)))
    }

    /// Puts a pending command off after a try that failed, and counts it. False where somebody else has tried or settled
    /// the command meanwhile.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn postpone_command(
        &self,
        command: &Command,
        reason: &str,
        delay: Duration,
    ) -> Result<bool, StoreError> {
        self.backend
            .postpone_command(command, reason, delay, self.clock.now())
            .await
    }
}

fn union_of(parts: impl Iterator<Item = SelectStatement>) -> Option<SelectStatement> {
    parts.reduce(|mut all, one| all.union(UnionType::All, one).to_owned())
}
