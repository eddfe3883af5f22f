//! PostgreSQL: pools, locks, errors, and appending by one call of one function. Floor 2.

mod append;
mod doorbell;
mod handlers;
mod import;
mod leases;
mod primary;
mod projection;
mod snapshot;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, QueryResult, RuntimeErr,
    SqlxPostgresConnector, Statement, Value, Values,
    sea_query::{
        ArrayType, Expr, ExprTrait, SimpleExpr,
        extension::postgres::{PgExpr, PgFunc},
    },
    sqlx::{
        self, AssertSqlSafe, Connection, Either, Executor, Row as _,
        postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgRow},
    },
};
use sea_query_sqlx::SqlxValues;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use primary::{NoPrimary, Primary};

use super::{
    Backend, Containing, Doorbell, Fault, Written,
    kept::{Gate, Kept, is_answer},
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
        AppendedAcross, Connections, Guard, ImportOutcome, LeaseGrant, LockWaits, OpenError,
        StoreError,
        bounded::Part,
        handlers::{SQL_CALLS_AT_A_TIME, SqlFunctions},
        read_models::ExternalWrite,
        rows,
    },
};

/// The key of the advisory lock under which one server migrates.
const MIGRATION_LOCK: i64 = 0x7469_6469_6e67_7301;
/// How long a statement that reads may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one that writes may take, beside waiting for its locks.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
const OLDEST_VERSION: i32 = 150_000;
/// How much longer than the database itself this server waits for the end of a statement. Then nobody is there to answer.
const GRACE: Duration = Duration::from_secs(2);
/// How long a session may do nothing in a transaction at most, and which part of the lease.
const MAX_IDLE_IN_TRANSACTION: Duration = Duration::from_secs(4);
const IDLE_IN_TRANSACTION_OF_LEASE: f64 = 0.8;
/// The same for what migrates: nobody can take that over, and a start is to succeed on a busy machine.
const IDLE_WHILE_MIGRATING: Duration = Duration::from_secs(30);
/// Renewing leases must not wait for what writes.
const LEASE_CONNECTIONS: u32 = 2;
/// Each of 16 partitions writes to two logs at a time, and some appends go over several partitions.
const MAX_WRITERS: u32 = 40;

pub(super) struct Postgres {
    readers: Arc<Kept<sqlx::Postgres>>,
    writers: Kept<sqlx::Postgres>,
    /// For leases alone.
    leases: Kept<sqlx::Postgres>,
    /// For functions in SQL, which may leave something behind in their session, and take long.
    callers: Kept<sqlx::Postgres>,
    lock_timeout: Duration,
    /// How long a connection may take to show that it is there.
    acquire_timeout: Duration,
    migrator: DatabaseConnection,
    doorbell: Arc<doorbell::PostgresDoorbell>,
    primary: Arc<Primary>,
    /// Ends the task that chooses the primary.
    _choosing: DropGuard,
}

