//! Connections that are kept at hand. Floor 2.
//!
//! The driver's pool asks a connection for a sign of life each time that it is given back, in a task of its own: another
//! round trip for every statement. Here a connection that did its work is simply used again.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use sea_orm::sqlx::{self, Connection, Database, Pool, pool::PoolConnection};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::store::Connections;

/// A connection that was not used for this long is asked for a sign of life before it is used again.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);

/// The pause after a connection that may not be used, before the next one is tried.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);

const IN_USE: &str = "a connection is there until it is given back";

/// Says which connections may be used, where a database can move from one server to another.
#[async_trait]
pub(super) trait Gate<DB: Database>: Send + Sync {
    /// Grows whenever the connections that there are must not be used any more.
    fn epoch(&self) -> u64;

    /// Looks where a connection leads to: the epoch in which it may be used.
    ///
    /// # Errors
    /// Where it may not be used.
    async fn admit(&self, connection: &mut DB::Connection) -> Result<u64, sqlx::Error>;

    /// Is told that a connection was lost or did not come about.
    fn lost(&self);
}

/// A pool whose connections are kept at hand.
pub(super) struct Kept<DB: Database> {
    pool: Pool<DB>,
    /// None where a database does not move.
    gate: Option<Arc<dyn Gate<DB>>>,
    free: Mutex<Vec<Free<DB>>>,
    places: Semaphore,
    most: usize,
    acquire_timeout: Duration,
}

/// A connection that nobody uses.
struct Free<DB: Database> {
    connection: PoolConnection<DB>,
    used_at: Instant,
    epoch: u64,
}

/// A connection in use. Dropped without [`Taken::give_back`], it goes through the driver's pool, which looks after it.
pub(super) struct Taken<'k, DB: Database> {
    kept: &'k Kept<DB>,
    /// None once it is given back, or of no more use.
    connection: Option<PoolConnection<DB>>,
    /// Whether it is dropped, and not looked after, where it is not given back.
    is_only_once: bool,
    epoch: u64,
    _place: SemaphorePermit<'k>,
}

