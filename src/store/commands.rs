//! The table `commands`. Commands are recorded and settled by appends; here they are found. Floor 2.

use std::collections::HashMap;

use entity::commands::{Column, Entity};
use futures_util::future::try_join_all;
use sea_orm::{
    Statement, Value,
    sea_query::{Cond, Expr, ExprTrait, Query, SelectStatement, SimpleExpr, UnionType},
};

use super::{
    Store, StoreError,
    bounded::{PAGE_BYTES, Part, merge},
    events::{KEYS_A_STATEMENT, sql_order},
    rows::{self, Row},
};
use crate::domain::{
    AggregateId, Command, CommandId, CommandStatus, CommandType, Order, Partition, Timestamp,
};

/// Later than any command: the end of the year 9999.
const LATEST: Timestamp = Timestamp::from_micros(253_402_300_799_999_999);

/// What must hold for commands of a list.
#[derive(Clone, Debug, Default)]
pub struct CommandFilter {
    /// Any of these statuses.
    pub statuses: Option<Vec<CommandStatus>>,
    /// Any of these types.
    pub types: Option<Vec<CommandType>>,
}

/// A page of commands.
#[derive(Debug)]
pub struct CommandPage {
    /// Those that are on it.
    pub commands: Vec<Command>,
    /// Whether there are more behind it.
    pub has_next: bool,
}

/// A place in a list of commands: behind the one that was made then and has this id.
pub type CommandPlace = (Timestamp, CommandId);

impl Store {
    /// Finds commands by their ids over all partitions, all in one statement.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn commands_by_id(
        &self,
        ids: &[CommandId],
    ) -> Result<HashMap<CommandId, Command>, StoreError> {
        let chunks = ids.chunks(KEYS_A_STATEMENT).map(|chunk| async move {
            let mut select = select_commands();
            self.where_ids(&mut select, chunk);
            self.select(&select).await
        });
        let rows = try_join_all(chunks).await?;
        rows.iter()
            .flatten()
            .map(|row| rows::command(row).map(|command| (command.id, command)))
            .collect()
    }

    /// Finds how far commands are, over all partitions.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn command_statuses(
        &self,
        ids: &[CommandId],
    ) -> Result<HashMap<CommandId, CommandStatus>, StoreError> {
        let chunks = ids.chunks(KEYS_A_STATEMENT).map(|chunk| async move {
            let mut select = Query::select()
                .columns([Column::Id, Column::Status])
                .from(Entity)
                .to_owned();
            self.where_ids(&mut select, chunk);
            self.select(&select).await
        });
        let rows = try_join_all(chunks).await?;
        rows.iter()
            .flatten()
            .map(|row| {
                let mut row = Row::of(row);
                let id = CommandId(row.next()?);
                Ok((id, rows::command_status(&row.next::<String>()?)?))
            })
            .collect()
    }

    /// A page of commands in the order of their creation, behind a place; one of large ones ends early.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn commands_page(
        &self,
        filter: &CommandFilter,
        order: Order,
        after: Option<CommandPlace>,
        first: usize,
    ) -> Result<CommandPage, StoreError> {
        let limit = first as u64 + 1;
        let of_partitions = self
            .partitions
            .iter()
            .map(|partition| self.commands_of_partition(partition, filter, order, after, limit));
        let parts = try_join_all(of_partitions).await?;
        let page = merge(parts, order, first, place_of);
        Ok(CommandPage {
            commands: page.rows,
            has_next: page.is_cut,
        })
    }

    /// The index begins with the status: the commands of each are read in order, and merged.
    async fn commands_of_partition(
        &self,
        partition: Partition,
        filter: &CommandFilter,
        order: Order,
        after: Option<CommandPlace>,
        limit: u64,
    ) -> Result<Part<Command>, StoreError> {
        let sorted = |mut select: SelectStatement| {
            select
                .order_by(Column::CreatedAt, sql_order(order))
                .order_by(Column::Id, sql_order(order))
                .limit(limit)
                .to_owned()
        };
        let ranges = ranges_of(filter).into_iter().map(|range| {
            let mut select = select_commands();
            select
                .and_where(Expr::col(Column::PartitionNo).eq(partition.number()))
                .and_where(range);
            if let Some(after) = after {
                select.and_where(behind(after, order));
            }
            select_from(sorted(select))
        });
        let union = ranges.reduce(|mut all, one| all.union(UnionType::All, one).to_owned());
        let Some(union) = union else {
            return Ok(Part {
                rows: Vec::new(),
                is_cut: false,
            });
        };
        let max_bytes = PAGE_BYTES / self.partitions.get();
        self.read_part(&sorted(select_from(union)), max_bytes, rows::command)
            .await
    }

    /// The first commands of several aggregates behind a place, in the order of their creation, all in one statement: at
    /// least `first` of each, where there are as many. None where they are larger than `max_bytes`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn commands_of_aggregates(
        &self,
        ids: &[AggregateId],
        after: Option<CommandPlace>,
        first: usize,
        max_bytes: usize,
    ) -> Result<Option<HashMap<AggregateId, Vec<Command>>>, StoreError> {
        let chunks = ids
            .chunks(KEYS_A_STATEMENT)
            .map(|chunk| self.commands_of_some(chunk, after, first, max_bytes));
        let mut found: HashMap<AggregateId, Vec<Command>> = HashMap::new();
        for chunk in try_join_all(chunks).await? {
            let Some(commands) = chunk else {
                return Ok(None);
            };
            for command in commands {
                found.entry(command.aggregate_id).or_default().push(command);
            }
        }
        for commands in found.values_mut() {
            commands.sort_unstable_by_key(place_of);
        }
        Ok(Some(found))
    }

    /// Reads each aggregate's commands up to the instant of the last one that is asked for, which is looked up first.
    async fn commands_of_some(
        &self,
        ids: &[AggregateId],
        after: Option<CommandPlace>,
        first: usize,
        max_bytes: usize,
    ) -> Result<Option<Vec<Command>>, StoreError> {
        let keys: Vec<_> = ids
            .iter()
            .map(|id| (self.partitions.of_aggregate(*id), id.0, 0, 0))
            .collect();
        let (relation, mut values) = self.backend.uuid_ranges(&keys);
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let behind = after.map(|(created_at, id)| {
            let place = format!(
                "({}, {})",
                bind(created_at.to_utc().into()),
                bind(id.0.into())
            );
            move |alias: &str| format!("AND ({alias}.created_at, {alias}.id) > {place}")
        });
        let behind = |alias: &str| behind.as_ref().map(|of| of(alias)).unwrap_or_default();
        let offset = bind(i64::try_from(first.saturating_sub(1)).unwrap_or(0).into());
        let end_of_time = bind(LATEST.to_utc().into());
        let sql = format!(
            "WITH asked (no, id, low, high) AS ({relation}), \
             bounds AS MATERIALIZED ( \
                 SELECT asked.no, asked.id, COALESCE((SELECT k.created_at FROM commands k \
                     WHERE k.partition_no = l.partition_no AND k.aggregate_id = asked.id {} \
                     ORDER BY k.created_at, k.id LIMIT 1 OFFSET {offset}), {end_of_time}) AS up_to \
                 FROM asked JOIN partition_locks l ON l.partition_no = asked.no AND l.log = 'events') \
             SELECT {} FROM bounds b JOIN commands c \
             ON c.partition_no = b.no AND c.aggregate_id = b.id AND c.created_at <= b.up_to {}",
            behind("k"),
            rows::command_columns_of("c"),
            behind("c"),
        );
        let dialect = self.backend.dialect();
        let statement = Statement::from_sql_and_values(dialect, sql, values);
        self.read_all_or_none(statement, max_bytes, rows::command)
            .await
    }

    fn where_ids(&self, select: &mut SelectStatement, ids: &[CommandId]) {
        let partitions = self.partitions.iter().map(Partition::number);
        let column = Expr::col(Column::Id);
        select.cond_where(
            Cond::all()
                .add(Expr::col(Column::PartitionNo).is_in(partitions))
                .add(self.backend.uuid_in(column, &mut ids.iter().map(|id| id.0))),
        );
    }
}

