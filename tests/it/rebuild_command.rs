//! `tidings rebuild`: folding read models anew from the command line.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, SqliteConnection};
use serde_json::json;
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::in_process::{Database, Engine};
use crate::support::load::{Append, NewEvent};
use crate::support::postgres::Cluster;
use crate::support::projected::StoredModels;
use crate::support::server::TestServer;

fn command(database_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDINGS_") {
            command.env_remove(name);
        }
    }
    command.args(["rebuild", "--database-url", database_url]);
    command
}

fn rebuild(database_url: &str, arguments: &[&str]) -> Output {
    command(database_url)
        .args(arguments)
        .output()
        .expect("the tidings binary starts")
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Appends three events to each of some aggregates of two types: their ids.
async fn fill(client: &Client) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..6).map(|_| Uuid::new_v4()).collect();
    for round in 0..3 {
        for (no, id) in ids.iter().enumerate() {
            let mut event = NewEvent::new(*id, json!({ "round": round }));
            event.aggregate_type = ["note", "page"][no % 2].to_owned();
            Append::Event(event).send_until_acknowledged(client).await;
        }
    }
    for id in &ids {
        let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 3, waitMs: 20000) { version } }";
        client.query(query, json!({ "id": id })).await.unwrap();
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_models_are_rebuilt_beside_a_server_on_postgres() {
    let database = Cluster::shared().create_database();
    let server = TestServer::on(&database.url)
        .arguments(["--partitions", "4"])
        .start();
    let client = Client::new(&server);
    let ids = fill(&client).await;
    let right = StoredModels::read(&database.url).await;
    let spoil = || database.execute("UPDATE read_models SET model_data = '{}'");
    let right_ones = async || {
        let stored = StoredModels::read(&database.url).await;
        let is_right = |id: &&Uuid| stored.models[*id].data == right.models[*id].data;
        ids.iter().filter(is_right).count()
    };
    let one = ids[2].to_string();
    for (arguments, count, events) in [
        (vec!["--aggregate", &one], 1, 3),
        (vec!["--type", "page"], 3, 9),
        (vec!["--type", "nothing"], 0, 0),
        (vec![], 6, 18),
    ] {
        spoil();
        let (succeeded, out, err) = said(&rebuild(&database.url, &arguments));
        assert!(succeeded, "{out}{err}");
        let expected = format!("Read models folded again: {count} (from {events} events, in ");
        assert!(out.starts_with(&expected), "{out}");
        assert!(
            err.contains(&format!("{events} events")),
            "lines where there is no terminal: {err}"
        );
        assert_eq!(right_ones().await, count);
    }
    // The server goes on with what it finds.
    let mut event = NewEvent::new(ids[0], json!({ "round": 3 }));
    event.aggregate_type = "note".to_owned();
    Append::Event(event).send_until_acknowledged(&client).await;
    let query =
        "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 4, waitMs: 20000) { data } }";
    let found = client.query(query, json!({ "id": ids[0] })).await.unwrap();
    assert_eq!(found["readModel"]["data"], json!({ "round": 3 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_models_of_a_file_are_rebuilt_while_no_server_has_it() {
    let database = Arc::new(Database::make(Engine::Sqlite));
    let mut server = TestServer::start(&database.url());
    fill(&Client::new(&server)).await;
    let (succeeded, _, err) = said(&rebuild(&database.url(), &[]));
    assert!(!succeeded);
    assert!(err.contains("in use by another tidings server"), "{err}");
    server.kill9();
    let (succeeded, out, err) = said(&rebuild(&database.url(), &[]));
    assert!(succeeded, "{err}");
    assert!(
        out.starts_with("Read models folded again: 6 (from 18 events"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_scopes_and_domains_are_refused() {
    let database = Arc::new(Database::make(Engine::Sqlite));
    let mut server = TestServer::start(&database.url());
    server.kill9();
    let folder = tempfile::tempdir().unwrap();
    let domain = folder.path().join("domain.toml");
    std::fs::write(
        &domain,
        "[aggregates.note.events.noted]\nstate = \"merge\"\n",
    )
    .unwrap();
    let nobody = Uuid::new_v4().to_string();
    for (arguments, problem) in [
        (vec!["--aggregate", &nobody], "there is no aggregate"),
        (
            vec!["--aggregate", "a", "--type", "b"],
            "cannot be used with",
        ),
        (vec!["--type", ""], "must not be empty"),
        (
            vec!["--domain", domain.to_str().unwrap()],
            "not the one in force",
        ),
        (vec!["--domain", "nowhere.toml"], "nowhere.toml"),
    ] {
        let (succeeded, out, err) = said(&rebuild(&database.url(), &arguments));
        assert!(!succeeded, "{arguments:?}: {out}");
        assert!(err.contains(problem), "{arguments:?}: {err}");
    }
}

/// The memory that `tidings rebuild` has taken at most, in KiB, until it has ended well.
async fn peak_of_rebuild(database_url: &str) -> u64 {
    let mut child = command(database_url).spawn().unwrap();
    let mut peak_kib = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(peak) = peak.and_then(|peak| peak.split_whitespace().next()) {
            peak_kib = peak.parse().unwrap();
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak_kib;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_of_very_many_events_is_rebuilt_page_by_page() {
    const EVENTS: i32 = 60_000;
    let database = Arc::new(Database::make(Engine::Sqlite));
    let mut server = TestServer::start(&database.url());
    let client = Client::new(&server);
    let id = Uuid::new_v4();
    let event = NewEvent::new(id, json!({ "first": true }));
    Append::Event(event).send_until_acknowledged(&client).await;
    server.kill9();
    let few = peak_of_rebuild(&database.url()).await;

    // 120 MB of events, past the server.
    let sql = format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {EVENTS} - 1)
         INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, event_metadata, version, created_at)
         SELECT partition_no, position + n, randomblob(16), aggregate_id, aggregate_type, event_type,
                '{{\"no\":' || n || ',\"x\":\"' || hex(zeroblob(1000)) || '\"}}', '{{}}', version + n, created_at
         FROM events CROSS JOIN n WHERE version = 1;
         UPDATE aggregates SET current_version = {EVENTS};"
    );
    let mut connection = SqliteConnection::connect(&database.url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let many = peak_of_rebuild(&database.url()).await;
    println!("{few} KiB for one event, {many} KiB for {EVENTS}");
    assert!(
        many < few + (48 << 10),
        "{few} KiB for one event, {many} KiB for {EVENTS}"
    );
    let stored = StoredModels::read(&database.url()).await;
    assert_eq!(stored.models[&id].version, EVENTS);
    assert_eq!(stored.models[&id].data["no"], EVENTS - 1);
    assert_eq!(stored.models[&id].data["first"], true);
}