impl Postgres {
    pub(super) async fn open(
        config: &config::Database,
        lease: Duration,
    ) -> Result<Self, OpenError> {
        let primary = Primary::new(config).map_err(|error| OpenError::Database {
            database: config.url.to_string(),
            source: not_acquired(error),
        })?;
        // A pool goes on trying and says only that it has waited: one connection says why it does not come about.
        let version = primary.choose().await.map_err(no_primary)?;
        if version < OLDEST_VERSION {
            return Err(OpenError::TooOld {
                actual: format!("{}.{}", version / 10_000, version % 10_000),
            });
        }
        let primary = Arc::new(primary);
        let idle = lease
            .mul_f64(IDLE_IN_TRANSACTION_OF_LEASE)
            .min(MAX_IDLE_IN_TRANSACTION);
        let most = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(config.acquire_timeout)
                // Each is looked at when it is taken.
                .test_before_acquire(false)
        };
        let pool = |options, idle_in_transaction, statement_timeout| {
            primary.pool(options, |options| {
                session(options, config, idle_in_transaction, statement_timeout)
            })
        };
        let kept = |statement_timeout, connections| {
            let pool = pool(most(connections), idle, statement_timeout);
            Kept::new(pool, connections, config.acquire_timeout).behind(primary.clone())
        };
        let write_timeout = config.lock_timeout + WRITE_TIMEOUT;
        let readers = Arc::new(kept(READ_TIMEOUT, config.max_connections));
        // One that was left may listen at a server that is the primary no more: it is not used again.
        let listener = most(1).after_release(|_, _| Box::pin(async { Ok(false) }));
        let doorbell = doorbell::PostgresDoorbell::new(
            readers.clone(),
            pool(listener, idle, Duration::ZERO),
            primary.clone(),
        );
        // The lock of migrations is its session's, however long they take.
        let migrator = most(1).max_lifetime(None).idle_timeout(None);
        let migrator = pool(migrator, IDLE_WHILE_MIGRATING, Duration::ZERO);
        let stopping = CancellationToken::new();
        tokio::spawn(primary.clone().keep_choosing(stopping.clone()));
        Ok(Self {
            readers,
            writers: kept(write_timeout, MAX_WRITERS),
            leases: kept(write_timeout, LEASE_CONNECTIONS),
            callers: kept(write_timeout, SQL_CALLS_AT_A_TIME),
            lock_timeout: config.lock_timeout,
            acquire_timeout: config.acquire_timeout,
            migrator: SqlxPostgresConnector::from_sqlx_postgres_pool(migrator),
            doorbell: Arc::new(doorbell),
            primary: primary.clone(),
            _choosing: stopping.drop_guard(),
        })
    }

    /// Runs what writes.
    async fn write<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.write_by(&self.writers, work).await
    }

    /// Runs what calls functions in SQL. What they have left in the session is taken away before somebody else has it; a
    /// connection whose work failed, or was given up, is of no more use.
    async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut taken = self.callers.take().await.map_err(not_acquired)?.only_once();
        let limit = self.lock_timeout + WRITE_TIMEOUT + GRACE;
        let epoch = taken.epoch();
        let called = work(taken.connection());
        let Some(outcome) = self.primary.while_primary(epoch, limit, called).await else {
            return Err(silent());
        };
        if outcome.is_ok()
            && let Ok(Ok(())) = timeout(GRACE, handlers::reset(taken.connection())).await
        {
            taken.give_back();
        }
        self.heed(outcome)
    }

    /// Runs what writes. A connection whose work failed is looked after by the driver's pool, which rolls back at once.
    async fn write_by<T>(
        &self,
        connections: &Kept<sqlx::Postgres>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut taken = connections.take().await.map_err(not_acquired)?;
        let limit = self.lock_timeout + WRITE_TIMEOUT + GRACE;
        let epoch = taken.epoch();
        let work = work(taken.connection());
        let Some(outcome) = self.primary.while_primary(epoch, limit, work).await else {
            taken.discard();
            return Err(silent());
        };
        if outcome.is_ok() {
            taken.give_back();
        }
        self.heed(outcome)
    }

    /// A lost connection is a reason to look which server is the primary, and so is one that does not write.
    fn heed<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::ConnectionLost(_) | StoreError::Unreachable(_)) = &outcome {
            self.primary.lost();
        }
        outcome
    }
}

