//! SQLite: one writer connection, a pool of readers beside it, and a lock against a second server. Floor 2.

mod append;
mod faults;
mod file;
mod handlers;
mod import;
mod leases;
mod projection;

use std::{fs::File, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sea_orm::{
    Database, DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value, Values,
    sea_query::{Expr, ExprTrait, SimpleExpr},
    sqlx::{
        self, AssertSqlSafe, Connection, Either, Executor, Row as _, SqliteConnection,
        TypeInfo as _, ValueRef as _, sqlite::SqliteRow,
    },
};
use sea_query_sqlx::SqlxValues;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Backend, Containing, Doorbell, Written,
    kept::{Kept, Taken, is_answer},
    reading::up_to,
};
use crate::{
    config,
    domain::{
        Aggregate, AggregateId, AggregateType, Checkpoint, CheckpointStep, Command, Entry, Event,
        ExternalModel, FencingToken, HandlerStep, Json, LastError, MetricInterval, NewEntry,
        Partition, Position, Projected, RebuildOutcome, SaveOutcome, SqlFunctionName, SqlRun,
        SqlRunOutcome, StepOutcome, Timestamp,
        append::{AppendRequest, AppendedEntry, AppendedEvent, Outcome},
    },
    store::{
        AppendedAcross, Connections, ImportOutcome, LeaseGrant, LockWaits, OpenError, StoreError,
        bounded::Part, handlers::SqlFunctions, read_models::ExternalWrite,
    },
};
use faults::{classify, not_acquired, not_begun, while_running};
use file::{READER_CACHE_SIZE, WRITER_CACHE_SIZE, lock_file, options};

pub(super) struct Sqlite {
    writer: Kept<sqlx::Sqlite>,
    readers: Kept<sqlx::Sqlite>,
    /// The writer's pool, for migrating.
    migrator: DatabaseConnection,
    /// Held while the database is open. A file of its own: closing the database's file would drop SQLite's own locks.
    _lock: File,
}

impl Sqlite {
    pub(super) async fn open(config: &config::Database, make: bool) -> Result<Self, OpenError> {
        let lock = lock_file(config.url.first().sqlite_path().unwrap_or_default(), make)?;
        let connect = async |options| {
            Database::connect(options)
                .await
                .map_err(|error| OpenError::Database {
                    database: config.url.to_string(),
                    source: classify(error),
                })
        };
        let migrator = connect(options(config, 1, make, WRITER_CACHE_SIZE)).await?;
        let most = config.max_connections;
        let readers = connect(options(config, most, false, READER_CACHE_SIZE)).await?;
        let kept = |pool: &DatabaseConnection, most| {
            let pool = pool.get_sqlite_connection_pool().clone();
            Kept::new(pool, most, config.acquire_timeout)
        };
        Ok(Self {
            writer: kept(&migrator, 1),
            readers: kept(&readers, most),
            migrator,
            _lock: lock,
        })
    }

    /// Runs what writes, in a transaction that is taken at once, so that what it read stays true until the commit. It is
    /// committed where `work` says so.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<(T, End), StoreError>,
    ) -> Result<T, StoreError> {
        let mut taken = self.take_writer().await?;
        let begun = taken.connection().begin_with(BEGIN).await;
        let mut transaction = begun.map_err(not_begun)?;
        let (done, end) = work(&mut transaction).await?;
        let ended = match end {
            End::Commit => transaction.commit().await,
            End::Rollback => transaction.rollback().await,
        };
        ended.map_err(while_running)?;
        taken.give_back();
        Ok(done)
    }

    /// A full disk or a failed write makes SQLite undo a transaction by itself. The driver's own ROLLBACK finds none then,
    /// and it takes the transaction for open ever after: such a connection is of no more use.
    async fn take_writer(&self) -> Result<Taken<'_, sqlx::Sqlite>, StoreError> {
        let mut taken = self.writer.take().await.map_err(not_acquired)?;
        if taken.connection().is_in_transaction() {
            taken.close().await.map_err(not_acquired)?;
            taken = self.writer.take().await.map_err(not_acquired)?;
        }
        Ok(taken)
    }
}

