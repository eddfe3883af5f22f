//! Which of several PostgreSQL servers is the primary, and that all connections lead to it. Floor 2.
//!
//! Each new connection is looked at before it is used: a standby, a server that only reads, and a primary that others have
//! left behind are refused. A primary that was not there before has to have what this server has seen of the logs: positions
//! are given out again where they were lost, and whoever goes on behind the old ones would miss what is new.

use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sea_orm::sqlx::{
    self, ConnectOptions, Connection, Pool,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::kept::Gate;
use crate::{
    config,
    store::{Guard, Seen, SeenLog},
};

/// How long one server may take to answer whether it is the primary; and for how long a statement waits before that is asked.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// The least time between two rounds through the servers.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// Whether a session can write, since when its server runs, and its version. The user need not have any rights for it.
const LOOK: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool, \
     (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, current_setting('server_version_num')::int";
/// The timeline on which a primary writes: it grows with each promotion.
const TIMELINE: &str = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
/// Those of some rows that are not there: a place without an id is any row at it.
const MISSING_EVENTS: &str = "SELECT seen.partition_no, seen.place \
     FROM unnest($1::smallint[], $2::bigint[], $3::uuid[]) AS seen (partition_no, place, id) \
     WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.partition_no = seen.partition_no \
       AND events.position = seen.place AND (seen.id IS NULL OR events.id = seen.id)) ORDER BY 1, 2";
const MISSING_ENTRIES: &str = "SELECT seen.partition_no, seen.place \
     FROM unnest($1::smallint[], $2::bigint[], $3::uuid[]) AS seen (partition_no, place, id) \
     WHERE NOT EXISTS (SELECT 1 FROM event_streams WHERE event_streams.partition_no = seen.partition_no \
       AND event_streams.entry_position = seen.place AND (seen.id IS NULL OR event_streams.event_id = seen.id)) ORDER BY 1, 2";

/// The servers of one PostgreSQL, and which of them is used.
pub(super) struct Primary {
    servers: Vec<Server>,
    /// The one that connections are made to.
    current: AtomicUsize,
    epoch: watch::Sender<u64>,
    /// What the connections of this epoch lead to.
    incarnation: tokio::sync::Mutex<Option<Incarnation>>,
    /// Rung when a connection was lost or does not answer, so that it has to be looked again.
    trouble: Notify,
    pools: Mutex<Vec<FollowingPool>>,
    guard: OnceLock<Guard>,
    try_timeout: Duration,
}

struct Server {
    /// For people: without its password.
    name: String,
    options: PgConnectOptions,
}

/// A pool whose new connections are made to the primary.
struct FollowingPool {
    pool: Pool<sqlx::Postgres>,
    /// One for each server.
    options: Vec<PgConnectOptions>,
}

/// A run of a primary: another one may have lost what this server has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Incarnation {
    /// 0 where there is one server, whose timeline need not be asked for.
    timeline: u32,
    started_us: i64,
}

/// Why none of the servers can be used.
pub(super) struct NoPrimary {
    /// Each server with what is wrong with it.
    pub(super) tried: Vec<(String, sqlx::Error)>,
}

impl Primary {
    /// # Errors
    /// A URL with options that are wrong.
    pub(super) fn new(config: &config::Database) -> Result<Self, sqlx::Error> {
        let server = |url: &config::DatabaseUrl| {
            Ok(Server {
                name: url.to_string(),
                options: url
                    .as_str()
                    .parse::<PgConnectOptions>()?
                    .application_name("tidings")
                    .disable_statement_logging(),
            })
        };
        let servers = config.url.iter().map(server);
        Ok(Self {
            servers: servers.collect::<Result<_, sqlx::Error>>()?,
            current: AtomicUsize::new(0),
            epoch: watch::Sender::new(0),
            incarnation: tokio::sync::Mutex::default(),
            trouble: Notify::new(),
            pools: Mutex::default(),
            guard: OnceLock::new(),
            try_timeout: TRY_TIMEOUT.min(config.acquire_timeout),
        })
    }

    /// Makes a pool whose connections are made to the primary when they are first needed, as `session` sets them up.
    pub(super) fn pool(
        &self,
        pool: PgPoolOptions,
        session: impl Fn(PgConnectOptions) -> PgConnectOptions,
    ) -> Pool<sqlx::Postgres> {
        let options = self.servers.iter().map(|server| &server.options);
        let options: Vec<_> = options.cloned().map(session).collect();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load(Ordering::Relaxed);
        let pool = pool.connect_lazy_with(options[current].clone());
        pools.push(FollowingPool {
            pool: pool.clone(),
            options,
        });
        pool
    }

    /// Tries the servers in their order and takes the first one that is a primary: its version.
    ///
    /// # Errors
    /// Where none is.
    pub(super) async fn choose(&self) -> Result<i32, NoPrimary> {
        let mut tried = Vec::new();
        for (index, server) in self.servers.iter().enumerate() {
            let answer = timeout(self.try_timeout, self.try_server(server)).await;
            match answer.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                Ok(version) => {
                    self.follow(index);
                    return Ok(version);
                }
                Err(error) => tried.push((server.name.clone(), error)),
            }
        }
        Err(NoPrimary { tried })
    }

    /// Chooses again whenever a connection was lost or does not answer, until it is told to stop. With one server there is nothing to choose.
    pub(super) async fn keep_choosing(self: Arc<Self>, stopping: CancellationToken) {
        if self.servers.len() < 2 {
            return;
        }
        let choosing = async {
            loop {
                self.trouble.notified().await;
                let mut has_told = false;
                while let Err(none) = self.choose().await {
                    if !has_told {
                        tracing::warn!("no primary is found, and it is looked for on: {none}");
                        has_told = true;
                    }
                    sleep(TRY_EVERY).await;
                }
                if has_told {
                    let name = &self.servers[self.current.load(Ordering::Relaxed)].name;
                    tracing::info!("the primary is {name}");
                }
                // Many connections are lost at once, and new ones may be refused for a while: one round is for all of them.
                sleep(TRY_EVERY).await;
            }
        };
        tokio::select! {
            () = choosing => {}
            () = stopping.cancelled() => {}
        }
    }

    /// From now on a new primary has to have what this server has seen.
    pub(super) fn guard(&self, guard: Guard) {
        // The store sets it once, when it is open.
        drop(self.guard.set(guard));
    }

    /// Waits until the connections of an epoch must not be used any more.
    pub(super) async fn left(&self, epoch: u64) {
        let mut epochs = self.epoch.subscribe();
        // The sender is this value's own, so there is always one.
        drop(epochs.wait_for(|now| *now != epoch).await);
    }

    /// Waits for an answer until the time is over, or another server has become the primary: this one may never answer. While it
    /// does not, it is looked again which one is: a machine that is gone closes no connection.
    pub(super) async fn while_primary<T>(
        &self,
        epoch: u64,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut left = pin!(self.left(epoch));
        let deadline = Instant::now() + limit;
        loop {
            let until = deadline.min(Instant::now() + self.try_timeout);
            tokio::select! {
                biased;
                answer = timeout_at(until, &mut work) => match answer {
                    Ok(answer) => return Some(answer),
                    Err(_) => Gate::lost(self),
                },
                () = &mut left => {
                    Gate::lost(self);
                    return None;
                }
            }
            if until == deadline {
                return None;
            }
        }
    }

    async fn try_server(&self, server: &Server) -> Result<i32, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&server.options).await?;
        let (_, version) = self.look(&mut connection).await?;
        // It was of use: whether it also ends well is not worth a wait.
        drop(connection);
        Ok(version)
    }

    /// Makes all new connections to a server.
    fn follow(&self, index: usize) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current.swap(index, Ordering::Relaxed);
        if before == index {
            return;
        }
        for pool in pools.iter().filter(|pool| !pool.pool.is_closed()) {
            pool.pool.set_connect_options(pool.options[index].clone());
        }
        tracing::warn!(
            from = self.servers[before].name,
            to = self.servers[index].name,
            "another server is the primary now"
        );
    }

    /// Looks where a connection leads to: the epoch in which it may be used, and the server's version.
    async fn look(&self, connection: &mut PgConnection) -> Result<(u64, i32), sqlx::Error> {
        let look = sqlx::query_as::<_, (bool, bool, i64, i32)>(LOOK);
        let (in_recovery, read_only, started_us, version) =
            look.fetch_one(&mut *connection).await?;
        if in_recovery {
            return Err(refused("it is a standby"));
        }
        if read_only {
            return Err(refused("it is read-only"));
        }
        let timeline = if self.servers.len() > 1 {
            let name: String = sqlx::query_scalar(TIMELINE)
                .fetch_one(&mut *connection)
                .await?;
            u32::from_str_radix(&name, 16).map_err(|_| refused("its timeline cannot be read"))?
        } else {
            0
        };
        let incarnation = Incarnation {
            timeline,
            started_us,
        };
        let mut known = self.incarnation.lock().await;
        if *known != Some(incarnation) {
            if known.is_some_and(|known| known.timeline > timeline) {
                return Err(refused(
                    "it was the primary before another server was promoted",
                ));
            }
            self.compare(connection).await?;
            *known = Some(incarnation);
            self.epoch.send_modify(|epoch| *epoch += 1);
        }
        Ok((*self.epoch.borrow(), version))
    }

    /// Checks that a primary has what this server has seen.
    async fn compare(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Some(guard) = self.guard.get() else {
            return Ok(());
        };
        let id: Uuid = sqlx::query_scalar("SELECT database_id FROM database_settings")
            .fetch_one(&mut *connection)
            .await?;
        if id != guard.database_id.0 {
            guard.report_loss(
                "it is another database: its id is not the one that this server has started with",
            );
            return Err(refused("it is another database"));
        }
        let seen = (guard.seen)();
        for (log, missing) in [
            (SeenLog::Events, MISSING_EVENTS),
            (SeenLog::Entries, MISSING_ENTRIES),
        ] {
            let seen: Vec<&Seen> = seen.iter().filter(|seen| seen.log == log).collect();
            let partitions: Vec<i16> = seen.iter().map(|seen| seen.partition.number()).collect();
            let places: Vec<i64> = seen.iter().map(|seen| seen.position.0).collect();
            let ids: Vec<Option<Uuid>> = seen.iter().map(|seen| seen.id).collect();
            let missing = sqlx::query_as::<_, (i16, i64)>(missing)
                .bind(partitions)
                .bind(places)
                .bind(ids)
                .fetch_optional(&mut *connection)
                .await?;
            if let Some((partition, position)) = missing {
                guard.report_loss(&format!(
                    "what this server has seen at position {position} of the {} of partition {partition} is not there",
                    log.name()
                ));
                return Err(refused("it has lost what was there before"));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Gate<sqlx::Postgres> for Primary {
    fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    async fn admit(&self, connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
        let (epoch, _) = self.look(connection).await?;
        Ok(epoch)
    }

    fn lost(&self) {
        self.trouble.notify_one();
    }
}

impl std::fmt::Display for NoPrimary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (name, error)) in self.tried.iter().enumerate() {
            let semicolon = if index == 0 { "" } else { "; " };
            write!(f, "{semicolon}{name}: {error}")?;
        }
        Ok(())
    }
}

fn refused(why: &'static str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(why))
}