/// What sessions are set to. A `statement_timeout` of nothing is none.
fn session(
    options: PgConnectOptions,
    config: &config::Database,
    idle_in_transaction: Duration,
    statement_timeout: Duration,
) -> PgConnectOptions {
    // Sessions that hold locks must not hold up others for ever when this server freezes or its network dies.
    options.options([
        ("lock_timeout", milliseconds(config.lock_timeout)),
        (
            "idle_in_transaction_session_timeout",
            milliseconds(idle_in_transaction),
        ),
        ("statement_timeout", milliseconds(statement_timeout)),
        // The functions wait for a lock and then read what others have committed meanwhile.
        ("default_transaction_isolation", "read committed".to_owned()),
        ("tcp_keepalives_idle", "5".to_owned()),
        ("tcp_keepalives_interval", "2".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
        // Statements are planned once a session, maybe while the tables are empty, when reading a table whole looks as good
        // as its index; and what looks dear for that reason is not worth compiling.
        ("enable_seqscan", "off".to_owned()),
        ("jit", "off".to_owned()),
    ])
}

/// Why the start fails. The only server that there is is told with its own cause.
fn no_primary(mut none: NoPrimary) -> OpenError {
    match none.tried.pop() {
        Some((database, error)) if none.tried.is_empty() => OpenError::Database {
            database,
            source: not_acquired(error),
        },
        last => {
            none.tried.extend(last);
            OpenError::NoPrimary {
                tried: none.to_string(),
            }
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// What a row takes as it was sent.
fn row_bytes(row: &PgRow) -> usize {
    let value = |column| {
        row.try_get_raw(column)
            .ok()?
            .as_bytes()
            .ok()
            .map(<[u8]>::len)
    };
    (0..row.len()).filter_map(value).sum()
}

/// Source: PostgreSQL's documentation, appendix "PostgreSQL Error Codes".
fn classify(error: DbErr) -> StoreError {
    match Fault::of(error) {
        Fault::BeforeSending(error) => StoreError::Unreachable(error),
        Fault::Broken(error) => StoreError::ConnectionLost(error),
        Fault::Other(error) => StoreError::Failed(error),
        Fault::Coded(code, error) => match (code.as_str(), &code[..code.len().min(2)]) {
            ("55P03", _) => StoreError::LockTimeout(error),
            ("40P01" | "40001", _) => StoreError::GaveWay(error),
            // A session that is ended from outside may have committed just before.
            ("57P01" | "57P02" | "57P05" | "25P03", _) | (_, "08") => {
                StoreError::ConnectionLost(error)
            }
            // Starting up, shutting down, or a standby: nothing was done.
            ("57P03" | "25006", _) => StoreError::Unreachable(error),
            // No room, no memory; or somebody, or a limit of the role's own, has ended the statement.
            ("57014", _) | (_, "53") => StoreError::Exhausted(error),
            // Values, constraints, and what is too large for an index.
            (_, "22" | "23" | "54") => StoreError::ValueRefused(error),
            _ => StoreError::Failed(error),
        },
    }
}

/// The database does not answer, and does not close the connection either: its machine or the network may be gone.
fn silent() -> StoreError {
    StoreError::ConnectionLost(DbErr::Custom("the database does not answer".to_owned()))
}

/// A fault of the driver itself before it had a connection.
fn not_acquired(error: sqlx::Error) -> StoreError {
    StoreError::Unreachable(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
}

/// A transaction that did not begin: nothing was done in it.
fn not_begun(error: sqlx::Error) -> StoreError {
    match while_running(error) {
        StoreError::ConnectionLost(error) => StoreError::Unreachable(error),
        other => other,
    }
}

/// A fault of the driver itself while a statement ran.
fn while_running(error: sqlx::Error) -> StoreError {
    classify(DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))))
}

fn array(kind: ArrayType, values: impl Iterator<Item = Value>) -> Value {
    Value::Array(kind, Some(Box::new(values.collect())))
}

#[async_trait]
impl Backend for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn dialect(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn read(
        &self,
        statement: Statement,
        max_bytes: usize,
    ) -> Result<Part<QueryResult>, StoreError> {
        let mut taken = self.readers.take().await.map_err(not_acquired)?;
        let epoch = taken.epoch();
        let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
        let reading = up_to(query.fetch(taken.connection()), max_bytes, row_bytes);
        let limit = READ_TIMEOUT + GRACE;
        let Some(reading) = self.primary.while_primary(epoch, limit, reading).await else {
            taken.discard();
            return Err(silent());
        };
        match &reading {
            // What is still on its way would be for whoever reads next.
            Ok(reading) if !reading.is_done => taken.discard(),
            reading if is_answer(reading) => taken.give_back(),
            _ => {}
        }
        self.heed(reading.map(|reading| reading.part).map_err(while_running))
    }

    async fn read_together(
        &self,
        statements: Vec<Statement>,
        rows: mpsc::Sender<(usize, QueryResult)>,
    ) -> Result<(), StoreError> {
        // One that does not answer, or still has rows to send, is of no more use.
        let mut taken = self.readers.take().await.map_err(not_acquired)?.only_once();
        let epoch = taken.epoch();
        let read = snapshot::read(self, epoch, taken.connection(), statements, rows).await;
        if let Ok(snapshot::Taken::Whole) = read {
            taken.give_back();
        }
        self.heed(read.map(drop))
    }

    async fn execute(&self, statement: Statement) -> Result<(), StoreError> {
        let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
        self.write(async |connection| query.execute(connection).await.map_err(while_running))
            .await
            .map(drop)
    }

    async fn write_all(&self, statements: Vec<Statement>) -> Result<Vec<Written>, StoreError> {
        self.write(async |connection| {
            let mut transaction = connection.begin().await.map_err(not_begun)?;
            let mut written = Vec::with_capacity(statements.len());
            for statement in statements {
                let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
                let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
                let mut answer = (&mut *transaction).fetch_many(query);
                let mut done = Written::default();
                while let Some(part) = answer.try_next().await.map_err(while_running)? {
                    match part {
                        Either::Left(result) => done.affected += result.rows_affected(),
                        Either::Right(row) => done.rows.push(row.into()),
                    }
                }
                written.push(done);
            }
            transaction.commit().await.map_err(while_running)?;
            Ok(written)
        })
        .await
    }

    fn migrator(&self) -> &DatabaseConnection {
        &self.migrator
    }

    async fn lock_migrations(&self) -> Result<(), StoreError> {
        // Another server may migrate for longer than a lock may be waited for otherwise.
        let sql = format!(
            "SET lock_timeout = 0; SELECT pg_advisory_lock({MIGRATION_LOCK}); SET lock_timeout = '10s'"
        );
        self.migrator
            .execute_unprepared(&sql)
            .await
            .map(drop)
            .map_err(classify)
    }

    async fn unlock_migrations(&self) -> Result<(), StoreError> {
        let sql = format!("SELECT pg_advisory_unlock({MIGRATION_LOCK})");
        self.migrator
            .execute_unprepared(&sql)
            .await
            .map(drop)
            .map_err(classify)
    }

    async fn after_open(&self) -> Result<(), StoreError> {
        self.migrator.close_by_ref().await.map_err(classify)
    }

    fn guard(&self, guard: Guard) {
        self.primary.guard(guard);
    }

    async fn close(&self) {
        self.writers.close().await;
        self.leases.close().await;
        self.callers.close().await;
        self.readers.close().await;
    }

    fn classify(&self, error: DbErr) -> StoreError {
        classify(error)
    }

    fn uuid_in(&self, column: Expr, ids: &mut dyn Iterator<Item = Uuid>) -> SimpleExpr {
        column.eq(PgFunc::any(Expr::val(array(
            ArrayType::Uuid,
            ids.map(Value::from),
        ))))
    }

    fn json_value(&self, text: String) -> SimpleExpr {
        Expr::val(text).cast_as("jsonb")
    }

    /// The text finds it in the index; that it is one is seen by the JSON.
    fn correlation_is(&self, id: &str) -> SimpleExpr {
        let json = self.json_value(serde_json::Value::from(id).to_string());
        let text = Expr::cust("(event_metadata ->> 'correlationId') COLLATE \"C\"").eq(id);
        text.and(Expr::cust("(event_metadata -> 'correlationId')").eq(json))
    }

    fn stored_bytes(&self, column: &str) -> String {
        format!("pg_column_size({column})")
    }

    fn uuid_ranges(&self, ranges: &[(Partition, Uuid, i64, i64)]) -> (String, Vec<Value>) {
        let values = vec![
            array(
                ArrayType::SmallInt,
                ranges.iter().map(|range| range.0.number().into()),
            ),
            array(ArrayType::Uuid, ranges.iter().map(|range| range.1.into())),
            array(ArrayType::BigInt, ranges.iter().map(|range| range.2.into())),
            array(ArrayType::BigInt, ranges.iter().map(|range| range.3.into())),
        ];
        (
            "SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[])"
                .to_owned(),
            values,
        )
    }

    /// Each is looked up by a statement of its own: asked for all of them at once, a planner without statistics reads every
    /// delivery of the handler for each.
    fn is_held_back(&self, handler: usize) -> String {
        format!("tidings_is_held_back(a.no, ${handler}, a.id)")
    }

    fn name_ranges(&self, ranges: &[(Partition, &str, i64, i64)]) -> (String, Vec<Value>) {
        let values = vec![
            array(
                ArrayType::SmallInt,
                ranges.iter().map(|range| range.0.number().into()),
            ),
            array(ArrayType::String, ranges.iter().map(|range| range.1.into())),
            array(ArrayType::BigInt, ranges.iter().map(|range| range.2.into())),
            array(ArrayType::BigInt, ranges.iter().map(|range| range.3.into())),
        ];
        (
            "SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[], $4::bigint[])"
                .to_owned(),
            values,
        )
    }

    async fn append_events(
        &self,
        partition: Partition,
        requests: &[&AppendRequest],
        _now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        self.write(async |connection| append::events(connection, partition, requests).await)
            .await
    }

    async fn append_events_across(
        &self,
        parts: &[(Partition, AppendRequest)],
        waits: LockWaits,
        _now: Timestamp,
    ) -> Result<AppendedAcross, StoreError> {
        self.write(async |connection| append::events_across(connection, parts, waits).await)
            .await
    }

    async fn append_entries(
        &self,
        partition: Partition,
        entries: &[&NewEntry],
        _now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        self.write(async |connection| append::entries(connection, partition, entries).await)
            .await
    }

    async fn create_aggregate(
        &self,
        partition: Partition,
        id: AggregateId,
        aggregate_type: &AggregateType,
        lock_wait: Duration,
        _now: Timestamp,
    ) -> Result<(Aggregate, bool), StoreError> {
        self.write(async |connection| {
            let mut transaction = append::begin_waiting(connection, lock_wait).await?;
            append::lock_events(&mut transaction, partition).await?;
            let created =
                append::insert_aggregate(&mut transaction, partition, id, aggregate_type).await?;
            let row = append::aggregate_row(&mut transaction, partition, id).await?;
            transaction.commit().await.map_err(while_running)?;
            Ok((rows::aggregate(&row.into())?, created))
        })
        .await
    }

    async fn postpone_command(
        &self,
        command: &Command,
        reason: &str,
        delay: Duration,
        _now: Timestamp,
    ) -> Result<bool, StoreError> {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.write(async |connection| {
            append::postpone_command(connection, command, reason, delay_ms).await
        })
        .await
    }

    fn json_contains(&self, column: &'static str, contained: &Json) -> Containing {
        let contained = self.json_value(contained.as_str().to_owned());
        Containing {
            conditions: vec![Expr::col(column).contains(contained)],
            is_exact: true,
        }
    }

    async fn save_read_models(
        &self,
        partition: Partition,
        step: CheckpointStep,
        models: &[Projected],
    ) -> Result<SaveOutcome, StoreError> {
        self.write(async |connection| projection::save(connection, partition, step, models).await)
            .await
    }

    async fn save_rebuilt(
        &self,
        partition: Partition,
        models: &[Projected],
    ) -> Result<Vec<RebuildOutcome>, StoreError> {
        self.write(async |connection| projection::save_rebuilt(connection, partition, models).await)
            .await
    }

    async fn write_read_model(
        &self,
        partition: Partition,
        model: &ExternalModel,
        _now: Timestamp,
    ) -> Result<ExternalWrite, StoreError> {
        self.write(async |connection| {
            projection::write_external(connection, partition, model).await
        })
        .await
    }

    /// The database's own clock, so that all servers agree; as of the statement, so that an index can be looked into.
    fn now(&self, _now: Timestamp) -> SimpleExpr {
        Expr::cust("statement_timestamp()")
    }

    async fn publish_entries(
        &self,
        partition: Partition,
        step: CheckpointStep,
        entries: &[(Partition, NewEntry)],
        _now: Timestamp,
    ) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError> {
        self.write(async |connection| {
            projection::publish(connection, partition, step, entries).await
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
            projection::fence(connection, partition, checkpoint, token).await
        })
        .await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        owner: Uuid,
        duration: Duration,
        takes_over: bool,
        _now: Timestamp,
    ) -> Result<LeaseGrant, StoreError> {
        self.write_by(&self.leases, async |connection| {
            leases::acquire(connection, name, owner, duration, takes_over).await
        })
        .await
    }

    async fn renew_lease(
        &self,
        name: &str,
        token: FencingToken,
        duration: Duration,
    ) -> Result<bool, StoreError> {
        self.write_by(&self.leases, async |connection| {
            leases::renew(connection, name, token, duration).await
        })
        .await
    }

    async fn release_lease(&self, name: &str, token: FencingToken) -> Result<(), StoreError> {
        self.write_by(&self.leases, async |connection| {
            leases::release(connection, name, token).await
        })
        .await
    }

    fn connections(&self) -> Vec<Connections> {
        vec![
            self.readers.count("read"),
            self.writers.count("write"),
            self.leases.count("lease"),
            self.callers.count("call"),
        ]
    }

    fn lock_timeout(&self) -> Duration {
        self.lock_timeout
    }

    fn start_of(&self, column: &str, interval: MetricInterval) -> String {
        let unit = match interval {
            MetricInterval::Minute => "minute",
            MetricInterval::Hour => "hour",
            MetricInterval::Day => "day",
        };
        format!("date_trunc('{unit}', {column}, 'UTC')")
    }

    async fn save_handler_steps(
        &self,
        partition: Partition,
        token: FencingToken,
        steps: &[HandlerStep],
        _now: Timestamp,
    ) -> Result<Vec<StepOutcome>, StoreError> {
        self.write(async |connection| {
            handlers::save_steps(connection, partition, token, steps).await
        })
        .await
    }

    async fn run_sql_handler(
        &self,
        partition: Partition,
        run: &SqlRun<'_>,
    ) -> Result<Option<SqlRunOutcome>, StoreError> {
        self.call(async |connection| handlers::run_sql(connection, partition, run).await)
            .await
    }

    async fn call_sql_function(
        &self,
        function: &SqlFunctionName,
        event: &Event,
        time_out: Duration,
    ) -> Result<Result<(), LastError>, StoreError> {
        self.call(async |connection| {
            handlers::call_sql(connection, function, event, time_out).await
        })
        .await
    }

    async fn find_sql_function(
        &self,
        function: &SqlFunctionName,
    ) -> Result<SqlFunctions, StoreError> {
        self.write(async |connection| handlers::find_function(connection, function).await)
            .await
    }

    async fn import_events(
        &self,
        partition: Partition,
        events: &[Event],
    ) -> Result<ImportOutcome, StoreError> {
        self.write(async |connection| import::events(connection, partition, events).await)
            .await
    }

    async fn import_entries(
        &self,
        partition: Partition,
        entries: &[(Entry, Option<Partition>)],
    ) -> Result<ImportOutcome, StoreError> {
        self.write(async |connection| import::entries(connection, partition, entries).await)
            .await
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }
}
