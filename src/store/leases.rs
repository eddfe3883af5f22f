//! The table `leases`: which server runs what only one may run at a time. Floor 2.
//!
//! Time is the database's: servers need not agree on theirs. On SQLite there is one server a file, so a lease is always free.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::FencingToken;

/// What came of asking for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseGrant {
    /// It was free, and this is its token: greater than any before.
    Granted(FencingToken),
    /// Somebody has it, for so long at least.
    Held(Duration),
}

impl Store {
    /// Asks for a lease. It is free where nobody has it, where it has run out, and for its owner.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn acquire_lease(
        &self,
        name: &str,
        owner: Uuid,
        duration: Duration,
    ) -> Result<LeaseGrant, StoreError> {
        self.backend
            .acquire_lease(name, owner, duration, false, self.clock.now())
            .await
    }

    /// Takes a lease, also from somebody who has it: its token is greater than theirs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_lease(
        &self,
        name: &str,
        owner: Uuid,
        duration: Duration,
    ) -> Result<LeaseGrant, StoreError> {
        self.backend
            .acquire_lease(name, owner, duration, true, self.clock.now())
            .await
    }

    /// Makes a lease last for `duration` from now on. False where somebody else has it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_lease(
        &self,
        name: &str,
        token: FencingToken,
        duration: Duration,
    ) -> Result<bool, StoreError> {
        self.backend.renew_lease(name, token, duration).await
    }

    /// Gives a lease back, if it is still the one with this token.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_lease(&self, name: &str, token: FencingToken) -> Result<(), StoreError> {
        self.backend.release_lease(name, token).await
    }
}