impl<DB: Database> Kept<DB> {
    pub(super) fn new(pool: Pool<DB>, most: u32, acquire_timeout: Duration) -> Self {
        let most = usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            pool,
            gate: None,
            free: Mutex::default(),
            places: Semaphore::new(most),
            most,
            acquire_timeout,
        }
    }

    /// The same with connections that have to be let in.
    pub(super) fn behind(mut self, gate: Arc<dyn Gate<DB>>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Takes a connection: the one that was used last, or a new one.
    ///
    /// # Errors
    /// When none comes free or about in time. Nothing was sent then.
    pub(super) async fn take(&self) -> Result<Taken<'_, DB>, sqlx::Error> {
        let place = timeout(self.acquire_timeout, self.places.acquire()).await;
        let place = place
            .map_err(|_| sqlx::Error::PoolTimedOut)?
            .map_err(|_| sqlx::Error::PoolClosed)?;
        let mut taken = Taken {
            kept: self,
            connection: None,
            is_only_once: false,
            epoch: 0,
            _place: place,
        };
        // For all of them together: where one is silent, those that were not used for longer are, too.
        let deadline = Instant::now() + self.acquire_timeout;
        while let Some(free) = self.pop() {
            let connection = taken.connection.insert(free.connection);
            taken.epoch = free.epoch;
            if free.epoch == self.epoch() {
                if free.used_at.elapsed() < PING_AFTER_IDLE
                    || matches!(timeout_at(deadline, connection.ping()).await, Ok(Ok(())))
                {
                    return Ok(taken);
                }
                self.tell_lost();
            }
            taken.detach();
        }
        self.connect(&mut taken).await?;
        Ok(taken)
    }

    /// Takes a connection out of the driver's pool, one that may be used.
    async fn connect(&self, taken: &mut Taken<'_, DB>) -> Result<(), sqlx::Error> {
        let deadline = Instant::now() + self.acquire_timeout;
        loop {
            let acquired = timeout_at(deadline, self.pool.acquire()).await;
            let acquired = acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut));
            let connection = match acquired {
                Ok(connection) => taken.connection.insert(connection),
                Err(error) => {
                    self.tell_lost();
                    return Err(error);
                }
            };
            let Some(gate) = &self.gate else {
                return Ok(());
            };
            let admitted = timeout_at(deadline, gate.admit(connection)).await;
            match admitted.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                Ok(epoch) => {
                    taken.epoch = epoch;
                    return Ok(());
                }
                Err(error) => {
                    taken.detach();
                    gate.lost();
                    if Instant::now() + PAUSE_AFTER_REFUSAL >= deadline {
                        return Err(error);
                    }
                    sleep(PAUSE_AFTER_REFUSAL).await;
                }
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.gate.as_ref().map_or(0, |gate| gate.epoch())
    }

    fn tell_lost(&self) {
        if let Some(gate) = &self.gate {
            gate.lost();
        }
    }

    /// How many connections there are, under the name of what they are for.
    pub(super) fn count(&self, pool: &'static str) -> Connections {
        let in_use = self.most.saturating_sub(self.places.available_permits());
        let in_use = u64::try_from(in_use).unwrap_or(u64::MAX);
        Connections {
            pool,
            // One that is being opened is in use and not counted by the driver yet.
            open: u64::from(self.pool.size()).max(in_use),
            in_use,
            most: u64::try_from(self.most).unwrap_or(u64::MAX),
        }
    }

    /// Closes all connections; those in use when they are given back.
    pub(super) async fn close(&self) {
        self.places.close();
        self.free().clear();
        self.pool.close().await;
    }

    fn pop(&self) -> Option<Free<DB>> {
        self.free().pop()
    }

    fn free(&self) -> MutexGuard<'_, Vec<Free<DB>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Database> Taken<'_, DB> {
    /// The connection.
    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        self.connection.as_mut().expect(IN_USE)
    }

    /// The epoch in which it may be used.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Gives a connection back that did its work, or that the database answered with an error: its state is known.
    pub(super) fn give_back(mut self) {
        let connection = self.connection.take().expect(IN_USE);
        let mut free = self.kept.free();
        if !self.kept.places.is_closed() {
            free.push(Free {
                connection,
                used_at: Instant::now(),
                epoch: self.epoch,
            });
        }
    }

    /// Makes it a connection that nobody uses again unless it is given back.
    pub(super) fn only_once(mut self) -> Self {
        self.is_only_once = true;
        self
    }

    /// Drops a connection that does not answer, without a word to the other side.
    pub(super) fn discard(mut self) {
        self.detach();
    }

    /// Ends a connection that is of no more use.
    pub(super) async fn close(mut self) -> Result<(), sqlx::Error> {
        self.connection.take().expect(IN_USE).close().await
    }

    fn detach(&mut self) {
        drop(self.connection.take().map(PoolConnection::detach));
    }
}

impl<DB: Database> Drop for Taken<'_, DB> {
    fn drop(&mut self) {
        if self.is_only_once {
            self.detach();
        } else if let Some(connection) = self.connection.take() {
            tokio::spawn(look_after(connection, self.kept.acquire_timeout));
        }
    }
}

/// Gives a connection whose state is not known to the driver's pool once it has shown that it is there and in no transaction.
/// The pool would wait for a sign of life too, but without an end, and keep its place meanwhile.
async fn look_after<DB: Database>(mut connection: PoolConnection<DB>, limit: Duration) {
    if !matches!(
        timeout(limit, leave_transaction(&mut connection)).await,
        Ok(Ok(()))
    ) {
        drop(connection.detach());
    }
}

/// The driver forgets a transaction whose BEGIN was sent and not waited for: what is written on that connection later would
/// seem to be stored, and be undone with the session. One more BEGIN makes it remember, so that it sends the ROLLBACK.
async fn leave_transaction<DB: Database>(
    connection: &mut PoolConnection<DB>,
) -> Result<(), sqlx::Error> {
    connection.begin().await?.rollback().await
}

/// Whether a connection can be used again: the statement succeeded, or the database refused it and did not end the session.
pub(super) fn is_answer<T>(outcome: &Result<T, sqlx::Error>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
            !["57P", "25P03", "08"]
                .iter()
                .any(|fatal| code.starts_with(fatal))
        }),
        Err(_) => false,
    }
}
