//! The guide's functions in SQL on PostgreSQL, beside a server on the same database.

mod commands;
mod concurrency;
mod functions;
mod handlers;
mod hardening;
mod python;
mod registrations;
mod together;
mod visible;

use std::sync::Arc;

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection};
use serde_json::Value;
use tidings::config::Config;

use crate::support::in_process::{Database, Engine, TestServer};

/// Makes two tests of each case, with 1 and with 4 partitions.
macro_rules! on_postgres {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_1() {
                super::$case(1).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_4() {
                super::$case(4).await;
            }
        }
    )+};
}
use on_postgres;

/// A server on an empty PostgreSQL database.
async fn start(partitions: u8, configure: impl FnOnce(&mut Config)) -> TestServer {
    let database = Arc::new(Database::make(Engine::Postgres));
    TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
        configure(config);
    })
    .await
}

/// What a SQL client is told when it is refused.
#[derive(Debug)]
struct Refused {
    code: String,
    message: String,
}

/// A session of a SQL client, as the database's own defaults make it.
struct Sql(PgConnection);

impl Sql {
    async fn connect(server: &TestServer) -> Self {
        Self(PgConnection::connect(&server.database.url()).await.unwrap())
    }

    /// Runs statements, whatever they answer.
    async fn run(&mut self, statements: &str) -> Result<(), Refused> {
        let ran = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut self.0);
        ran.await.map(drop).map_err(refused)
    }

    /// The one value of the one row that a query answers, as text; none where it is NULL.
    async fn value(&mut self, query: &str) -> Result<Option<String>, Refused> {
        let query = format!("SELECT (SELECT * FROM ({query}) AS v(value))::text");
        sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut self.0)
            .await
            .map_err(refused)
    }

    /// The rows that a query answers, each as an object.
    async fn rows(&mut self, query: &str) -> Vec<Value> {
        let query =
            format!("SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]')::text FROM ({query}) AS r");
        let rows: String = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut self.0)
            .await
            .unwrap();
        serde_json::from_str(&rows).unwrap()
    }

    /// The refusal of a statement that is to be refused.
    async fn refused(&mut self, statement: &str) -> Refused {
        match self.run(statement).await {
            Ok(()) => panic!("{statement} was to be refused"),
            Err(refused) => refused,
        }
    }
}

fn refused(error: sqlx::Error) -> Refused {
    match error {
        sqlx::Error::Database(error) => Refused {
            code: error.code().unwrap_or_default().into_owned(),
            message: error.message().to_owned(),
        },
        other => panic!("no answer of the database: {other}"),
    }
}

/// A text as a literal.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
