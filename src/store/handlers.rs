//! The table `event_handlers`, and the checkpoints of handlers. Floor 2.

use std::collections::HashMap;

use entity::event_handlers::{Column, Entity};
use sea_orm::{
    Statement, Value,
    sea_query::{Expr, ExprTrait, OnConflict, Order, Query, SelectStatement, SimpleExpr},
};

use super::{Store, StoreError, rows::Row};
use crate::domain::{
    EventHandler, EventType, FencingToken, HandlerFunction, HandlerId, HandlerName, HandlerStep,
    LastError, Partition, Position, SqlFunctionName, SqlRun, SqlRunOutcome, StepOutcome, Timestamp,
};

/// The most handlers that are registered: far more than anybody has, and far less than memory.
pub const MOST_HANDLERS: i64 = 10_000;
/// Registrations at the same time do not see each other, so there may be a few more.
const MOST_HANDLERS_READ: u64 = MOST_HANDLERS as u64 + 1000;

/// Calls of functions in SQL that run at a time: each has a connection of its own.
pub const SQL_CALLS_AT_A_TIME: u32 = 16;

/// Whether a database has a function in SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlFunctions {
    /// This one has none at all.
    NotSupported,
    /// It is there.
    Found,
    /// It is not there; these are some that could be meant.
    Missing {
        /// Their names.
        others: Vec<String>,
    },
}

/// A handler as somebody registers it.
#[derive(Clone, Debug)]
pub struct NewHandler {
    /// The id that it gets, unless there is one of its name.
    pub id: HandlerId,
    /// Its name.
    pub name: HandlerName,
    /// The types that it wants, sorted; empty: every type.
    pub event_types: Vec<EventType>,
    /// What it does.
    pub function: HandlerFunction,
    /// Where a new one begins, for each partition; none: with the next event.
    pub start: Option<Vec<Position>>,
}

