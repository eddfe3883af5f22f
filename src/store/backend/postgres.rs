//! PostgreSQL: pools, locks, errors, and appending by one call of one function. Floor 2.

mod append;
mod doorbell;
mod writers;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, RuntimeErr,
    Statement, Value,
    sea_query::{ArrayType, Expr, ExprTrait, SimpleExpr, extension::postgres::PgFunc},
    sqlx::{
        self, Connection,
        postgres::{PgConnectOptions, PgConnection},
    },
};
use uuid::Uuid;

use self::writers::Writers;
use super::{Backend, Doorbell, Fault};
use crate::{
    config,
    domain::{
        Aggregate, AggregateId, AggregateType, NewEntry, NewEvent, Partition, Timestamp,
        append::{AppendedEntry, AppendedEvent, Outcome},
    },
    store::{OpenError, StoreError, rows},
};

/// The key of the advisory lock under which one server migrates.
const MIGRATION_LOCK: i64 = 0x7469_6469_6e67_7301;
/// A connection that nobody used for this long is asked for a sign of life before it is used again.
const PING_AFTER_IDLE: Duration = Duration::from_secs(5);
const OLDEST_VERSION: i32 = 150_000;
const MAX_PARTITIONS: usize = 16;

pub(super) struct Postgres {
    pool: DatabaseConnection,
    writers: DatabaseConnection,
    events: Writers,
    entries: Writers,
    migrator: DatabaseConnection,
    doorbell: Arc<doorbell::PostgresDoorbell>,
}

impl Postgres {
    pub(super) async fn open(config: &config::Database) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Database {
            database: config.url.to_string(),
            source: classify(error),
        };
        // A pool goes on trying and says only that it has waited: one connection says why it does not come about.
        let probe = config.url.as_str().parse::<PgConnectOptions>();
        let probe = match probe {
            Ok(options) => PgConnection::connect_with(&options).await,
            Err(error) => Err(error),
        };
        let probe = probe.map_err(|error| OpenError::Database {
            database: config.url.to_string(),
            source: not_acquired(error),
        })?;
        drop(probe.close().await);
        let pool = Database::connect(options(config, config.max_connections))
            .await
            .map_err(failed)?;
        let version = server_version(&pool).await.map_err(failed)?;
        if version < OLDEST_VERSION {
            return Err(OpenError::TooOld {
                actual: format!("{}.{}", version / 10_000, version % 10_000),
            });
        }
        let migrator = Database::connect(options(config, 1))
            .await
            .map_err(failed)?;
        // Each partition keeps one connection for each of two logs.
        let most = u32::try_from(MAX_PARTITIONS * 2).unwrap_or(u32::MAX);
        let mut lazy = options(config, most);
        lazy.min_connections(0).connect_lazy(true);
        let writers = Database::connect(lazy).await.map_err(failed)?;
        let mut lazy = options(config, 1);
        lazy.min_connections(0).connect_lazy(true);
        let listener = Database::connect(lazy).await.map_err(failed)?;
        let doorbell = Arc::new(doorbell::PostgresDoorbell::new(pool.clone(), listener));
        Ok(Self {
            events: Writers::new(&writers, MAX_PARTITIONS),
            entries: Writers::new(&writers, MAX_PARTITIONS),
            pool,
            writers,
            migrator,
            doorbell,
        })
    }
}

fn options(config: &config::Database, connections: u32) -> ConnectOptions {
    let lock_timeout_ms = config.lock_timeout.as_millis();
    let mut options = ConnectOptions::new(config.url.as_str());
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(config.acquire_timeout)
        .connect_timeout(config.acquire_timeout)
        .test_before_acquire(false)
        .test_before_acquire_if_idle_for(PING_AFTER_IDLE)
        .sqlx_logging(false)
        .set_application_name("tidings")
        // Sessions that hold locks must not hold up others for ever when this server freezes or its network dies.
        .map_sqlx_postgres_opts(move |options| {
            options.options([
                ("lock_timeout", format!("{lock_timeout_ms}ms")),
                ("idle_in_transaction_session_timeout", "4s".to_owned()),
                ("tcp_keepalives_idle", "5".to_owned()),
                ("tcp_keepalives_interval", "2".to_owned()),
                ("tcp_keepalives_count", "3".to_owned()),
            ])
        });
    options
}

async fn server_version(pool: &DatabaseConnection) -> Result<i32, DbErr> {
    let statement = Statement::from_string(
        DbBackend::Postgres,
        "SELECT current_setting('server_version_num')::int",
    );
    let row = pool.query_one_raw(statement).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(0))
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
            (_, "53") => StoreError::Exhausted(error),
            (_, "22") => StoreError::ValueRefused(error),
            _ => StoreError::Failed(error),
        },
    }
}

/// A fault of the driver itself before it had a connection.
fn not_acquired(error: sqlx::Error) -> StoreError {
    StoreError::Unreachable(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
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

    fn readers(&self) -> &DatabaseConnection {
        &self.pool
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

    async fn close(&self) {
        self.events.release().await;
        self.entries.release().await;
        for pool in [&self.writers, &self.pool] {
            if let Err(error) = pool.close_by_ref().await {
                tracing::debug!(%error, "closing the database");
            }
        }
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
        requests: &[&[NewEvent]],
        _now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        let mut writer = self.events.of(partition).await?;
        writer
            .run(async |connection| append::events(connection, partition, requests).await)
            .await
    }

    async fn append_events_across(
        &self,
        parts: &[(Partition, Vec<NewEvent>)],
        _now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
        let mut transaction = self
            .pool
            .get_postgres_connection_pool()
            .begin()
            .await
            .map_err(not_acquired)?;
        let mut outcomes = Vec::with_capacity(parts.len());
        for (partition, events) in parts {
            outcomes.extend(append::events(&mut transaction, *partition, &[events]).await?);
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
        _now: Timestamp,
    ) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
        let mut writer = self.entries.of(partition).await?;
        writer
            .run(async |connection| append::entries(connection, partition, entries).await)
            .await
    }

    async fn create_aggregate(
        &self,
        partition: Partition,
        id: AggregateId,
        aggregate_type: &AggregateType,
        _now: Timestamp,
    ) -> Result<(Aggregate, bool), StoreError> {
        let mut transaction = self
            .pool
            .get_postgres_connection_pool()
            .begin()
            .await
            .map_err(not_acquired)?;
        append::lock_events(&mut transaction, partition).await?;
        let created =
            append::insert_aggregate(&mut transaction, partition, id, aggregate_type).await?;
        let row = append::aggregate_row(&mut transaction, partition, id).await?;
        transaction.commit().await.map_err(while_running)?;
        Ok((rows::aggregate(&row.into())?, created))
    }

    fn doorbell(&self) -> Option<Arc<dyn Doorbell>> {
        Some(self.doorbell.clone())
    }
}
