//! The file of a SQLite database: the lock against a second server, and how it is opened. Floor 2.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use sea_orm::{
    ConnectOptions,
    sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous},
};

use crate::{config, store::OpenError};

/// How long a statement waits for another program that has the file locked (a backup, say).
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of the file a connection keeps in memory, in KiB as a negative number.
pub(super) const WRITER_CACHE_SIZE: &str = "-16000";
pub(super) const READER_CACHE_SIZE: &str = "-2000";
/// The log is copied into the file when it has this many pages: 16 MiB. A page that is written often is copied once.
const CHECKPOINT_PAGES: &str = "16384";
/// So many rows the driver's thread reads ahead of whoever takes them. They may be large, and a bound in bytes does not count them.
const ROWS_AHEAD: usize = 8;

pub(super) fn lock_file(path: &str, make: bool) -> Result<File, OpenError> {
    let path = Path::new(path);
    if make && path.is_symlink() && !path.exists() {
        // A link that leads to no file yet has no real path: the file has to be there first.
        let made = OpenOptions::new().create(true).append(true).open(path);
        made.map_err(|source| OpenError::Lock {
            path: path.display().to_string(),
            source,
        })?;
    }
    let path = real_path(path);
    let mut lock_path = path.clone().into_os_string();
    lock_path.push("-lock");
    let failed = |source| OpenError::Lock {
        path: lock_path.to_string_lossy().into_owned(),
        source,
    };
    if !make && !path.exists() {
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
            path: path.display().to_string(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The file itself, whatever links lead to it: two servers that name it differently have to meet at one lock.
fn real_path(path: &Path) -> PathBuf {
    let folder = || {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    };
    let real = path.canonicalize().ok().or_else(folder);
    real.unwrap_or_else(|| path.to_owned())
}

pub(super) fn options(
    config: &config::Database,
    connections: u32,
    make: bool,
    cache_size: &'static str,
) -> ConnectOptions {
    let mut options = ConnectOptions::new(config.url.first().as_str());
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
                .statement_cache_capacity(128)
                .row_buffer_size(ROWS_AHEAD)
                .pragma("temp_store", "memory")
                .pragma("cache_size", cache_size)
                .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        });
    options
}
