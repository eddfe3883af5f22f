//! What can go wrong between the store and its database. Floor 2.

use sea_orm::DbErr;

use crate::domain::PartitionCount;

/// A fault of the database, told apart by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be reached; nothing was sent to it.
    #[error("the database cannot be reached")]
    Unreachable(#[source] DbErr),
    /// The connection broke while a statement ran: whether it was committed is unknown.
    #[error("the connection to the database was lost")]
    ConnectionLost(#[source] DbErr),
    /// Somebody else held a lock for longer than the lock time-out; nothing was done.
    #[error("a lock in the database was held by somebody else for too long")]
    LockTimeout(#[source] DbErr),
    /// A deadlock or a serialization failure; nothing was done, and the same again may succeed.
    #[error("the transaction had to give way to another one")]
    GaveWay(#[source] DbErr),
    /// The database has no room or no resources; nothing was done.
    #[error("the database has no room or no resources left")]
    Exhausted(#[source] DbErr),
    /// The database refuses a value; nothing was done.
    #[error("the database refuses a value")]
    ValueRefused(#[source] DbErr),
    /// Any other fault.
    #[error("the database failed")]
    Failed(#[source] DbErr),
    /// What is stored contradicts itself.
    #[error("the database is inconsistent: {0}")]
    Inconsistent(String),
}

impl StoreError {
    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(
            self,
            Self::ValueRefused(_) | Self::Failed(_) | Self::Inconsistent(_)
        )
    }

    /// Whether it is unknown if the statement took effect.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::ConnectionLost(_))
    }
}

#[cfg(test)]
impl StoreError {
    /// One of each kind, for the tests of what is done about them.
    pub(crate) fn of_each_kind() -> Vec<Self> {
        let cause = || DbErr::Custom("for a test".to_owned());
        vec![
            Self::Unreachable(cause()),
            Self::ConnectionLost(cause()),
            Self::LockTimeout(cause()),
            Self::GaveWay(cause()),
            Self::Exhausted(cause()),
            Self::ValueRefused(cause()),
            Self::Failed(cause()),
            Self::Inconsistent("for a test".to_owned()),
        ]
    }
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached, or refuses what is asked.
    #[error("cannot open the database {database}")]
    Database {
        /// Which one, without its password.
        database: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// None of several servers can be used.
    #[error("none of the databases is a primary that can be used ({tried})")]
    NoPrimary {
        /// What is wrong with each.
        tried: String,
    },
    /// Another process has the SQLite file open.
    #[error(
        "the database {path} is in use by another tidings server: stop that one, or use PostgreSQL, which takes any number"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// The file that keeps a second server away cannot be made.
    #[error("cannot lock the database {path}")]
    Lock {
        /// The lock's file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The schema is not current and may not be changed.
    #[error(
        "the tables of the database are not current ({pending} migrations are missing): run `tidings migrate`, or start without --migrate=false"
    )]
    NotMigrated {
        /// How many migrations are missing.
        pending: usize,
    },
    /// The database was made with another number of partitions.
    #[error(
        "the database has {actual} partitions, and that is fixed when it is made: leave --partitions out or set it to {actual}, not {asked}"
    )]
    OtherPartitions {
        /// How many it has.
        actual: PartitionCount,
        /// How many the configuration asks for.
        asked: PartitionCount,
    },
    /// The server is too old.
    #[error("PostgreSQL {actual} is too old: 15 or newer is needed")]
    TooOld {
        /// Its version.
        actual: String,
    },
}
