//! SQLite: one writer connection, a pool of readers beside it, and a lock against a second server. Floor 2.

mod append;

use std::{
    fs::{File, OpenOptions, TryLockError},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr, Value,
    sea_query::{Expr, ExprTrait, SimpleExpr},
    sqlx::{
        self,
        sqlite::{SqliteJournalMode, SqliteSynchronous},
    },
};
use uuid::Uuid;

use super::{Backend, Doorbell, Fault};
use crate::{
    config,
    domain::{
        Aggregate, AggregateId, AggregateType, NewEntry, NewEvent, Partition, Timestamp,
        append::{AppendedEntry, AppendedEvent, Outcome},
    },
    store::{OpenError, StoreError},
};

/// How long a statement waits for another program that has the file locked (a backup, say).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages that a connection keeps in memory, in KiB as a negative number.
const CACHE_SIZE: &str = "-16000";
/// The log is copied into the file when it has this many pages: 16 MiB. A page that is written often is copied once.
const CHECKPOINT_PAGES: &str = "4096";

pub(super) struct Sqlite {
    writer: DatabaseConnection,
    readers: DatabaseConnection,
    /// Held while the database is open. A file of its own: closing the database's file would drop SQLite's own locks.
    _lock: File,
}

impl Sqlite {
    pub(super) async fn open(config: &config::Database, make: bool) -> Result<Self, OpenError> {
        let lock = lock_file(config.url.sqlite_path().unwrap_or_default(), make)?;
        let failed = |error| OpenError::Database {
            database: config.url.to_string(),
            source: classify(error),
        };
        let writer = Database::connect(options(config, 1, make))
            .await
            .map_err(failed)?;
        let readers = Database::connect(options(config, config.max_connections, false))
            .await
            .map_err(failed)?;
        Ok(Self {
            writer,
            readers,
            _lock: lock,
        })
    }
}

fn lock_file(path: &str, make: bool) -> Result<File, OpenError> {
    let lock_path = format!("{path}-lock");
    let failed = |source| OpenError::Lock {
        path: lock_path.clone(),
        source,
    };
    if !make && !std::path::Path::new(path).exists() {
        return Err(OpenError::NotMigrated { pending: 1 });
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn options(config: &config::Database, connections: u32, make: bool) -> ConnectOptions {
    let mut options = ConnectOptions::new(config.url.as_str());
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(config.acquire_timeout)
        .idle_timeout(Some(Duration::from_secs(60)))
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |options| {
            options
                .create_if_missing(make)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(BUSY_TIMEOUT)
                .statement_cache_capacity(64)
                .pragma("temp_store", "memory")
                .pragma("cache_size", CACHE_SIZE)
                .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        });
    options
}

/// Source: SQLite's documentation, "Result and Error Codes". Statements are undone whenever they fail.
fn classify(error: DbErr) -> StoreError {
    match Fault::of(error) {
        Fault::BeforeSending(error) => StoreError::Unreachable(error),
        Fault::Broken(error) => StoreError::ConnectionLost(error),
        Fault::Other(error) => StoreError::Failed(error),
        Fault::Coded(code, error) => match code.parse::<i32>().unwrap_or_default() & 0xff {
            5 | 6 => StoreError::LockTimeout(error),
            // Read-only, an I/O error, a full disk, a file that cannot be opened.
            8 | 10 | 13 | 14 => StoreError::Exhausted(error),
            18 | 20 => StoreError::ValueRefused(error),
            _ => StoreError::Failed(error),
        },
    }
}

fn not_acquired(error: sqlx::Error) -> StoreError {
    StoreError::Unreachable(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
}

/// A fault at the beginning of a transaction: the database's own, or that there is no connection.
fn not_begun(error: sqlx::Error) -> StoreError {
    if matches!(error, sqlx::Error::Database(_)) {
        while_running(error)
    } else {
        not_acquired(error)
    }
}

fn while_running(error: sqlx::Error) -> StoreError {
    classify(DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))))
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

    fn readers(&self) -> &DatabaseConnection {
        &self.readers
    }

    fn migrator(&self) -> &DatabaseConnection {
        &self.writer
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
        for connection in [&self.readers, &self.writer] {
            if let Err(error) = connection.close_by_ref().await {
                tracing::debug!(%error, "closing the database");
            }
        }
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

    fn uuid_ranges(&self, ranges: &[(Partition, Uuid, i64, i64)]) -> (String, Vec<Value>) {
        ranges_of(ranges.iter().copied())
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
        requests: &[&[NewEvent]],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        let mut transaction = self.begin().await?;
        let outcomes = append::events::append(&mut transaction, partition, requests, now).await?;
        transaction.commit().await.map_err(while_running)?;
        Ok(outcomes)
    }

    async fn append_events_across(
        &self,
        parts: &[(Partition, Vec<NewEvent>)],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        let mut transaction = self.begin().await?;
        let mut outcomes = Vec::with_capacity(parts.len());
        for (partition, events) in parts {
            outcomes.extend(
                append::events::append(&mut transaction, *partition, &[events], now).await?,
            );
        }
        if outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Appended(_)))
        {
            transaction.commit().await.map_err(while_running)?;
        } else {
            transaction.rollback().await.map_err(while_running)?;
        }
        Ok(outcomes)
    }

    async fn append_entries(
        &self,
        partition: Partition,
        entries: &[&NewEntry],
        now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        let mut transaction = self.begin().await?;
        let outcomes = append::entries::append(&mut transaction, partition, entries, now).await?;
        transaction.commit().await.map_err(while_running)?;
        Ok(outcomes)
    }

    async fn create_aggregate(
        &self,
        partition: Partition,
        id: AggregateId,
        aggregate_type: &AggregateType,
        now: Timestamp,
    ) -> Result<(Aggregate, bool), StoreError> {
        let mut transaction = self.begin().await?;
        let made =
            append::create_aggregate(&mut transaction, partition, id, aggregate_type, now).await?;
        transaction.commit().await.map_err(while_running)?;
        Ok(made)
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        None
    }
}

impl Sqlite {
    /// Begins a transaction that may write: taken at once, so that what it read stays true until the commit.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, StoreError> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        let pool = self.writer.get_sqlite_connection_pool();
        match pool.begin_with(BEGIN).await {
            // A full disk or a failed write makes SQLite undo a transaction by itself. The driver's own ROLLBACK finds none
            // then, and it takes the transaction for open ever after: such a connection is of no more use.
            Err(sqlx::Error::InvalidSavePointStatement) => {
                let spoilt = pool.acquire().await.map_err(not_acquired)?;
                spoilt.close().await.map_err(not_acquired)?;
                pool.begin_with(BEGIN).await.map_err(not_begun)
            }
            begun => begun.map_err(not_begun),
        }
    }
}
