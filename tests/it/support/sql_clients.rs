//! Clients that append by the guide's functions in SQL, as fast as they are answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::client::LIMIT;
use super::load::Ledger;
use super::log::StoredLog;

const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What a client was told.
#[derive(Debug, Default)]
pub struct SqlLedger {
    /// The ids of events that are stored.
    pub events: Vec<Uuid>,
    /// The entries that are stored, with their positions.
    pub entries: HashMap<Uuid, i64>,
    /// Refusals of an event whose aggregate had another version than was expected, or that had to give way.
    pub conflicts: usize,
    /// Lost connections.
    pub lost: usize,
}

impl SqlLedger {
    /// Adds what is stored to another ledger. A client of the guide's `append_event` is told no version, so that is the log's.
    pub fn add_to(self, ledger: &mut Ledger, log: &StoredLog) {
        let versions: HashMap<Uuid, i64> = log
            .events
            .iter()
            .map(|event| (event.id, i64::from(event.version)))
            .collect();
        let stored = |id| (id, versions.get(&id).copied().unwrap_or_default());
        ledger.acknowledged.extend(self.entries);
        ledger
            .acknowledged
            .extend(self.events.into_iter().map(stored));
    }
}

/// Where SQL clients connect, as libpq does with several hosts and `target_session_attrs=primary`: the first that is a primary.
#[derive(Clone)]
pub struct Servers(Arc<RwLock<Vec<String>>>);

impl Servers {
    pub fn new(urls: &[&str]) -> Servers {
        let urls = urls.iter().map(|&url| url.to_owned()).collect();
        Servers(Arc::new(RwLock::new(urls)))
    }

    /// From now on nobody connects anywhere else.
    pub async fn set(&self, urls: &[&str]) {
        *self.0.write().await = urls.iter().map(|&url| url.to_owned()).collect();
    }

    async fn connect(&self) -> Option<PgConnection> {
        let urls = self.0.read().await;
        for url in urls.iter() {
            let Ok(mut connection) = PgConnection::connect(url).await else {
                continue;
            };
            let is_standby = sqlx::query_scalar("SELECT pg_is_in_recovery()");
            if let Ok(false) = is_standby.fetch_one(&mut connection).await {
                return Some(connection);
            }
        }
        None
    }
}

/// A client that connects again where its connection is lost.
pub struct SqlClient {
    servers: Servers,
    connection: Option<PgConnection>,
    pub ledger: SqlLedger,
}

/// Why a statement failed.
enum Failure {
    Conflict,
    Lost,
}

impl SqlClient {
    pub fn to(servers: Servers) -> SqlClient {
        SqlClient {
            servers,
            connection: None,
            ledger: SqlLedger::default(),
        }
    }

    /// Appends an event with this text in its data, which no other event may have, until it is stored. With `is_expecting` the
    /// first try names the version that the aggregate has, or just had.
    pub async fn append_event(&mut self, aggregate: Uuid, text: &str, is_expecting: bool) {
        let mut expected = None;
        if is_expecting && let Ok(version) = self.version_of(aggregate).await {
            expected = Some(version);
        }
        loop {
            match self.try_append_event(aggregate, text, expected).await {
                Ok(id) => return self.ledger.events.push(id),
                Err(Failure::Conflict) => {
                    self.ledger.conflicts += 1;
                    expected = None;
                }
                // The function makes the id, so what became of the event has to be looked up.
                Err(Failure::Lost) => {
                    if let Some(id) = self.find(text).await {
                        return self.ledger.events.push(id);
                    }
                }
            }
        }
    }

    /// Appends an entry until it is stored: the same event again is not appended.
    pub async fn append_to_stream(&mut self, stream: &str, text: &str) {
        let id = Uuid::new_v4();
        loop {
            let append = sqlx::query_scalar("SELECT append_to_stream($1, $2::uuid, 'counted', $3)")
                .bind(stream)
                .bind(id)
                .bind(json!({ "text": text }));
            let appended = append.fetch_one(self.connection().await).await;
            if let Ok(position) = self.judge(appended).await {
                self.ledger.entries.insert(id, position);
                return;
            }
        }
    }

