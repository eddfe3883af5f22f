//! Several servers and SQL clients that write the same log.

use std::sync::Arc;

use sea_orm::sqlx::{self, Connection, PgConnection, postgres::PgListener};
use serde_json::json;
use uuid::Uuid;

use super::{Sql, on_postgres, start};
use crate::support::client::LIMIT;
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::load::{Append, Ledger, Load, NewEvent};
use crate::support::log::StoredLog;

on_postgres!(
    what_a_server_commits_behind_a_sql_client_is_rung_at_the_others,
    servers_write_on_a_database_that_isolates_transactions_more,
);

async fn what_a_server_commits_behind_a_sql_client_is_rung_at_the_others(partitions: u8) {
    let server = start(partitions, |_| {}).await;
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

async fn servers_write_on_a_database_that_isolates_transactions_more(partitions: u8) {
    let database = Arc::new(Database::make(Engine::Postgres));
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let alter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''serializable''', \
         current_database()); END $$";
    sqlx::raw_sql(alter).execute(&mut connection).await.unwrap();
    let start = async || {
        TestServer::on(database.clone(), |config| {
            config.database.partitions = Some(partitions);
        })
        .await
    };
    let servers = [start().await, start().await];
    let aggregate = Uuid::new_v4();
    let loads = servers.each_ref().map(|server| {
        Load::start(&server.client(), 4, move |_, _| {
            Append::Event(NewEvent::new(aggregate, json!({})))
        })
    });
    let mut ledger = Ledger::default();
    for load in &loads {
        load.until_more_acknowledged(100).await;
    }
    for load in loads {
        ledger.add(load.stop().await);
    }
    let counts = &ledger.counts;
    assert_eq!(
        (counts.failed(), counts.refused),
        (0, 0),
        "{:?}",
        ledger.reasons
    );
    ledger.assert_kept_in(&StoredLog::read_whole(&database.url()).await);
}