impl Store {
    /// All handlers, sorted by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_handlers(&self) -> Result<Vec<EventHandler>, StoreError> {
        let select = select_handlers()
            .order_by(Column::HandlerName, Order::Asc)
            .limit(MOST_HANDLERS_READ)
            .to_owned();
        self.select(&select)
            .await?
            .iter()
            .map(|row| handler(Row::of(row)))
            .collect()
    }

    /// The handler of a name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_handler(
        &self,
        name: &HandlerName,
    ) -> Result<Option<EventHandler>, StoreError> {
        let select = select_handlers()
            .and_where(Expr::col(Column::HandlerName).eq(name.as_str()))
            .to_owned();
        let rows = self.select(&select).await?;
        rows.first().map(|row| handler(Row::of(row))).transpose()
    }

    /// Registers a handler with its checkpoints, or changes the one of its name, which goes on where it is. False where there
    /// are [`MOST_HANDLERS`] others; then nothing was done.
    ///
    /// # Errors
    /// When the database fails; then nothing was done, unless the outcome is unknown.
    pub async fn register_handler(&self, handler: &NewHandler) -> Result<bool, StoreError> {
        let types: Vec<&str> = handler.event_types.iter().map(EventType::as_str).collect();
        let types = serde_json::Value::from(types).to_string();
        let same = Query::select()
            .expr(Expr::val(1))
            .from(Entity)
            .and_where(Expr::col(Column::HandlerName).eq(handler.name.as_str()))
            .to_owned();
        let has_place = Expr::cust("(SELECT COUNT(*) FROM event_handlers)")
            .lt(MOST_HANDLERS)
            .or(Expr::exists(same));
        let new = Query::select()
            .expr(Expr::val(handler.id.0))
            .expr(Expr::val(handler.name.as_str()))
            .expr(self.backend.json_value(types))
            .expr(Expr::val(handler.function.to_string()))
            .expr(Expr::val(true))
            .expr(self.now())
            .expr(Expr::val(0_i64))
            .and_where(has_place)
            .to_owned();
        let insert = Query::insert()
            .into_table(Entity)
            .columns([
                Column::Id,
                Column::HandlerName,
                Column::EventTypes,
                Column::HandlerFunction,
                Column::IsActive,
                Column::CreatedAt,
                Column::Revision,
            ])
            .select_from(new)
            .expect("as many values as columns")
            .on_conflict(
                OnConflict::column(Column::HandlerName)
                    .update_columns([Column::EventTypes, Column::HandlerFunction])
                    .value(
                        Column::PausedUntil,
                        Expr::cust(
                            "CASE WHEN event_handlers.handler_function = excluded.handler_function \
                             THEN event_handlers.paused_until END",
                        ),
                    )
                    .value(
                        Column::Revision,
                        Expr::col((Entity, Column::Revision)).add(1),
                    )
                    .to_owned(),
            )
            .to_owned();
        let mut statements = vec![self.backend.dialect().build(&insert)];
        // One that somebody has begun to remove gets back what is missing.
        let known = self.event_handlers().await?;
        let known = known.iter().find(|known| known.name == handler.name);
        let id = known.map_or(handler.id, |known| known.id);
        for partition in self.partitions.iter() {
            let start = handler
                .start
                .as_ref()
                .map(|start| start[partition.index()].0);
            let sql = "INSERT INTO checkpoints (partition_no, name, position, fence) \
                       SELECT $1, $2, COALESCE($3, (SELECT MAX(e.position) FROM events e WHERE e.partition_no = $1), 0), 0 \
                       WHERE EXISTS (SELECT 1 FROM event_handlers h WHERE h.id = $4) AND NOT EXISTS ( \
                       SELECT 1 FROM checkpoints c WHERE c.partition_no = $1 AND c.name = $2)";
            let values: [Value; 4] = [
                partition.number().into(),
                id.checkpoint_name().into(),
                start.into(),
                id.0.into(),
            ];
            statements.push(self.statement(sql, values));
        }
        let written = self.backend.write_all(statements).await?;
        Ok(written.first().is_some_and(|written| written.affected > 0))
    }

    /// Makes a handler active, or not. False where there is none of that name.
    ///
    /// # Errors
    /// When the database fails; then nothing was done, unless the outcome is unknown.
    pub async fn set_handler_active(
        &self,
        name: &HandlerName,
        is_active: bool,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE event_handlers SET is_active = $2, paused_until = NULL, revision = revision + 1 \
                   WHERE handler_name = $1";
        let update = self.statement(sql, [name.as_str().into(), is_active.into()]);
        let written = self.backend.write_all(vec![update]).await?;
        Ok(written.iter().any(|written| written.affected > 0))
    }

    /// Says that a handler waits until an instant, or no more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pause_handler(
        &self,
        id: HandlerId,
        until: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let until = until.map(Timestamp::to_utc);
        let sql = "UPDATE event_handlers SET paused_until = $2 WHERE id = $1";
        let update = self.statement(sql, [id.0.into(), until.into()]);
        self.backend.write_all(vec![update]).await.map(drop)
    }

    /// Removes a handler with its checkpoints and deliveries. False where there is none of that name.
    ///
    /// Each partition is a transaction of its own: one that has to wait for what runs in another would hold up this one's.
    ///
    /// # Errors
    /// When the database fails: what is left is there until somebody removes the handler again.
    pub async fn remove_handler(&self, handler: &EventHandler) -> Result<bool, StoreError> {
        for partition in self.partitions.iter() {
            // The checkpoint comes first: whoever writes deliveries has locked it.
            let checkpoint = "DELETE FROM checkpoints WHERE partition_no = $1 AND name = $2";
            let deliveries = "DELETE FROM deliveries WHERE partition_no = $1 AND handler_id = $2";
            let number: Value = partition.number().into();
            let name = handler.id.checkpoint_name();
            let statements = vec![
                self.statement(checkpoint, [number.clone(), name.into()]),
                self.statement(deliveries, [number, handler.id.0.into()]),
            ];
            self.backend.write_all(statements).await?;
        }
        let sql = "DELETE FROM event_handlers WHERE id = $1";
        let delete = self.statement(sql, [handler.id.0.into()]);
        let written = self.backend.write_all(vec![delete]).await?;
        Ok(written.last().is_some_and(|written| written.affected > 0))
    }

    /// Makes the checkpoint of a handler in a partition that of the runner with this token, and says where it is; none where it is
    /// gone, or a newer runner has it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fence_handler(
        &self,
        partition: Partition,
        id: HandlerId,
        token: FencingToken,
    ) -> Result<Option<Position>, StoreError> {
        let sql = "UPDATE checkpoints SET fence = $3 WHERE partition_no = $1 AND name = $2 AND fence <= $3 \
                   RETURNING position";
        let values: [Value; 3] = [
            partition.number().into(),
            id.checkpoint_name().into(),
            token.0.into(),
        ];
        let fence = self.statement(sql, values);
        let written = self.backend.write_all(vec![fence]).await?;
        let row = written.first().and_then(|written| written.rows.first());
        row.map(|row| Row::of(row).next().map(Position)).transpose()
    }

    /// How many events of the log handlers have still to look at.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn handler_lags(
        &self,
        ids: &[HandlerId],
    ) -> Result<HashMap<HandlerId, u64>, StoreError> {
        use entity::checkpoints as table;
        let names: HashMap<String, HandlerId> =
            ids.iter().map(|id| (id.checkpoint_name(), *id)).collect();
        let select = Query::select()
            .columns([
                table::Column::PartitionNo,
                table::Column::Name,
                table::Column::Position,
            ])
            .from(table::Entity)
            .and_where(
                Expr::col(table::Column::PartitionNo)
                    .is_in(self.partitions.iter().map(Partition::number)),
            )
            .and_where(Expr::col(table::Column::Name).is_in(names.keys().cloned()))
            .to_owned();
        // The checkpoints come first: what is done meanwhile only makes the answer too cautious.
        let rows = self.select(&select).await?;
        let heads = self.heads().await?.events;
        let mut lags: HashMap<HandlerId, u64> = ids.iter().map(|id| (*id, 0)).collect();
        for row in &rows {
            let mut row = Row::of(row);
            let partition = row.partition()?;
            let name: String = row.next()?;
            let position: i64 = row.next()?;
            if let (Some(id), Some(head)) = (names.get(&name), heads.get(partition.index())) {
                *lags.entry(*id).or_default() += u64::try_from(head.0 - position).unwrap_or(0);
            }
        }
        Ok(lags)
    }

    /// Stores what handlers have come to in one partition, all in one transaction: of each all of it, or nothing where its
    /// checkpoint is elsewhere or belongs to another runner. No stream may get the same event id twice.
    ///
    /// # Errors
    /// When the database fails; then nothing was stored, unless the outcome is unknown.
    pub async fn save_handler_steps(
        &self,
        partition: Partition,
        token: FencingToken,
        steps: &[HandlerStep],
    ) -> Result<Vec<StepOutcome>, StoreError> {
        self.backend
            .save_handler_steps(partition, token, steps, self.clock.now())
            .await
    }

    /// Calls a function in SQL for events, in the transaction that moves the checkpoint. None where that is elsewhere or belongs
    /// to another runner.
    ///
    /// # Errors
    /// When the database fails; then nothing was done, unless the outcome is unknown.
    pub async fn run_sql_handler(
        &self,
        partition: Partition,
        run: &SqlRun<'_>,
    ) -> Result<Option<SqlRunOutcome>, StoreError> {
        self.backend.run_sql_handler(partition, run).await
    }

    /// Calls a function in SQL for one event. Why it failed is an answer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn call_sql_function(
        &self,
        function: &SqlFunctionName,
        event: &crate::domain::Event,
        time_out: std::time::Duration,
    ) -> Result<Result<(), LastError>, StoreError> {
        self.backend
            .call_sql_function(function, event, time_out)
            .await
    }

    /// Whether the database has a function in SQL that a handler can call.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_sql_function(
        &self,
        function: &SqlFunctionName,
    ) -> Result<SqlFunctions, StoreError> {
        self.backend.find_sql_function(function).await
    }

    pub(super) fn now(&self) -> SimpleExpr {
        self.backend.now(self.clock.now())
    }

    pub(super) fn statement(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Statement {
        Statement::from_sql_and_values(self.backend.dialect(), sql, values)
    }
}

fn select_handlers() -> SelectStatement {
    Query::select()
        .columns([Column::Id, Column::HandlerName])
        .expr(Expr::col(Column::EventTypes).cast_as("text"))
        .columns([
            Column::HandlerFunction,
            Column::IsActive,
            Column::PausedUntil,
            Column::CreatedAt,
            Column::Revision,
        ])
        .from(Entity)
        .to_owned()
}

pub(super) fn handler(mut row: Row<'_>) -> Result<EventHandler, StoreError> {
    let id = HandlerId(row.next()?);
    let wrong = |what: &str| StoreError::Inconsistent(format!("the handler {id} has no {what}"));
    let name = HandlerName::stored(row.text()?);
    let types: Vec<String> =
        serde_json::from_str(row.text()?).map_err(|_| wrong("list of event types"))?;
    let mut event_types: Vec<EventType> = types.into_iter().map(EventType::stored).collect();
    event_types.sort();
    let function = HandlerFunction::stored(row.text()?);
    Ok(EventHandler {
        id,
        name,
        event_types,
        function,
        is_active: row.next()?,
        paused_until: row.optional_instant()?,
        created_at: row.instant()?,
        revision: row.next()?,
    })
}
