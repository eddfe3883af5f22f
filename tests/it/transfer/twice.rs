//! The move in two steps: what is changed, done or removed in the source between two exports is so in the target, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Statement};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{contents::Contents, count, deliver, pipe, run};
use crate::support::client::Client;
use crate::support::in_process::{Database, Engine};
use crate::support::log::StoredLog;
use crate::support::projected::StoredModels;
use crate::support::server::TestServer;

const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_export_brings_what_has_changed_to_postgres() {
    what_has_changed_arrives((Engine::Sqlite, 1), (Engine::Postgres, 4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_export_brings_what_has_changed_to_sqlite() {
    what_has_changed_arrives((Engine::Postgres, 4), (Engine::Sqlite, 4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_export_brings_what_has_changed_to_fewer_partitions() {
    what_has_changed_arrives((Engine::Postgres, 4), (Engine::Sqlite, 1)).await;
}

/// The events that are done by each reader of the log with a checkpoint, whatever their places are.
async fn done(url: &str) -> BTreeMap<String, BTreeSet<Uuid>> {
    let database = sea_orm::Database::connect(url).await.unwrap();
    let sql = "SELECT c.name, e.id FROM checkpoints c LEFT JOIN events e ON e.partition_no = c.partition_no \
               AND e.position <= c.position WHERE c.name = 'publish' OR c.name LIKE 'handler:%'";
    let statement = Statement::from_string(database.get_database_backend(), sql);
    let mut done: BTreeMap<String, BTreeSet<Uuid>> = BTreeMap::new();
    for row in database.query_all_raw(statement).await.unwrap() {
        let events = done.entry(row.try_get_by_index(0).unwrap()).or_default();
        events.extend(row.try_get_by_index::<Option<Uuid>>(1).unwrap());
    }
    database.close().await.unwrap();
    done
}

/// Deliveries of events that are there, of handlers that are there, and nothing else.
async fn assert_no_orphans(url: &str, contents: &Contents) {
    let deliveries = count(url, "SELECT CAST(count(*) AS bigint) FROM deliveries").await;
    assert_eq!(deliveries, contents.deliveries.len() as i64);
    for delivery in contents.deliveries.values() {
        let handler: Uuid = delivery[0].as_str().unwrap().parse().unwrap();
        assert!(contents.handlers.contains_key(&handler), "{delivery:?}");
    }
    for name in done(url).await.keys() {
        let Some(handler) = name.strip_prefix("handler:") else {
            continue;
        };
        let handler = handler.parse().unwrap();
        assert!(contents.handlers.contains_key(&handler), "{name}");
    }
}

async fn send(client: &Client, mutation: &str, input: Value) {
    client
        .query(mutation, json!({ "input": input }))
        .await
        .unwrap();
}

async fn register(client: &Client, name: &str) {
    let mutation = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { name } } }";
    let input = json!({ "name": name, "function": "http://127.0.0.1:1/", "eventTypes": ["no_event"], "startAfter": "" });
    send(client, mutation, input).await;
}

async fn note(client: &Client, aggregates: &[Uuid]) {
    let mutation =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { version } } }";
    for aggregate in aggregates {
        let input = json!({ "aggregateId": aggregate, "aggregateType": "note", "type": "noted", "data": {} });
        send(client, mutation, input).await;
    }
}

async fn write_read_model(client: &Client, aggregate: Uuid, version: i32) {
    let mutation =
        "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }";
    let input = json!({ "aggregateId": aggregate, "aggregateType": "note", "data": { "v": version }, "version": version });
    send(client, mutation, input).await;
}

/// Waits until all that follows the log has come to its end, and ends the server.
async fn settle_and_stop(mut server: TestServer, client: &Client, url: &str) {
    let settled = async {
        loop {
            let query = "{ eventHandlers { lagEvents isActive } }";
            let answer = client.query(query, json!({})).await.unwrap();
            let handlers = answer["eventHandlers"].as_array().unwrap().clone();
            let is_there =
                |handler: &Value| handler["lagEvents"] == 0 || handler["isActive"] == false;
            if handlers.iter().all(is_there) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled)
        .await
        .expect("handlers come to the end");
    StoredModels::read_settled(url).await;
    server.kill9();
}

async fn what_has_changed_arrives(from: (Engine, u8), to: (Engine, u8)) {
    let (source, target) = (Database::make(from.0), Database::make(to.0));
    let url = source.url();
    let partitions = from.1.to_string();
    let start = || {
        TestServer::on(&url)
            .arguments(["--partitions", &partitions, "--webhook-allow-private"])
            .env("TIDINGS_WEBHOOK_SECRET", SECRET)
            .start()
    };
    let server = start();
    let client = Client::new(&server);
    for handler in ["goes-on", "is-removed", "is-stopped"] {
        register(&client, handler).await;
    }
    let notes: Vec<Uuid> = (0..12).map(|_| Uuid::new_v4()).collect();
    for _ in 0..3 {
        note(&client, &notes).await;
    }
    let (changed, removed, added) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    write_read_model(&client, changed, 1).await;
    write_read_model(&client, removed, 1).await;
    let command = Uuid::new_v4();
    let create = "mutation($input: CreateCommandInput!) { createCommand(input: $input) { command { status } } }";
    let input = json!({ "id": command, "aggregateId": Uuid::new_v4(), "type": "create_user", "data": { "username": "a" }, "notBefore": "2999-01-01T00:00:00Z" });
    send(&client, create, input).await;
    settle_and_stop(server, &client, &url).await;
    let all = "1, 2, 3";
    let given = ["goes-on", "is-removed", "is-stopped"].map(|name| deliver(from.0, name, all));
    run(&url, &given).await;
    let is_fewer = to.1 < from.1;
    pipe(&url, &target.url(), to.1).succeed();
    let before = Contents::read(&url).await;
    assert_eq!(before.deliveries.len(), 3 * 3 * notes.len());
    assert_eq!(Contents::read(&target.url()).await, before);
    assert_no_orphans(&target.url(), &before).await;
    assert_eq!(done(&target.url()).await, done(&url).await);

    // The source goes on.
    let due = "UPDATE commands SET not_before = NULL".to_owned();
    run(&url, &[due]).await;
    let server = start();
    let client = Client::new(&server);
    let remove = "mutation($input: RemoveEventHandlerInput!) { removeEventHandler(input: $input) { removed } }";
    send(&client, remove, json!({ "name": "is-removed" })).await;
    let stop = "mutation($input: SetEventHandlerActiveInput!) { setEventHandlerActive(input: $input) { eventHandler { isActive } } }";
    send(
        &client,
        stop,
        json!({ "name": "is-stopped", "isActive": false }),
    )
    .await;
    register(&client, "is-new").await;
    note(&client, &notes).await;
    write_read_model(&client, changed, 2).await;
    write_read_model(&client, added, 1).await;
    let query = "query($id: UUID!) { command(id: $id) { status } }";
    let processed = async {
        while client.query(query, json!({ "id": command })).await.unwrap()["command"]["status"]
            != "PROCESSED"
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), processed)
        .await
        .expect("the command is processed");
    settle_and_stop(server, &client, &url).await;
    let handler =
        |name: &str| format!("(SELECT id FROM event_handlers WHERE handler_name = '{name}')");
    let changes = [
        // Some are done, some are given up; and one handler was made to try again what it has not come to.
        format!(
            "DELETE FROM deliveries WHERE handler_id = {} AND status = 'RETRYING'",
            handler("goes-on")
        ),
        format!(
            "UPDATE deliveries SET status = 'DEAD' WHERE handler_id = {} AND status = 'WAITING'",
            handler("goes-on")
        ),
        deliver(from.0, "is-new", "2, 3, 4"),
        "DELETE FROM read_models WHERE aggregate_id IN (SELECT aggregate_id FROM read_models WHERE version = 1 \
                 AND source = 'EXTERNAL' ORDER BY created_at LIMIT 1)".to_owned(),
        format!(
            "UPDATE checkpoints SET position = position / 2 WHERE name = 'handler:' || {}",
            match from.0 {
                Engine::Postgres => format!("CAST({} AS text)", handler("is-stopped")),
                Engine::Sqlite => {
                    let hex = format!("lower(hex({}))", handler("is-stopped"));
                    let part = |from, chars| format!("substr({hex}, {from}, {chars})");
                    [
                        part(1, 8),
                        part(9, 4),
                        part(13, 4),
                        part(17, 4),
                        part(21, 12),
                    ]
                    .join(" || '-' || ")
                }
            }
        ),
    ];
    run(&url, &changes).await;
    let after = Contents::read(&url).await;
    assert_ne!(after, before);
    assert!(!after.read_models.contains_key(&removed) && after.read_models.contains_key(&added));
    let source_done = done(&url).await;
    let is_behind = |events: &&BTreeSet<Uuid>| events.len() < after.events.len();
    assert_eq!(
        source_done.values().filter(is_behind).count(),
        1,
        "one handler stands still"
    );

    pipe(&url, &target.url(), to.1).succeed();
    let mut there = Contents::read(&target.url()).await;
    assert_no_orphans(&target.url(), &there).await;
    let target_done = done(&target.url()).await;
    if is_fewer {
        // What is given anew, for its place in the one order is behind an event that is not done, has lost its delivery.
        for (name, events) in &source_done {
            assert!(
                events.is_superset(&target_done[name]),
                "nothing is left out"
            );
        }
        let is_kept = |delivery: &Vec<Value>| {
            let name = format!("handler:{}", delivery[0].as_str().unwrap());
            target_done[&name].contains(&delivery[1].as_str().unwrap().parse().unwrap())
        };
        assert!(
            there.deliveries.values().all(is_kept),
            "nothing is tried twice"
        );
        there.deliveries.clear();
        let mut kept = after;
        let lost = kept.deliveries.values().filter(|row| !is_kept(row)).count();
        assert!(lost > 0, "some are");
        kept.deliveries.clear();
        assert_eq!(there, kept);
    } else {
        assert_eq!(there, after);
        assert_eq!(target_done, source_done);
    }
    StoredLog::read_whole(&target.url()).await;
    let server = TestServer::on(&target.url())
        .arguments(["--webhook-allow-private"])
        .env("TIDINGS_WEBHOOK_SECRET", SECRET)
        .start();
    let client = Client::new(&server);
    settle_and_stop(server, &client, &target.url()).await;
}
