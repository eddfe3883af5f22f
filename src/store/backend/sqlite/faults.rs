//! What SQLite's faults are to the store. Floor 2.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::super::Fault;
use crate::store::StoreError;

/// Source: SQLite's documentation, "Result and Error Codes". Statements are undone whenever they fail.
pub(super) fn classify(error: DbErr) -> StoreError {
    match Fault::of(error) {
        Fault::BeforeSending(error) => StoreError::Unreachable(error),
        Fault::Broken(error) => StoreError::ConnectionLost(error),
        Fault::Other(error) => StoreError::Failed(error),
        Fault::Coded(code, error) => match code.parse::<i32>().unwrap_or_default() & 0xff {
            5 | 6 => StoreError::LockTimeout(error),
            // Read-only, an I/O error, a full disk, a file that cannot be opened.
            8 | 10 | 13 | 14 => StoreError::Exhausted(error),
            18..=20 => StoreError::ValueRefused(error),
            _ => StoreError::Failed(error),
        },
    }
}

pub(super) fn not_acquired(error: sqlx::Error) -> StoreError {
    StoreError::Unreachable(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
}

/// A fault at the beginning of a transaction: the database's own, or that there is no connection.
pub(super) fn not_begun(error: sqlx::Error) -> StoreError {
    if matches!(error, sqlx::Error::Database(_)) {
        while_running(error)
    } else {
        not_acquired(error)
    }
}

pub(super) fn while_running(error: sqlx::Error) -> StoreError {
    classify(DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))))
}