pub(super) fn select_commands() -> SelectStatement {
    rows::select_command(&mut Query::select())
        .from(Entity)
        .to_owned()
}

/// Commands that a statement has selected.
pub(super) fn select_from(select: SelectStatement) -> SelectStatement {
    Query::select()
        .columns(rows::COMMAND_COLUMNS.iter().copied())
        .from_subquery(select, "page")
        .to_owned()
}

/// What holds for the commands of a list, in parts that have no command in common: each of them is one range of the index.
fn ranges_of(filter: &CommandFilter) -> Vec<SimpleExpr> {
    let statuses = filter.statuses.as_deref().unwrap_or(&CommandStatus::ALL);
    let of_status = |status: &CommandStatus| Expr::col(Column::Status).eq(status.as_str());
    let Some(types) = &filter.types else {
        return statuses.iter().map(of_status).collect();
    };
    let of_type = Expr::col(Column::CommandType).is_in(types.iter().map(CommandType::as_str));
    let both = |status| of_type.clone().and(of_status(status));
    statuses.iter().map(both).collect()
}

pub(super) fn place_of(command: &Command) -> CommandPlace {
    (command.created_at, command.id)
}

/// The condition that a command comes behind a place.
fn behind((created_at, id): CommandPlace, order: Order) -> SimpleExpr {
    let place = Expr::tuple([Expr::val(created_at.to_utc()), Expr::val(id.0)]);
    let row = Expr::tuple([Expr::col(Column::CreatedAt), Expr::col(Column::Id)]);
    match order {
        Order::OldestFirst => row.gt(place),
        Order::NewestFirst => row.lt(place),
    }
}
