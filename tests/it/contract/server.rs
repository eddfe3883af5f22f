//! The query server.

use serde_json::json;

use super::{Contract, by_id};
use crate::support::in_process::Engine;

cases!(
    the_server_tells_what_it_is,
    the_head_taken_before_a_list_misses_nothing,
    the_head_stays_where_it_is_after_a_restart,
);

async fn the_server_tells_what_it_is(contract: Contract) {
    let query = "{ server { version database partitions headCursor startedAt } }";
    let server = contract.ask(query, json!({})).await["server"].take();
    let database = match contract.engine {
        Engine::Sqlite => "sqlite",
        Engine::Postgres => "postgres",
    };
    assert_eq!(server["database"], database);
    assert_eq!(server["partitions"], contract.partitions);
    assert_eq!(server["version"], env!("CARGO_PKG_VERSION"));
    assert!(server["startedAt"].as_str().unwrap().ends_with('Z'));
    assert!(!server["headCursor"].as_str().unwrap().is_empty());
}

async fn the_head_taken_before_a_list_misses_nothing(contract: Contract) {
    let old = contract.fill(5).await;
    let head = contract.head().await;
    assert_eq!(by_id(contract.all_events().await), by_id(old));
    let new = contract.fill(7).await;

    let query = "subscription($after: String) { events(after: $after) { event { id } } }";
    let mut subscription = contract
        .client
        .subscribe(query, json!({ "after": head }))
        .await;
    let updates = subscription.take("events", 7).await;
    let mut seen: Vec<_> = updates
        .iter()
        .map(|update| update["event"]["id"].to_string())
        .collect();
    let mut expected: Vec<_> = new.iter().map(|event| event["id"].to_string()).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);

    let query = "query($after: String) { events(after: $after) { nodes { id } } }";
    let data = contract.ask(query, json!({ "after": head })).await;
    assert_eq!(data["events"]["nodes"].as_array().unwrap().len(), 7);
}

async fn the_head_stays_where_it_is_after_a_restart(contract: Contract) {
    let old = contract.fill(5).await;
    let head = contract.newest_place().await;
    let partitions = contract.partitions;
    let database = contract.server.stop().await;
    let server = crate::support::in_process::TestServer::on(database, |_| {}).await;
    let contract = Contract {
        engine: contract.engine,
        partitions,
        client: server.client(),
        server,
    };
    assert_eq!(contract.newest_place().await, head);
    assert_eq!(by_id(contract.all_events().await), by_id(old));
}
