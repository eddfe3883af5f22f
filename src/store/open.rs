//! Opening a database: connecting, migrating, and what is fixed when it is made. Floor 2.

use std::{sync::Arc, time::Duration};

use entity::{database_settings, partition_locks};
use migration::Migrator;
use sea_orm::{
    ActiveValue::{NotSet, Set},
    DatabaseConnection, DbBackend, EntityTrait, TransactionTrait,
    sea_query::OnConflict,
};
use sea_orm_migration::MigratorTrait;
use tokio_util::sync::CancellationToken;

use super::{OpenError, Store, StoreError, backend};
use crate::{
    config,
    domain::{Clock, DatabaseId, PartitionCount},
};

/// The logs of a partition that are appended to, each with a lock of its own.
const LOGS: [&str; 3] = ["events", "entries", "read_models"];

impl Store {
    /// Opens the database: makes it where it is not there, and brings its tables up to date when `config.migrate`. A server that
    /// freezes holds up its successor for less than `lease`.
    ///
    /// # Errors
    /// When it cannot be reached or used; the error says what to do.
    pub async fn open(
        config: &config::Database,
        lease: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let backend = backend::open(config, lease, config.migrate).await?;
        let failed = |error| OpenError::Database {
            database: config.url.to_string(),
            source: error,
        };
        let classified = |error| failed(backend.classify(error));

        let connection = backend.migrator();
        if config.migrate {
            backend.lock_migrations().await.map_err(failed)?;
            let migrated = migrate(connection).await.map_err(classified);
            let settled = match &migrated {
                Ok(()) => settle(connection, config, clock.as_ref())
                    .await
                    .map_err(classified),
                Err(_) => Ok(()),
            };
            // Why it failed says more than why it cannot be unlocked.
            let unlocked = backend.unlock_migrations().await.map_err(failed);
            migrated.and(settled).and(unlocked)?;
        }
        let pending = Migrator::get_pending_migrations_read_only(connection)
            .await
            .map_err(classified)?
            .len();
        if pending > 0 {
            return Err(OpenError::NotMigrated { pending });
        }
        let settings = database_settings::Entity::find()
            .one(connection)
            .await
            .map_err(classified)?;
        let (database_id, partitions) = read_settings(settings).map_err(failed)?;
        let asked = config.partitions.and_then(PartitionCount::new);
        if let Some(asked) = asked.filter(|asked| *asked != partitions) {
            return Err(OpenError::OtherPartitions {
                actual: partitions,
                asked,
            });
        }
        backend.after_open().await.map_err(failed)?;
        Ok(Self {
            backend,
            clock,
            database_id,
            partitions,
            statements: Arc::default(),
            lost: CancellationToken::new(),
        })
    }
}

impl Store {
    /// Keeps how large the data of an event may be, in bytes, where SQL clients are held to it: what was started last counts.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_event_limit(&self, bytes: usize) -> Result<(), StoreError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let sql = "UPDATE database_settings SET max_event_bytes = $1 WHERE id = 1 AND max_event_bytes <> $1";
        self.backend
            .execute(self.statement(sql, [bytes.into()]))
            .await
    }
}

async fn migrate(connection: &DatabaseConnection) -> Result<(), sea_orm::DbErr> {
    if connection.get_database_backend() == DbBackend::Sqlite {
        // On PostgreSQL each migration is a transaction by itself. Here one that is killed in the midst would never run again.
        let transaction = connection.begin().await?;
        Migrator::up(&transaction, None).await?;
        transaction.commit().await?;
    } else {
        Migrator::up(connection, None).await?;
    }
    migration::install_code(connection).await
}

/// Writes what is fixed when a database is made, unless it is there.
async fn settle(
    connection: &DatabaseConnection,
    config: &config::Database,
    clock: &dyn Clock,
) -> Result<(), sea_orm::DbErr> {
    if database_settings::Entity::find()
        .one(connection)
        .await?
        .is_some()
    {
        return Ok(());
    }
    let partitions = config
        .partitions
        .and_then(PartitionCount::new)
        .unwrap_or(PartitionCount::ONE);
    let locks = partitions.iter().flat_map(|partition| {
        LOGS.map(|log| partition_locks::ActiveModel {
            partition_no: Set(partition.number()),
            log: Set(log.to_owned()),
        })
    });
    let count = i16::try_from(partitions.get()).unwrap_or(1);
    let settings = database_settings::ActiveModel {
        id: Set(1),
        database_id: Set(clock.new_id()),
        partitions: Set(count),
        created_at: Set(clock.now().to_utc()),
        // As the table has it, until a server starts.
        max_event_bytes: NotSet,
    };
    let transaction = connection.begin().await?;
    partition_locks::Entity::insert_many(locks)
        .on_conflict(OnConflict::new().do_nothing().to_owned())
        .exec_without_returning(&transaction)
        .await?;
    database_settings::Entity::insert(settings)
        .exec_without_returning(&transaction)
        .await?;
    migration::describe_partitions(&transaction, count).await?;
    transaction.commit().await
}

fn read_settings(
    settings: Option<database_settings::Model>,
) -> Result<(DatabaseId, PartitionCount), StoreError> {
    let settings = settings
        .ok_or_else(|| StoreError::Inconsistent("database_settings is empty".to_owned()))?;
    let partitions = u8::try_from(settings.partitions)
        .ok()
        .and_then(PartitionCount::new)
        .ok_or_else(|| {
            StoreError::Inconsistent(format!(
                "there cannot be {} partitions",
                settings.partitions
            ))
        })?;
    Ok((DatabaseId(settings.database_id), partitions))
}
