//! Clients that append by the guide's functions in SQL, as fast as they are answered.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use uuid::Uuid;

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

/// A client that connects again where its connection is lost.
pub struct SqlClient {
    url: String,
    connection: Option<PgConnection>,
    pub ledger: SqlLedger,
}

/// Why a statement failed.
enum Failure {
    Conflict,
    Lost,
}

impl SqlClient {
    pub fn to(url: &str) -> SqlClient {
        SqlClient {
            url: url.to_owned(),
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
            match PgConnection::connect(&self.url).await {
                Ok(made) => connection = Some(made),
                Err(_) => tokio::time::sleep(PAUSE_AFTER_FAILURE).await,
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
                "TD001" | "40P01" | "40001" => return Err(Failure::Conflict),
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