/// How a transaction ends.
#[derive(Clone, Copy)]
enum End {
    Commit,
    Rollback,
}

const BEGIN: &str = "BEGIN IMMEDIATE";

const NO_SQL_FUNCTIONS: &str = "SQLite has no functions in SQL";

/// What the texts of a row take.
fn row_bytes(row: &SqliteRow) -> usize {
    let text = |column| {
        let value = row.try_get_raw(column).ok()?;
        let is_text = value.type_info().name() == "TEXT";
        is_text.then(|| row.try_get::<&str, _>(column).map_or(0, str::len))
    };
    (0..row.len()).filter_map(text).sum()
}

fn ranges_of<K: Into<Value>>(
    ranges: impl Iterator<Item = (Partition, K, i64, i64)>,
) -> (String, Vec<Value>) {
    let mut sql = String::from("VALUES ");
    let mut values = Vec::new();
    for (partition, key, low, high) in ranges {
        let comma = if values.is_empty() { "" } else { "," };
        let first = values.len() + 1;
        sql.push_str(&format!(
            "{comma}(${first}, ${}, ${}, ${})",
            first + 1,
            first + 2,
            first + 3
        ));
        values.extend([
            partition.number().into(),
            key.into(),
            low.into(),
            high.into(),
        ]);
    }
    (sql, values)
}

