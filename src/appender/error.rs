//! Why an append did not happen, or may not have happened. Floor 3.

use std::{fmt, sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    domain::{EventId, append::Refusal},
    store::StoreError,
};

/// How long a client should wait before it repeats a call that the server could not take.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What keeps the server from taking an append now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too much waits already.
    Full,
    /// The server is stopping.
    Stopping,
    /// The database did not answer in time.
    TimedOut,
    /// The database cannot be reached, or the connection was lost.
    Database,
    /// The database has no room left, or no resources.
    Exhausted,
    /// Somebody else holds the partition's lock.
    Locked,
    /// Too many others change the same aggregate.
    Contended,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many appends are waiting",
            Self::Stopping => "the server is stopping",
            Self::TimedOut => "the database did not answer in time",
            Self::Database => "the database cannot be reached",
            Self::Exhausted => "the database has no room or no resources left",
            Self::Locked => "another client of the database holds the partition's lock",
            Self::Contended => "too many others change the same aggregate",
        })
    }
}

/// Why an append failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// It was judged and refused; nothing was appended.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server cannot take it now.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: Reason,
        /// When to try again.
        retry_after: Duration,
        /// Where it is unknown whether it was appended: the ids that make a repeat safe. Empty: nothing was done.
        unknown: Vec<Uuid>,
        /// The database's fault, if it was one.
        #[source]
        source: Option<Arc<StoreError>>,
    },
    /// The store failed in a way that a repeat does not mend.
    #[error("the append failed")]
    Failed(#[source] Arc<StoreError>),
}

impl AppendError {
    /// Too much waits already: nothing was done.
    #[must_use]
    pub fn full() -> Self {
        Self::not_done(Reason::Full, None)
    }

    /// Somebody else holds the lock of a partition: nothing was done.
    pub(super) fn locked() -> Self {
        Self::not_done(Reason::Locked, None)
    }

    /// Others were always faster: nothing was done.
    #[must_use]
    pub fn contended() -> Self {
        Self::not_done(Reason::Contended, None)
    }

    /// The time was over before anything was appended.
    #[must_use]
    pub fn overdue() -> Self {
        Self::timed_out(Vec::new())
    }

    pub(super) fn stopping() -> Self {
        Self::not_done(Reason::Stopping, None)
    }

    pub(super) fn timed_out(ids: Vec<Uuid>) -> Self {
        Self::Unavailable {
            reason: Reason::TimedOut,
            retry_after: RETRY_AFTER,
            unknown: ids,
            source: None,
        }
    }

    /// A fault before or after the append itself: nothing was appended by this call.
    #[must_use]
    pub fn while_reading(error: impl Into<Arc<StoreError>>) -> Self {
        Self::of_store(error.into(), Vec::new())
    }

    pub(super) fn vanished(id: EventId) -> Self {
        Self::Failed(Arc::new(StoreError::Inconsistent(format!(
            "the event {id} was there and is not any more"
        ))))
    }

    /// A fault of the store while events with these ids were appended.
    pub(super) fn of_store(error: Arc<StoreError>, ids: Vec<Uuid>) -> Self {
        if !error.is_passing() {
            return Self::Failed(error);
        }
        let reason = match *error {
            StoreError::LockTimeout(_) => Reason::Locked,
            StoreError::Exhausted(_) => Reason::Exhausted,
            _ => Reason::Database,
        };
        if error.is_outcome_unknown() {
            return Self::Unavailable {
                reason,
                retry_after: RETRY_AFTER,
                unknown: ids,
                source: Some(error),
            };
        }
        Self::not_done(reason, Some(error))
    }

    fn not_done(reason: Reason, source: Option<Arc<StoreError>>) -> Self {
        Self::Unavailable {
            reason,
            retry_after: RETRY_AFTER,
            unknown: Vec::new(),
            source,
        }
    }
}
