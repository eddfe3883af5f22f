//! What lists cost: look-ups inside them are batched, so a page is a fixed number of statements whatever its length.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::with;
use crate::contract::database::execute;
use crate::support::in_process::{Database, Engine, TestServer};

/// A server with 100 aggregates of three events each, the last of them caused by a command, and 100 streams of two entries that lead to events.
async fn filled(engine: Engine, partitions: u8) -> TestServer {
    let database = Arc::new(Database::make(engine));
    let server = TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
        // Its statements would be counted too.
        config.background.enabled = false;
    })
    .await;
    let client = server.client();
    let mut ids = Vec::new();
    for version in 0..2 {
        let events: Vec<Value> = (0..100)
            .map(|no| {
                let event = with(super::event(), "id", json!(Uuid::new_v4()));
                if version == 0 {
                    ids.push((event["id"].clone(), event["aggregateId"].clone()));
                    event
                } else {
                    with(event, "aggregateId", ids[no].1.clone())
                }
            })
            .collect();
        let query = "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }";
        client
            .query(query, json!({ "input": { "events": events } }))
            .await
            .unwrap();
    }
    for (no, (id, _)) in ids.iter().enumerate() {
        let query = "mutation($a: AppendToStreamInput!, $b: AppendToStreamInput!) { appendToStream(input: $a) { duplicate } other: appendToStream(input: $b) { duplicate } }";
        let one = json!({ "streamName": "all", "eventId": id, "type": "x", "data": {} });
        let other = with(one.clone(), "streamName", json!(format!("stream {no}")));
        client
            .query(query, json!({ "a": one, "b": other }))
            .await
            .unwrap();
    }
    for (_, aggregate) in &ids {
        let query = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { status } } }";
        let input =
            json!({ "aggregateId": aggregate, "type": "update_user", "data": { "email": "a" } });
        let data = client
            .query(query, json!({ "input": input }))
            .await
            .unwrap();
        assert_eq!(data["executeCommand"]["command"]["status"], "PROCESSED");
    }
    // The read models of all of them, which nobody else brings up to date here.
    let query = "mutation { rebuildReadModels(input: {}) { count } }";
    let rebuilt = client.query(query, json!({})).await.unwrap();
    assert_eq!(rebuilt["rebuildReadModels"]["count"], 100);
    add_handlers(&server, engine).await;
    server
}

/// 100 handlers, ten of which are wanted with "of_10", and all with "of_100"; each with a dead delivery of each event.
async fn add_handlers(server: &TestServer, engine: Engine) {
    for number in 0..100 {
        let types = if number < 10 {
            json!(["of_10", "of_100"])
        } else {
            json!(["of_100"])
        };
        let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
        let input = json!({ "name": format!("h{number}"), "function": "log", "eventTypes": types });
        let client = server.client();
        let registered = client.query(query, json!({ "input": input })).await;
        registered.unwrap();
    }
    let new_id = match engine {
        Engine::Sqlite => "randomblob(16)",
        Engine::Postgres => "gen_random_uuid()",
    };
    let sql = format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at) \
         SELECT e.partition_no, {new_id}, h.id, e.position, e.aggregate_id, 'DEAD', 8, e.created_at \
         FROM event_handlers h CROSS JOIN events e"
    );
    execute(&server.database, sql).await.unwrap();
}

/// The statements of a list of so many, and how many things it answered. The server itself asks something every some
/// seconds, and not twice at once.
async fn statements(server: &TestServer, query: &str, first: usize) -> (u64, usize) {
    let one = statements_once(server, query, first).await;
    one.min(statements_once(server, query, first).await)
}

async fn statements_once(server: &TestServer, query: &str, first: usize) -> (u64, usize) {
    let before = server.app.store().statements_read();
    let data = server
        .client()
        .query(
            query,
            json!({ "first": first, "type": format!("of_{first}") }),
        )
        .await
        .unwrap();
    let count = server.app.store().statements_read() - before;
    (count, data.to_string().matches("\"id\"").count())
}

/// Lists, and how many statements are enough for them on one partition: what must not grow with the list.
const LISTS: [(&str, u64); 12] = [
    (
        "query($first: Int!) { events(first: $first) { nodes { id } } }",
        2,
    ),
    (
        "query($first: Int!) { events(first: $first) { nodes { id aggregate { id } } } }",
        3,
    ),
    (
        "query($first: Int!) { events(first: $first) { edges { node { id aggregate { id version events(first: 5) { id } } } } } }",
        4,
    ),
    (
        "query($first: Int!) { aggregates(first: $first) { nodes { id events(first: 5) { id } } } }",
        2,
    ),
    (
        "query($first: Int!) { aggregates(first: $first) { nodes { id events(first: 5, order: NEWEST_FIRST) { id aggregate { id } } } } }",
        3,
    ),
    (
        "query($first: Int!) { aggregates(first: $first) { nodes { id readModel { data } } } }",
        2,
    ),
    (
        "query($first: Int!) { readModels(first: $first) { nodes { data aggregate { id readModel { version } } } } }",
        3,
    ),
    (
        "query($first: Int!) { commands(first: $first) { nodes { id events { id } aggregate { id } } } }",
        3,
    ),
    (
        "query($first: Int!) { aggregates(first: $first) { nodes { id commands(first: 5) { nodes { id events { id } } } } } }",
        3,
    ),
    (
        "query($first: Int!) { stream(name: \"all\") { entries(first: $first) { position event { id } } } }",
        3,
    ),
    (
        "query($first: Int!) { streams(first: $first) { nodes { name entries(first: 1) { event { id aggregate { id } } } } } }",
        4,
    ),
    (
        "query($type: String!) { eventHandlers(eventType: $type) { id lagEvents deliveries(first: 2) { nodes { id event { id } } } } }",
        5,
    ),
];

async fn a_page_is_a_fixed_number_of_statements(engine: Engine, partitions: u8) {
    let server = filled(engine, partitions).await;
    for (query, enough) in LISTS {
        let (few, some) = statements(&server, query, 10).await;
        let (many, more) = statements(&server, query, 100).await;
        assert!(
            some >= 10 && more >= 10 * some - 10,
            "{query}: {some} and {more}"
        );
        assert_eq!(few, many, "{query}");
        // A list looks into each partition.
        let enough = enough + u64::from(partitions) - 1;
        assert!(
            many <= enough,
            "{query}: {many} statements, {enough} are enough"
        );
    }
}

#[tokio::test]
async fn a_page_is_a_fixed_number_of_statements_on_sqlite() {
    a_page_is_a_fixed_number_of_statements(Engine::Sqlite, 1).await;
    a_page_is_a_fixed_number_of_statements(Engine::Sqlite, 4).await;
}

#[tokio::test]
async fn a_page_is_a_fixed_number_of_statements_on_postgres() {
    a_page_is_a_fixed_number_of_statements(Engine::Postgres, 1).await;
    a_page_is_a_fixed_number_of_statements(Engine::Postgres, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_page_is_a_fixed_number_of_statements_on_several_threads() {
    a_page_is_a_fixed_number_of_statements(Engine::Sqlite, 1).await;
    a_page_is_a_fixed_number_of_statements(Engine::Postgres, 4).await;
}
