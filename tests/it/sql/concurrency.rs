//! SQL clients beside the server's own writers: versions and positions stay 1 … n.

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::{Sql, literal, on_postgres, start};
use crate::support::load::{Append, Load, NewEvent};
use crate::support::log::StoredLog;

on_postgres!(
    sql_clients_beside_the_servers_writers_leave_no_gap,
    of_sql_clients_with_the_same_expected_version_one_wins,
    a_transaction_that_reads_by_an_old_snapshot_is_told_to_try_again,
    a_command_that_many_process_at_once_is_processed_once,
);

const CLIENTS: usize = 8;

async fn sql_clients_beside_the_servers_writers_leave_no_gap(partitions: u8) {
    const EACH: usize = 60;
    const AGGREGATES: usize = 10;
    let server = start(partitions, |_| {}).await;
    let ids: Vec<Uuid> = (0..AGGREGATES).map(|_| Uuid::new_v4()).collect();
    let targets = ids.clone();
    let load = Load::start_until(&server.client(), CLIENTS, move |writer, call| {
        (call < EACH).then(|| {
            let data = json!({ "writer": writer, "call": call });
            match call % 3 {
                0 => Append::entry(format!("stream {}", call % 5), data),
                _ => Append::Event(NewEvent::new(targets[(call + writer) % AGGREGATES], data)),
            }
        })
    });
    let sql_clients = (0..CLIENTS).map(|writer| {
        let (ids, server) = (&ids, &server);
        async move {
            let mut client = Sql::connect(server).await;
            for call in 0..EACH {
                let (key, stream) = (ids[(call + writer) % AGGREGATES], call % 5);
                let statement = match call % 3 {
                    0 => format!("SELECT append_to_stream('stream {stream}', 'entry {writer} {call}', 'counted', '{{}}')"),
                    1 => format!("SELECT append_event('{key}', 'load', 'counted', '{{}}')"),
                    _ => format!("SELECT append_event('{key}'::uuid, 'load', 'counted', '{{}}')"),
                };
                client.run(&statement).await.unwrap();
            }
        }
    });
    join_all(sql_clients).await;
    let ledger = load.finish().await;
    assert_eq!(
        ledger.counts.acknowledged,
        CLIENTS * EACH,
        "{:?}",
        ledger.counts
    );

    // Whole: no gap, no repeat.
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), 2 * CLIENTS * EACH * 2 / 3);
    assert_eq!(log.entries.len(), 2 * CLIENTS * EACH / 3);
}

async fn of_sql_clients_with_the_same_expected_version_one_wins(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    for round in 0..10 {
        let rivals = (0..CLIENTS).map(|_| async {
            let mut client = Sql::connect(&server).await;
            let append =
                format!("SELECT append_event('race {round}', 'race', 'run', '{{}}', '{{}}', 0)");
            client.run(&append).await
        });
        let (won, lost): (Vec<_>, Vec<_>) =
            join_all(rivals).await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, CLIENTS - 1));
        for refused in lost.into_iter().map(Result::unwrap_err) {
            assert_eq!(refused.code, "TD001");
            assert_eq!(refused.message, "the aggregate is at version 1, not 0");
        }
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), 10);
}

async fn a_transaction_that_reads_by_an_old_snapshot_is_told_to_try_again(partitions: u8) {
    let server = start(partitions, |_| {}).await;
    let mut client = Sql::connect(&server).await;
    let mut other = Sql::connect(&server).await;
    for (isolation, append) in [
        ("REPEATABLE READ", "append_event('a', 'load', 'x', '{}')"),
        (
            "SERIALIZABLE",
            "append_to_stream('s', gen_random_uuid(), 'x', '{}')",
        ),
    ] {
        let append = format!("SELECT {append}");
        client.run(&append).await.unwrap();
        client
            .run(&format!("BEGIN ISOLATION LEVEL {isolation}; SELECT 1"))
            .await
            .unwrap();
        other.run(&append).await.unwrap();
        let refused = client.refused(&append).await;
        assert_eq!(refused.code, "40001", "{refused:?}");
        client.run("ROLLBACK").await.unwrap();
        // Alone it is as good as any.
        client
            .run(&format!(
                "BEGIN ISOLATION LEVEL {isolation}; {append}; COMMIT"
            ))
            .await
            .unwrap();
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!((log.events.len(), log.entries.len()), (3, 3));
}

async fn a_command_that_many_process_at_once_is_processed_once(partitions: u8) {
    let server = start(partitions, |config| config.background.enabled = false).await;
    let mut client = Sql::connect(&server).await;
    for round in 0..10 {
        let user = literal(&format!("user {round}"));
        let create =
            format!("SELECT create_command({user}, 'create_user', '{{\"username\": \"ada\"}}')");
        let id = client.value(&create).await.unwrap().unwrap();
        let processing = (0..CLIENTS).map(|_| async {
            let mut client = Sql::connect(&server).await;
            let process = format!("SELECT process_command('{id}')");
            client.value(&process).await.unwrap()
        });
        for answer in join_all(processing).await {
            assert_eq!(answer.as_deref(), Some("true"));
        }
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!((log.events.len(), log.commands.len()), (10, 10));
}