#[async_trait]
impl Backend for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn dialect(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    async fn read(
        &self,
        statement: Statement,
        max_bytes: usize,
    ) -> Result<Part<QueryResult>, StoreError> {
        let mut taken = self.readers.take().await.map_err(not_acquired)?;
        let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
        let reading = up_to(query.fetch(taken.connection()), max_bytes, row_bytes).await;
        if is_answer(&reading) {
            taken.give_back();
        }
        reading.map(|reading| reading.part).map_err(while_running)
    }

    async fn read_together(
        &self,
        statements: Vec<Statement>,
        rows: mpsc::Sender<(usize, QueryResult)>,
    ) -> Result<(), StoreError> {
        let mut taken = self.readers.take().await.map_err(not_acquired)?;
        let begun = taken.connection().begin_with("BEGIN DEFERRED").await;
        let mut transaction = begun.map_err(not_begun)?;
        for (number, statement) in statements.into_iter().enumerate() {
            let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
            let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
            let mut answer = query.fetch(&mut *transaction);
            while let Some(row) = answer.try_next().await.map_err(while_running)? {
                if rows.send((number, row.into())).await.is_err() {
                    return Ok(());
                }
            }
        }
        transaction.commit().await.map_err(while_running)?;
        taken.give_back();
        Ok(())
    }

    async fn execute(&self, statement: Statement) -> Result<(), StoreError> {
        let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
        self.write(async |connection| {
            let done = query.execute(connection).await;
            done.map(|_| ((), End::Commit)).map_err(while_running)
        })
        .await
    }

    async fn write_all(&self, statements: Vec<Statement>) -> Result<Vec<Written>, StoreError> {
        self.write(async |connection| {
            let mut written = Vec::with_capacity(statements.len());
            for statement in statements {
                let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
                let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
                let mut answer = (&mut *connection).fetch_many(query);
                let mut done = Written::default();
                while let Some(part) = answer.try_next().await.map_err(while_running)? {
                    match part {
                        Either::Left(result) => done.affected += result.rows_affected(),
                        Either::Right(row) => done.rows.push(row.into()),
                    }
                }
                written.push(done);
            }
            Ok((written, End::Commit))
        })
        .await
    }

    fn migrator(&self) -> &DatabaseConnection {
        &self.migrator
    }

    /// The lock on the file keeps others away.
    async fn lock_migrations(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn unlock_migrations(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn after_open(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    fn classify(&self, error: DbErr) -> StoreError {
        classify(error)
    }

    fn uuid_in(&self, column: Expr, ids: &mut dyn Iterator<Item = Uuid>) -> SimpleExpr {
        column.is_in(ids)
    }

    /// SQLite has JSON as the text that this server wrote, with the escapes that it writes.
    fn json_value(&self, text: String) -> SimpleExpr {
        Expr::val(text)
    }

    fn correlation_is(&self, id: &str) -> SimpleExpr {
        let json = self.json_value(serde_json::Value::from(id).to_string());
        Expr::cust("(event_metadata -> 'correlationId')").eq(json)
    }

    fn stored_bytes(&self, column: &str) -> String {
        format!("octet_length({column})")
    }

    fn uuid_ranges(&self, ranges: &[(Partition, Uuid, i64, i64)]) -> (String, Vec<Value>) {
        ranges_of(ranges.iter().copied())
    }

    fn is_held_back(&self, handler: usize) -> String {
        format!(
            "EXISTS (SELECT 1 FROM deliveries d WHERE d.partition_no = a.no AND d.handler_id = ${handler} \
             AND d.aggregate_id = a.id AND d.status IN ('RETRYING', 'WAITING'))"
        )
    }

    fn name_ranges(&self, ranges: &[(Partition, &str, i64, i64)]) -> (String, Vec<Value>) {
        ranges_of(
            ranges
                .iter()
                .map(|&(partition, name, low, high)| (partition, name.to_owned(), low, high)),
        )
    }

    async fn append_events(
        &self,
        partition: Partition,
        requests: &[&AppendRequest],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        self.write(async |connection| {
            let outcomes = append::events::append(connection, partition, requests, now).await?;
            Ok((outcomes, End::Commit))
        })
        .await
    }

    async fn append_events_across(
        &self,
        parts: &[(Partition, AppendRequest)],
        _waits: LockWaits,
        now: Timestamp,
    ) -> Result<AppendedAcross, StoreError> {
        self.write(async |connection| {
            let mut outcomes = Vec::with_capacity(parts.len());
            for (partition, part) in parts {
                outcomes
                    .extend(append::events::append(connection, *partition, &[part], now).await?);
            }
            let all_appended = outcomes
                .iter()
                .all(|outcome| matches!(outcome, Outcome::Appended { .. }));
            let end = if all_appended {
                End::Commit
            } else {
                End::Rollback
            };
            Ok((AppendedAcross::Judged(outcomes), end))
        })
        .await
    }

    async fn append_entries(
        &self,
        partition: Partition,
        entries: &[&NewEntry],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        self.write(async |connection| {
            let outcomes = append::entries::append(connection, partition, entries, now).await?;
            Ok((outcomes, End::Commit))
        })
        .await
    }

    async fn create_aggregate(
        &self,
        partition: Partition,
        id: AggregateId,
        aggregate_type: &AggregateType,
        _lock_wait: Duration,
        now: Timestamp,
    ) -> Result<(Aggregate, bool), StoreError> {
        self.write(async |connection| {
            let made =
                append::create_aggregate(connection, partition, id, aggregate_type, now).await?;
            Ok((made, End::Commit))
        })
        .await
    }

    async fn postpone_command(
        &self,
        command: &Command,
        reason: &str,
        delay: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let not_before = now.after(delay);
        self.write(async |connection| {
            let postponed =
                append::commands::postpone(connection, command, reason, not_before).await?;
            Ok((postponed, End::Commit))
        })
        .await
    }

    fn json_contains(&self, column: &'static str, contained: &Json) -> Containing {
        Containing {
            conditions: projection::contained_texts(column, contained),
            is_exact: false,
        }
    }

    async fn save_read_models(
        &self,
        partition: Partition,
        step: CheckpointStep,
        models: &[Projected],
    ) -> Result<SaveOutcome, StoreError> {
        self.write(async |connection| {
            let outcome = projection::save(connection, partition, step, models).await?;
            Ok((outcome, End::Commit))
        })
        .await
    }

    fn now(&self, now: Timestamp) -> SimpleExpr {
        Expr::val(now.to_utc())
    }

    async fn save_rebuilt(
        &self,
        partition: Partition,
        models: &[Projected],
    ) -> Result<Vec<RebuildOutcome>, StoreError> {
        self.write(async |connection| {
            let outcomes = projection::save_rebuilt(connection, partition, models).await?;
            Ok((outcomes, End::Commit))
        })
        .await
    }

    async fn write_read_model(
        &self,
        partition: Partition,
        model: &ExternalModel,
        now: Timestamp,
    ) -> Result<ExternalWrite, StoreError> {
        self.write(async |connection| {
            let written = projection::write_external(connection, partition, model, now).await?;
            Ok((written, End::Commit))
        })
        .await
    }

    async fn publish_entries(
        &self,
        partition: Partition,
        step: CheckpointStep,
        entries: &[(Partition, NewEntry)],
        now: Timestamp,
    ) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError> {
        self.write(async |connection| {
            let outcomes = projection::publish(connection, partition, step, entries, now).await?;
            Ok((outcomes, End::Commit))
        })
        .await
    }

    async fn fence_checkpoint(
        &self,
        partition: Partition,
        checkpoint: Checkpoint,
        token: FencingToken,
    ) -> Result<Option<Position>, StoreError> {
        self.write(async |connection| {
            let position = projection::fence(connection, partition, checkpoint, token).await?;
            Ok((position, End::Commit))
        })
        .await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        owner: Uuid,
        duration: Duration,
        _takes_over: bool,
        now: Timestamp,
    ) -> Result<LeaseGrant, StoreError> {
        self.write(async |connection| {
            let token = leases::acquire(connection, name, owner, duration, now).await?;
            Ok((LeaseGrant::Granted(token), End::Commit))
        })
        .await
    }

    /// The lock on the file keeps others away: nobody else can have taken it.
    async fn renew_lease(
        &self,
        _name: &str,
        _token: FencingToken,
        _duration: Duration,
    ) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Whoever opens the file next takes it at once.
    async fn release_lease(&self, _name: &str, _token: FencingToken) -> Result<(), StoreError> {
        Ok(())
    }

    fn connections(&self) -> Vec<Connections> {
        vec![self.readers.count("read"), self.writer.count("write")]
    }

    fn lock_timeout(&self) -> Duration {
        file::BUSY_TIMEOUT
    }

    /// Instants are texts in UTC, all of one form: `2026-01-31T12:00:00+00:00`.
    fn start_of(&self, column: &str, interval: MetricInterval) -> String {
        let (chars, rest) = match interval {
            MetricInterval::Minute => (16, ":00+00:00"),
            MetricInterval::Hour => (13, ":00:00+00:00"),
            MetricInterval::Day => (10, "T00:00:00+00:00"),
        };
        format!("substr({column}, 1, {chars}) || '{rest}'")
    }

    async fn save_handler_steps(
        &self,
        partition: Partition,
        token: FencingToken,
        steps: &[HandlerStep],
        now: Timestamp,
    ) -> Result<Vec<StepOutcome>, StoreError> {
        self.write(async |connection| {
            let saved = handlers::save_steps(connection, partition, token, steps, now).await?;
            Ok((saved, End::Commit))
        })
        .await
    }

    /// No handler with a function in SQL can be registered here.
    async fn run_sql_handler(
        &self,
        _partition: Partition,
        _run: &SqlRun<'_>,
    ) -> Result<Option<SqlRunOutcome>, StoreError> {
        Err(StoreError::Inconsistent(NO_SQL_FUNCTIONS.to_owned()))
    }

    async fn call_sql_function(
        &self,
        _function: &SqlFunctionName,
        _event: &Event,
        _time_out: Duration,
    ) -> Result<Result<(), LastError>, StoreError> {
        Ok(Err(LastError::new(NO_SQL_FUNCTIONS)))
    }

    async fn find_sql_function(
        &self,
        _function: &SqlFunctionName,
    ) -> Result<SqlFunctions, StoreError> {
        Ok(SqlFunctions::NotSupported)
    }

    async fn import_events(
        &self,
        partition: Partition,
        events: &[Event],
    ) -> Result<ImportOutcome, StoreError> {
        self.write(async |connection| {
            let outcome = import::events(connection, partition, events).await?;
            Ok((outcome, End::Commit))
        })
        .await
    }

    async fn import_entries(
        &self,
        partition: Partition,
        entries: &[(Entry, Option<Partition>)],
    ) -> Result<ImportOutcome, StoreError> {
        self.write(async |connection| {
            let outcome = import::entries(connection, partition, entries).await?;
            Ok((outcome, End::Commit))
        })
        .await
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        None
    }
}
