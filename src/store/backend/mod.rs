//! What the two databases do differently, with the same hooks in both: the only place that knows which one it is. Floor 2.

mod kept;
mod postgres;
mod reading;
mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{
    DatabaseConnection, DbBackend, DbErr, QueryResult, Statement, Value,
    sea_query::{Expr, SimpleExpr},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    AppendedAcross, Connections, Guard, ImportOutcome, LeaseGrant, LockWaits, OpenError,
    StoreError, bounded::Part, handlers::SqlFunctions, read_models::ExternalWrite,
};
use crate::{
    config::{self, DatabaseKind},
    domain::{
        Aggregate, AggregateId, AggregateType, Checkpoint, CheckpointStep, Command, Entry, Event,
        ExternalModel, FencingToken, HandlerStep, Json, LastError, MetricInterval, NewEntry,
        Partition, Position, Projected, RebuildOutcome, SaveOutcome, SqlFunctionName, SqlRun,
        SqlRunOutcome, StepOutcome, Timestamp,
        append::{AppendRequest, AppendedEntry, AppendedEvent, Outcome},
    },
};

/// The hooks. What the methods promise is said where the store offers them.
#[async_trait]
pub(super) trait Backend: Send + Sync {
    /// The database's name in the API.
    fn kind(&self) -> &'static str;

    /// The dialect that statements are written in.
    fn dialect(&self) -> DbBackend;

    /// Runs a statement that reads: its rows, up to the one with which they have `max_bytes`, at least one. Of those behind it
    /// there are never more than a few in memory.
    async fn read(
        &self,
        statement: Statement,
        max_bytes: usize,
    ) -> Result<Part<QueryResult>, StoreError>;

    /// Runs statements that read, one after another as of one instant, and hands over their rows as they come: each with the
    /// number of its statement. It ends early where nobody takes them any more.
    async fn read_together(
        &self,
        statements: Vec<Statement>,
        rows: mpsc::Sender<(usize, QueryResult)>,
    ) -> Result<(), StoreError>;

    /// Runs one statement that writes.
    async fn execute(&self, statement: Statement) -> Result<(), StoreError>;

    /// Runs statements that write, one after another in one transaction.
    async fn write_all(&self, statements: Vec<Statement>) -> Result<Vec<Written>, StoreError>;

    /// The connection for migrating; all of its statements use the same session.
    fn migrator(&self) -> &DatabaseConnection;

    /// Keeps other servers from migrating meanwhile.
    async fn lock_migrations(&self) -> Result<(), StoreError>;

    /// Lets other servers migrate again.
    async fn unlock_migrations(&self) -> Result<(), StoreError>;

    /// Gets ready to serve, once the tables are there.
    async fn after_open(&self) -> Result<(), StoreError>;

    /// From now on the database has to have what this server has seen, also where it moves to another machine.
    fn guard(&self, _guard: Guard) {}

    /// Closes all connections.
    async fn close(&self);

    /// Tells a driver's faults apart.
    fn classify(&self, error: DbErr) -> StoreError;

    /// The condition that a column holds one of the ids.
    fn uuid_in(&self, column: Expr, ids: &mut dyn Iterator<Item = Uuid>) -> SimpleExpr;

    /// A JSON text as a value that JSON in a column can be compared with.
    fn json_value(&self, text: String) -> SimpleExpr;

    /// The condition that an event's metadata has this correlation id. Only texts are: the number 7 is not the text "7".
    fn correlation_is(&self, id: &str) -> SimpleExpr;

    /// The SQL for how many bytes a column of a row takes as it is stored; the column is not read for it.
    fn stored_bytes(&self, column: &str) -> String;

    /// A relation (partition, id, low, high) as SQL and its values, `$1` being the first.
    fn uuid_ranges(&self, ranges: &[(Partition, Uuid, i64, i64)]) -> (String, Vec<Value>);

