//! What operators see: /metrics, logs, traces, and the documents about them.

mod documents;
mod logs;
mod metrics;
mod receiver;
mod requests;
mod traces;

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::sqlx::{self, Connection, Executor, PgConnection};

use crate::support::in_process::{Database, TestServer};

/// The metrics of a server as text.
async fn scrape(server: &TestServer) -> String {
    let response = reqwest::get(format!("{}/metrics", server.url))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    response.text().await.unwrap()
}

/// A transaction of somebody else's that has run a statement, and holds its locks until it is dropped.
async fn holding(database: &Database, statement: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute("BEGIN").await.unwrap();
    let statement = sqlx::AssertSqlSafe(statement.to_owned());
    connection.execute(statement).await.unwrap();
    connection
}

/// Each sample by its name with its labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The names of the metrics that are described.
fn names(text: &str) -> BTreeSet<String> {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    described
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}
