//! Event handlers while the server is killed: none misses an event, and what is stored together with the checkpoint is done once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::support::client::LIMIT;
use crate::support::receiver::Receiver;

const KILLS: usize = 10;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const COPY: &str = "copy";

on_databases!(
    kill_again_and_again:
    a_killed_server_leaves_no_handler_without_an_event_on_sqlite(Sqlite, 1),
    a_killed_server_leaves_no_handler_without_an_event_on_postgres(Postgres, 1),
    a_killed_server_leaves_no_handler_without_an_event_on_postgres_with_4_partitions(Postgres, 4),
);

/// A server that may post to this machine, and soon goes on where the one before it was killed.
fn serve(database_url: &str, partitions: u8) -> TestServer {
    TestServer::on(database_url)
        .arguments(["--partitions", &partitions.to_string(), "--lease", "150ms"])
        .arguments(["--webhook-allow-private", "--handler-retry-delay=20ms"])
        .arguments(["--handler-longest-delay=100ms", "--handler-attempts=1000"])
        .env("TIDINGS_WEBHOOK_SECRET", SECRET)
        .start()
}

async fn register(client: &Client, name: &str, function: &str) {
    let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
    let input = json!({ "name": name, "function": function });
    client
        .query(query, json!({ "input": input }))
        .await
        .unwrap();
}

/// A handler whose function in SQL writes down what it is given, where there are such functions.
async fn register_notes(database: &Database, client: &Client) {
    if let Database::Postgres(database) = database {
        database.execute(
            "CREATE TABLE noted (no bigserial, event_id uuid, aggregate_id uuid); \
             CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE sql AS $$ \
             INSERT INTO noted (event_id, aggregate_id) VALUES (event, aggregate) $$",
        );
        register(client, "notes", "sql:note").await;
    }
}

/// Events in their order, by their aggregates.
fn of_aggregates(
    log: &StoredLog,
    ids: impl IntoIterator<Item = Uuid>,
) -> BTreeMap<Uuid, Vec<Uuid>> {
    let of_event: HashMap<Uuid, Uuid> = log
        .events
        .iter()
        .map(|event| (event.id, event.aggregate_id))
        .collect();
    let mut found: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for id in ids {
        found.entry(of_event[&id]).or_default().push(id);
    }
    found
}

/// Each event is published and noted once, in order. All events, by their aggregates.
async fn assert_done_once(database: &Database, log: &StoredLog) -> BTreeMap<Uuid, Vec<Uuid>> {
    let expected = of_aggregates(log, log.events.iter().map(|event| event.id));
    let published = log.of_stream(COPY).into_iter().map(|entry| entry.event_id);
    assert_eq!(
        of_aggregates(log, published),
        expected,
        "each event is published once, in order"
    );
    if let Database::Postgres(database) = database {
        let noted = database
            .text("SELECT coalesce(string_agg(event_id::text, ',' ORDER BY no), '') FROM noted")
            .await;
        let noted = noted.split(',').map(|id| id.parse().unwrap());
        assert_eq!(
            of_aggregates(log, noted),
            expected,
            "each event is noted once, in order"
        );
    }
    expected
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
    let mut server = serve(&database.url(), partitions);
    let client = Client::new(&server);
    let receiver = Receiver::start(|no, _| {
        let status = if no % 10 == 3 { 500 } else { 200 };
        (status, Duration::from_millis((no % 5) as u64))
    })
    .await;
    register(&client, "copies", &format!("publish:{COPY}")).await;
    register(&client, "hook", &receiver.url).await;
    register_notes(&database, &client).await;
    let ledger = kill_during_load(&mut server, &client, KILLS).await;
    all_handled(&client).await;
    let mut log = StoredLog::read_whole(&database.url()).await;

    let expected = assert_done_once(&database, &log).await;
    let taken = receiver.taken();
    let mut first_times: Vec<Uuid> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for posted in &taken {
        let id: Uuid = posted.body["id"].as_str().unwrap().parse().unwrap();
        if seen.insert(id) {
            first_times.push(id);
        }
    }
    let given = of_aggregates(&log, first_times);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_partitions_over_does_what_is_left_once() {
    const TAKEOVERS: usize = 4;
    let database = Arc::new(Database::make(Engine::Postgres));
    let mut servers = [0, 1].map(|_| serve(&database.url(), 4));
    let clients = servers.each_ref().map(Client::new);
    register(&clients[0], "copies", &format!("publish:{COPY}")).await;
    register_notes(&database, &clients[0]).await;
    let next = Arc::new(mixed());
    let mut ledger = Ledger::default();
    for round in 0..TAKEOVERS {
        // All partitions are one server's at the end of a round, so each kill takes some from it.
        let (killed, left) = (round % 2, 1 - round % 2);
        let next = next.clone();
        let client = &clients[left];
        let load = Load::start(client, WRITERS, move |writer, call| next(writer, call));
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        servers[killed].kill9();
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        ledger.add(load.stop().await);
        all_handled(client).await;
        servers[killed].restart();
    }
    ledger.repeat_unknown(&clients[0]).await;
    all_handled(&clients[0]).await;
    let mut log = StoredLog::read_whole(&database.url()).await;
    assert_done_once(&database, &log).await;
    log.entries.retain(|entry| entry.stream != COPY);
    ledger.assert_kept_in(&log);
}