    async fn try_append_event(
        &mut self,
        aggregate: Uuid,
        text: &str,
        expected: Option<i32>,
    ) -> Result<Uuid, Failure> {
        let append =
            sqlx::query_scalar("SELECT append_event($1::uuid, 'load', 'counted', $2, '{}', $3)")
                .bind(aggregate)
                .bind(json!({ "text": text }))
                .bind(expected);
        let appended = append.fetch_one(self.connection().await).await;
        self.judge(appended).await
    }

    async fn version_of(&mut self, aggregate: Uuid) -> Result<i32, Failure> {
        let version = sqlx::query_scalar("SELECT get_aggregate_version($1::uuid)").bind(aggregate);
        let version = version.fetch_one(self.connection().await).await;
        self.judge(version).await
    }

    async fn find(&mut self, text: &str) -> Option<Uuid> {
        loop {
            let find = sqlx::query_scalar("SELECT id FROM events WHERE event_data ->> 'text' = $1");
            let found = find
                .bind(text)
                .fetch_optional(self.connection().await)
                .await;
            if let Ok(found) = self.judge(found).await {
                return found;
            }
        }
    }

    async fn connection(&mut self) -> &mut PgConnection {
        let mut connection = self.connection.take();
        while connection.is_none() {
            connection = self.servers.connect().await;
            if connection.is_none() {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
        self.connection.insert(connection.expect("it was made"))
    }

    /// Tells apart what may happen.
    ///
    /// # Panics
    ///
    /// On any other refusal.
    async fn judge<T>(&mut self, answer: Result<T, sqlx::Error>) -> Result<T, Failure> {
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if let sqlx::Error::Database(refusal) = &error {
            let code = refusal.code().unwrap_or_default();
            match code.as_ref() {
                "TD001" => return Err(Failure::Conflict),
                code if code.starts_with("57P") || code.starts_with("08") => {}
                _ => panic!("a SQL client was refused: {error}"),
            }
        }
        self.ledger.lost += 1;
        self.connection = None;
        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        Err(Failure::Lost)
    }
}

/// SQL clients at work.
pub struct SqlLoad {
    appended: watch::Receiver<usize>,
    stopping: CancellationToken,
    clients: JoinSet<SqlLedger>,
}

impl SqlLoad {
    /// Starts clients, each of which appends events to the same aggregates in turn, and after each fourth an entry.
    pub fn start(servers: &Servers, clients: usize, aggregates: &[Uuid]) -> SqlLoad {
        let (told, appended) = watch::channel(0);
        let told = Arc::new(told);
        let stopping = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let mut client = SqlClient::to(servers.clone());
            let (told, stopping) = (told.clone(), stopping.clone());
            let aggregates = aggregates.to_vec();
            tasks.spawn(async move {
                let mut call = 0;
                while !stopping.is_cancelled() {
                    let aggregate = aggregates[(number + call) % aggregates.len()];
                    let text = format!("SQL client {number}, call {call}");
                    client.append_event(aggregate, &text, call % 3 == 0).await;
                    if call % 4 == 3 {
                        let stream = format!("stream-{}", number % 4);
                        client.append_to_stream(&stream, &text).await;
                    }
                    told.send_modify(|appended| *appended += 1);
                    call += 1;
                }
                client.ledger
            });
        }
        SqlLoad {
            appended,
            stopping,
            clients: tasks,
        }
    }

    /// Waits until so many more events are stored.
    ///
    /// # Panics
    ///
    /// Where they are not within [`LIMIT`].
    pub async fn until_more_appended(&self, more: usize) {
        let mut appended = self.appended.clone();
        let enough = *appended.borrow() + more;
        let waited = appended.wait_for(|appended| *appended >= enough);
        let waited = tokio::time::timeout(LIMIT, waited).await;
        assert!(
            matches!(waited, Ok(Ok(_))),
            "SQL clients append {more} more"
        );
    }

    /// Lets every client end what it has begun.
    ///
    /// # Panics
    ///
    /// Where one does not within [`LIMIT`].
    pub async fn stop(self) -> Vec<SqlLedger> {
        self.stopping.cancel();
        let ended = tokio::time::timeout(LIMIT, self.clients.join_all()).await;
        ended.expect("every call ends")
    }
}