    /// The condition that an aggregate `a` (no, id) has a delivery that is under way or waits of the handler that is the value of
    /// this number.
    fn is_held_back(&self, handler: usize) -> String;

    /// A relation (partition, name, low, high) as SQL and its values, `$1` being the first.
    fn name_ranges(&self, ranges: &[(Partition, &str, i64, i64)]) -> (String, Vec<Value>);

    /// See [`super::Store::append_events`].
    async fn append_events(
        &self,
        partition: Partition,
        requests: &[&AppendRequest],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError>;

    /// See [`super::Store::append_events_across`].
    async fn append_events_across(
        &self,
        parts: &[(Partition, AppendRequest)],
        waits: LockWaits,
        now: Timestamp,
    ) -> Result<AppendedAcross, StoreError>;

    /// See [`super::Store::append_entries`].
    async fn append_entries(
        &self,
        partition: Partition,
        entries: &[&NewEntry],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError>;

    /// See [`super::Store::create_aggregate`].
    async fn create_aggregate(
        &self,
        partition: Partition,
        id: AggregateId,
        aggregate_type: &AggregateType,
        lock_wait: Duration,
        now: Timestamp,
    ) -> Result<(Aggregate, bool), StoreError>;

    /// See [`super::Store::postpone_command`].
    async fn postpone_command(
        &self,
        command: &Command,
        reason: &str,
        delay: Duration,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// The instant of a statement by the clock that counts: the database's own where several servers share it.
    fn now(&self, now: Timestamp) -> SimpleExpr;

    /// What holds where a column of JSON contains this, as far as the database can tell.
    fn json_contains(&self, column: &'static str, contained: &Json) -> Containing;

    /// See [`super::Store::save_read_models`].
    async fn save_read_models(
        &self,
        partition: Partition,
        step: CheckpointStep,
        models: &[Projected],
    ) -> Result<SaveOutcome, StoreError>;

    /// See [`super::Store::save_rebuilt`].
    async fn save_rebuilt(
        &self,
        partition: Partition,
        models: &[Projected],
    ) -> Result<Vec<RebuildOutcome>, StoreError>;

    /// See [`super::Store::write_read_model`].
    async fn write_read_model(
        &self,
        partition: Partition,
        model: &ExternalModel,
        now: Timestamp,
    ) -> Result<ExternalWrite, StoreError>;

    /// See [`super::Store::publish_entries`].
    async fn publish_entries(
        &self,
        partition: Partition,
        step: CheckpointStep,
        entries: &[(Partition, NewEntry)],
        now: Timestamp,
    ) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError>;

    /// See [`super::Store::fence_checkpoint`].
    async fn fence_checkpoint(
        &self,
        partition: Partition,
        checkpoint: Checkpoint,
        token: FencingToken,
    ) -> Result<Option<Position>, StoreError>;

    /// See [`super::Store::acquire_lease`].
    async fn acquire_lease(
        &self,
        name: &str,
        owner: Uuid,
        duration: Duration,
        takes_over: bool,
        now: Timestamp,
    ) -> Result<LeaseGrant, StoreError>;

    /// See [`super::Store::renew_lease`].
    async fn renew_lease(
        &self,
        name: &str,
        token: FencingToken,
        duration: Duration,
    ) -> Result<bool, StoreError>;

    /// See [`super::Store::release_lease`].
    async fn release_lease(&self, name: &str, token: FencingToken) -> Result<(), StoreError>;

    /// See [`super::Store::connections`].
    fn connections(&self) -> Vec<Connections>;

    /// See [`super::Store::lock_timeout`].
    fn lock_timeout(&self) -> Duration;

    /// The SQL for the start of the piece of time that an instant in a column lies in.
    fn start_of(&self, column: &str, interval: MetricInterval) -> String;

    /// See [`super::Store::save_handler_steps`].
    async fn save_handler_steps(
        &self,
        partition: Partition,
        token: FencingToken,
        steps: &[HandlerStep],
        now: Timestamp,
    ) -> Result<Vec<StepOutcome>, StoreError>;

    /// See [`super::Store::run_sql_handler`].
    async fn run_sql_handler(
        &self,
        partition: Partition,
        run: &SqlRun<'_>,
    ) -> Result<Option<SqlRunOutcome>, StoreError>;

    /// See [`super::Store::call_sql_function`].
    async fn call_sql_function(
        &self,
        function: &SqlFunctionName,
        event: &Event,
        time_out: Duration,
    ) -> Result<Result<(), LastError>, StoreError>;

    /// See [`super::Store::find_sql_function`].
    async fn find_sql_function(
        &self,
        function: &SqlFunctionName,
    ) -> Result<SqlFunctions, StoreError>;

    /// See [`super::Store::import`].
    async fn import_events(
        &self,
        partition: Partition,
        events: &[Event],
    ) -> Result<ImportOutcome, StoreError>;

    /// See [`super::Store::import`].
    async fn import_entries(
        &self,
        partition: Partition,
        entries: &[(Entry, Option<Partition>)],
    ) -> Result<ImportOutcome, StoreError>;

    /// See [`super::Store::doorbell`].
    fn doorbell(&self) -> Option<Arc<dyn Doorbell>>;
}

/// What a statement that writes has come to.
#[derive(Default)]
pub(super) struct Written {
    /// The rows that it returns.
    pub(super) rows: Vec<QueryResult>,
    /// How many it has changed.
    pub(super) affected: u64,
}

/// Conditions that every row meets that contains something.
pub(super) struct Containing {
    pub(super) conditions: Vec<SimpleExpr>,
    /// Whether the rows that meet them all contain it; otherwise they have to be looked at.
    pub(super) is_exact: bool,
}

/// Tells the servers on one database that there is something to read. Rings may get lost: the truth is the tables.
#[async_trait]
pub trait Doorbell: Send + Sync {
    /// Rings at all servers, this one too.
    ///
    /// # Errors
    /// When the database fails.
    async fn ring(&self, text: &str) -> Result<(), StoreError>;

    /// Hears rings until the connection is lost: each is handed to `heard`.
    ///
    /// # Errors
    /// Always, in the end: why there is nothing more to hear.
    async fn listen(
        &self,
        heard: &(dyn for<'r> Fn(&'r str) + Send + Sync),
    ) -> Result<std::convert::Infallible, StoreError>;
}

/// Connects to the database that the configuration names. With `make` a SQLite file that is not there is made.
pub(super) async fn open(
    config: &config::Database,
    lease: Duration,
    make: bool,
) -> Result<Arc<dyn Backend>, OpenError> {
    match config.url.kind() {
        DatabaseKind::Sqlite => Ok(Arc::new(sqlite::Sqlite::open(config, make).await?)),
        DatabaseKind::Postgres => Ok(Arc::new(postgres::Postgres::open(config, lease).await?)),
    }
}

/// The parts of a driver's error that tell it apart: whether it came before anything was sent, and the database's code.
pub(super) enum Fault {
    BeforeSending(DbErr),
    Coded(String, DbErr),
    Broken(DbErr),
    Other(DbErr),
}

impl Fault {
    pub(super) fn of(error: DbErr) -> Self {
        use sea_orm::{RuntimeErr, sqlx};
        let sqlx_error = match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => return Self::BeforeSending(error),
            DbErr::Exec(RuntimeErr::SqlxError(sqlx_error))
            | DbErr::Query(RuntimeErr::SqlxError(sqlx_error)) => sqlx_error,
            _ => return Self::Other(error),
        };
        match sqlx_error.as_ref() {
            sqlx::Error::Database(database) => match database.code() {
                Some(code) => {
                    let code = code.into_owned();
                    Self::Coded(code, error)
                }
                None => Self::Other(error),
            },
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::BeforeSending(error),
            sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => Self::Broken(error),
            _ => Self::Other(error),
        }
    }
}
