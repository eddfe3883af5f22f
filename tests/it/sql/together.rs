//! Several servers and SQL clients that write the same log.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::{self, Connection, PgConnection, postgres::PgListener};
use serde_json::json;
use uuid::Uuid;

use super::{Sql, on_postgres, start};
use crate::support::client::LIMIT;
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::load::{Append, NewEvent, Told, aggregate_in};

on_postgres!(
    what_a_server_commits_behind_a_sql_client_is_rung_at_the_others,
    a_server_waits_for_locks_on_a_database_that_isolates_transactions_more,
);

async fn what_a_server_commits_behind_a_sql_client_is_rung_at_the_others(partitions: u8) {
    // Without projections, which commit and ring later.
    let server = start(partitions, |config| config.background.enabled = false).await;
    let (client, mut sql) = (server.client(), Sql::connect(&server).await);
    let mut rings = PgListener::connect(&server.database.url()).await.unwrap();
    rings.listen("tidings").await.unwrap();
    for _ in 0..10 {
        let aggregate = Uuid::new_v4();
        sql.run(&format!(
            "SELECT append_event('{aggregate}', 'load', 'counted', '{{}}')"
        ))
        .await
        .unwrap();
        Append::Event(NewEvent::new(aggregate, json!({})))
            .send_until_acknowledged(&client)
            .await;
        let place = format!(
            "SELECT partition_no || ':' || max(position) FROM events WHERE aggregate_id = '{aggregate}' GROUP BY partition_no"
        );
        let place = sql.value(&place).await.unwrap().unwrap();
        let (partition, position) = place.split_once(':').unwrap();
        let (partition, position): (usize, i64) =
            (partition.parse().unwrap(), position.parse().unwrap());
        // A ring begins with the heads of the events.
        let rung = async {
            loop {
                let ring = rings.recv().await.unwrap();
                let heads = ring.payload().split(' ').next().unwrap();
                let head: i64 = heads.split(',').nth(partition).unwrap().parse().unwrap();
                if head >= position {
                    return;
                }
            }
        };
        let rung = tokio::time::timeout(LIMIT, rung).await;
        assert!(rung.is_ok(), "nobody was told of {position}");
    }
}

async fn a_server_waits_for_locks_on_a_database_that_isolates_transactions_more(partitions: u8) {
    let database = Arc::new(Database::make(Engine::Postgres));
    let mut watcher = PgConnection::connect(&database.url()).await.unwrap();
    let alter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', \
         current_database()); END $$";
    sqlx::raw_sql(alter).execute(&mut watcher).await.unwrap();
    let server = TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
        config.background.enabled = false;
    })
    .await;
    // Of one partition: rows that were changed since would be seen for what they are.
    let append = || {
        let aggregate = aggregate_in(1);
        format!("SELECT append_event('{aggregate}', 'load', 'counted', '{{}}')")
    };
    let mut clients = [Sql::connect(&server).await, Sql::connect(&server).await];
    for client in &mut clients {
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED";
        client.run(begin).await.unwrap();
    }
    let [first, second] = &mut clients;

    // The server waits for one client, and would have to try again behind the other one.
    first.run(&append()).await.unwrap();
    let client = server.client();
    let of_server = tokio::spawn(async move {
        let event = Append::Event(NewEvent::new(aggregate_in(1), json!({})));
        event.send(&client).await
    });
    until(async || waiting(&mut watcher).await == 1).await;
    let append = append();
    let commit = async {
        until(async || waiting(&mut watcher).await == 2).await;
        first.run("COMMIT").await.unwrap();
    };
    let (appended, ()) = tokio::join!(second.run(&append), commit);
    appended.unwrap();
    until(async || of_server.is_finished() || waiting(&mut watcher).await == 1).await;
    second.run("COMMIT").await.unwrap();
    let told = of_server.await.unwrap();
    assert!(matches!(told, Told::Acknowledged(..)), "{told:?}");
}

/// How many sessions wait for a lock.
async fn waiting(watcher: &mut PgConnection) -> i64 {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    sqlx::query_scalar(waiting)
        .fetch_one(watcher)
        .await
        .unwrap()
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, wait).await;
    assert!(waited.is_ok(), "it does not come about");
}
