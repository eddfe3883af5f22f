//! Event handlers while the server is killed: none misses an event, and what is stored together with the checkpoint is done once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::support::client::LIMIT;
use crate::support::receiver::Receiver;

const KILLS: usize = 10;
const ACKNOWLEDGED_BEFORE_A_KILL: usize = 150;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const COPY: &str = "copy";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_no_handler_without_an_event_on_sqlite() {
    kill_again_and_again(Engine::Sqlite, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_no_handler_without_an_event_on_postgres() {
    kill_again_and_again(Engine::Postgres, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_no_handler_without_an_event_on_postgres_with_4_partitions() {
    kill_again_and_again(Engine::Postgres, 4).await;
}

async fn register(client: &Client, name: &str, function: &str) {
    let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
    let input = json!({ "name": name, "function": function });
    client
        .query(query, json!({ "input": input }))
        .await
        .unwrap();
}

/// Waits until all handlers have looked at every event, and no delivery is left.
async fn all_handled(client: &Client) {
    let query =
        "{ eventHandlers { name lagEvents deliveries { nodes { status attempts lastError } } } }";
    let started = std::time::Instant::now();
    loop {
        let mut handlers = client.query(query, json!({})).await.unwrap()["eventHandlers"].take();
        let handlers: Vec<Value> = handlers.as_array_mut().unwrap().drain(..).collect();
        let is_done = |handler: &Value| {
            handler["lagEvents"] == 0 && handler["deliveries"]["nodes"] == json!([])
        };
        if handlers.iter().all(is_done) {
            return;
        }
        assert!(started.elapsed() < 2 * LIMIT, "{handlers:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn kill_again_and_again(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let mut server = TestServer::on(&database.url())
        .arguments(["--partitions", &partitions.to_string(), "--lease", "150ms"])
        .arguments(["--webhook-allow-private", "--handler-retry-delay=20ms"])
        .arguments(["--handler-longest-delay=100ms", "--handler-attempts=1000"])
        .env("TIDINGS_WEBHOOK_SECRET", SECRET)
        .start();
    let client = Client::new(&server);
    let receiver = Receiver::start(|no, _| {
        let status = if no % 10 == 3 { 500 } else { 200 };
        (status, Duration::from_millis((no % 5) as u64))
    })
    .await;
    register(&client, "copies", &format!("publish:{COPY}")).await;
    register(&client, "hook", &receiver.url).await;
    if let Database::Postgres(database) = database.as_ref() {
        database.execute(
            "CREATE TABLE noted (no bigserial, event_id uuid, aggregate_id uuid); \
             CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE sql AS $$ \
             INSERT INTO noted (event_id, aggregate_id) VALUES (event, aggregate) $$",
        );
        register(&client, "notes", "sql:note").await;
    }
    let next = Arc::new(mixed());
    let mut ledger = Ledger::default();
    for _ in 0..rounds(KILLS) {
        let next = next.clone();
        let load = Load::start(&client, WRITERS, move |writer, call| next(writer, call));
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        server.kill9();
        load.until("a call that is cut off", |counts| counts.cut > 0)
            .await;
        ledger.add(load.stop().await);
        server.restart();
    }
    ledger.repeat_unknown(&client).await;
    all_handled(&client).await;
    let mut log = StoredLog::read_whole(&database.url()).await;

    let mut expected: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for event in &log.events {
        expected
            .entry(event.aggregate_id)
            .or_default()
            .push(event.id);
    }
    let of_event: HashMap<Uuid, Uuid> = log
        .events
        .iter()
        .map(|event| (event.id, event.aggregate_id))
        .collect();
    let of_aggregates = |ids: &mut dyn Iterator<Item = Uuid>| {
        let mut found: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
        for id in ids {
            found.entry(of_event[&id]).or_default().push(id);
        }
        found
    };
    let published = of_aggregates(&mut log.of_stream(COPY).iter().map(|entry| entry.event_id));
    assert_eq!(
        published, expected,
        "each event is published once, in order"
    );
    if let Database::Postgres(database) = database.as_ref() {
        let noted = database
            .text("SELECT coalesce(string_agg(event_id::text, ',' ORDER BY no), '') FROM noted")
            .await;
        let noted = of_aggregates(&mut noted.split(',').map(|id| id.parse().unwrap()));
        assert_eq!(noted, expected, "each event is noted once, in order");
    }
    let taken = receiver.taken();
    let mut first_times: Vec<Uuid> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for posted in &taken {
        let id: Uuid = posted.body["id"].as_str().unwrap().parse().unwrap();
        if seen.insert(id) {
            first_times.push(id);
        }
    }
    let given = of_aggregates(&mut first_times.into_iter());
    assert_eq!(
        given, expected,
        "each event is posted at least once, in order"
    );
    println!(
        "{:?}, {} events, {} posts taken",
        ledger.counts,
        log.events.len(),
        taken.len()
    );
    log.entries.retain(|entry| entry.stream != COPY);
    ledger.assert_kept_in(&log);
}
