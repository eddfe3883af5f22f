//! Deciders and states that are at fault: tries with growing delays, FAILED after the last, and nobody else is held up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{Domain, Timestamp};
use uuid::Uuid;

use super::{command, create, execute, until, until_settled};
use crate::support::client::Client;
use crate::support::deciders::{Accounts, Machines};
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::on_every_database;

on_every_database!(
    a_command_that_stumbles_is_tried_again_with_growing_delays,
    a_command_fails_with_the_reason_after_the_last_try,
    a_command_that_is_tried_again_holds_back_the_later_ones_of_its_aggregate,
    a_command_whose_type_has_gone_fails,
    a_state_that_cannot_be_folded_fails_pending_commands_and_refuses_others,
    long_and_large_histories_are_loaded_whole,
);

async fn start(domain: Domain, database: &Arc<Database>, partitions: u8) -> TestServer {
    TestServer::with_domain(database.clone(), domain, |config| {
        config.database.partitions = Some(partitions);
        config.commands.attempts = 3;
        config.commands.retry_delay = Duration::from_millis(60);
    })
    .await
}

fn run(machine: Uuid) -> Value {
    json!({ "aggregateId": machine, "type": "run_machine", "data": {} })
}

fn stop(machine: Uuid) -> Value {
    json!({ "aggregateId": machine, "type": "stop_machine", "data": {} })
}

fn micros(instant: &Value) -> i64 {
    Timestamp::parse(instant.as_str().unwrap())
        .unwrap()
        .as_micros()
}

async fn append(client: &Client, aggregate: Uuid, kind: &str, event: &str, data: Value) {
    let query = "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate } }";
    let input =
        json!({ "aggregateId": aggregate, "aggregateType": kind, "type": event, "data": data });
    client
        .query(query, json!({ "input": input }))
        .await
        .unwrap();
}

async fn a_command_that_stumbles_is_tried_again_with_growing_delays(
    engine: Engine,
    partitions: u8,
) {
    let (domain, panics) = Machines::domain(2);
    let server = start(domain, &Arc::new(Database::make(engine)), partitions).await;
    let client = server.client();
    let created = create(&client, run(Uuid::new_v4())).await;
    let tried = until(&client, &created["id"], |command| command["attempts"] != 0).await;
    if tried["status"] == "PENDING" {
        let reason = tried["reason"].as_str().unwrap();
        assert!(reason.contains("stumbles"), "{reason}");
        assert!(tried["notBefore"].is_string());
    }
    let settled = until_settled(&client, &created["id"]).await;
    assert_eq!(settled["status"], "PROCESSED");
    assert_eq!(settled["attempts"], 3);
    assert_eq!(settled["reason"], Value::Null);
    assert_eq!(settled["events"].as_array().unwrap().len(), 1);
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    // 60 ms, and then four times as long.
    let waited = micros(&settled["processedAt"]) - micros(&created["createdAt"]);
    assert!(waited >= 300_000, "{waited} µs");
}

async fn a_command_fails_with_the_reason_after_the_last_try(engine: Engine, partitions: u8) {
    let (domain, panics) = Machines::domain(usize::MAX);
    let server = start(domain, &Arc::new(Database::make(engine)), partitions).await;
    let client = server.client();
    let (machine, other) = (Uuid::new_v4(), Uuid::new_v4());
    let created = create(&client, run(machine)).await;
    let fine = create(&client, stop(other)).await;
    assert_eq!(
        until_settled(&client, &fine["id"]).await["status"],
        "PROCESSED"
    );
    let failed = until_settled(&client, &created["id"]).await;
    assert_eq!(failed["status"], "FAILED");
    assert_eq!(failed["attempts"], 3);
    assert!(failed["reason"].as_str().unwrap().contains("stumbles"));
    assert!(failed["processedAt"].is_string());
    assert_eq!(failed["events"], json!([]));

    // executeCommand stores nothing of a fault, and says no more than that there was one.
    let id = json!(Uuid::new_v4());
    let mut input = run(machine);
    input["id"] = id.clone();
    let failure = execute(&client, input.clone()).await.unwrap_err();
    assert_eq!(failure.code(), "INTERNAL", "{failure:?}");
    assert!(!failure.message().contains("stumbles"));
    assert_eq!(command(&client, &id).await, Value::Null);
    panics.store(0, Ordering::SeqCst);
    assert_eq!(
        execute(&client, input).await.unwrap()["status"],
        "PROCESSED"
    );
}

async fn a_command_that_is_tried_again_holds_back_the_later_ones_of_its_aggregate(
    engine: Engine,
    partitions: u8,
) {
    let (domain, panics) = Machines::domain(2);
    let server = start(domain, &Arc::new(Database::make(engine)), partitions).await;
    let client = server.client();
    let machine = Uuid::new_v4();
    let first = create(&client, run(machine)).await;
    until(&client, &first["id"], |command| command["attempts"] != 0).await;
    let second = create(&client, stop(machine)).await;
    let other = create(&client, stop(Uuid::new_v4())).await;
    until_settled(&client, &other["id"]).await;
    let held_back = command(&client, &second["id"]).await;
    if panics.load(Ordering::SeqCst) > 0 {
        assert_eq!(held_back["status"], "PENDING");
    }
    let second = until_settled(&client, &second["id"]).await;
    let first = command(&client, &first["id"]).await;
    assert_eq!(first["attempts"], 3);
    assert_eq!(first["events"][0]["version"], 1);
    assert_eq!(second["events"][0]["version"], 2);
}

async fn a_command_whose_type_has_gone_fails(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let server = start(Machines::domain(0).0, &database, partitions).await;
    let machine = Uuid::new_v4();
    let mut input = stop(machine);
    input["notBefore"] = json!("2999-01-01T00:00:00Z");
    let id = create(&server.client(), input).await["id"].clone();
    server.stop().await;

    let server = start(Accounts::domain(), &database, partitions).await;
    let client = server.client();
    let query = "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed command { status attempts } } }";
    let variables = json!({ "input": { "id": id } });
    let data = client.query(query, variables).await.unwrap();
    let payload = &data["processCommand"];
    assert_eq!(payload["processed"], false, "it is not settled");
    // The worker may have tried it again before it was read.
    assert!(
        payload["command"]["attempts"].as_i64() >= Some(1),
        "{payload}"
    );
    let failed = until_settled(&client, &id).await;
    assert_eq!(failed["status"], "FAILED");
    assert!(failed["reason"].as_str().unwrap().contains("stop_machine"));
    // A repeat of what was taken once is answered, though the type is not known here.
    let mut again = stop(machine);
    again["id"] = id;
    assert_eq!(execute(&client, again).await.unwrap()["status"], "FAILED");
    assert_eq!(
        execute(&client, stop(machine)).await.unwrap_err().code(),
        "UNKNOWN_COMMAND_TYPE"
    );
}

async fn a_state_that_cannot_be_folded_fails_pending_commands_and_refuses_others(
    engine: Engine,
    partitions: u8,
) {
    let server = start(
        Machines::domain(0).0,
        &Arc::new(Database::make(engine)),
        partitions,
    )
    .await;
    let client = server.client();
    let machine = Uuid::new_v4();
    let mut before = run(machine);
    before["id"] = json!(Uuid::new_v4());
    let first = execute(&client, before.clone()).await.unwrap();
    append(&client, machine, "machine", "jammed", json!({})).await;
    let created = create(&client, run(machine)).await;
    let failed = until_settled(&client, &created["id"]).await;
    assert_eq!(failed["status"], "FAILED");
    assert!(failed["reason"].as_str().unwrap().contains("jammed"));
    let failure = execute(&client, run(machine)).await.unwrap_err();
    assert_eq!(failure.code(), "INTERNAL", "{failure:?}");
    // What was done before is told as before.
    assert_eq!(execute(&client, before).await.unwrap(), first);
}

/// More events than one statement reads of an aggregate, and more bytes than one statement reads at all.
async fn long_and_large_histories_are_loaded_whole(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let server = start(Machines::domain(0).0, &database, partitions).await;
    let client = server.client();
    let machines: Vec<Uuid> = (0..6).map(|_| Uuid::new_v4()).collect();
    let filling = "x".repeat(900_000);
    for (number, machine) in machines.iter().enumerate() {
        let mut input = run(*machine);
        input["data"] = if number % 2 == 0 {
            json!({ "turns": 1200 })
        } else {
            json!({ "turns": 9, "filling": filling })
        };
        let query = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { status } } }";
        client
            .query(query, json!({ "input": input }))
            .await
            .unwrap();
    }
    server.stop().await;

    // A server that knows nothing of them is asked for all at once.
    let server = start(Machines::domain(0).0, &database, partitions).await;
    let client = server.client();
    let runs = machines
        .iter()
        .map(|machine| execute(&client, run(*machine)));
    let told = futures_util::future::join_all(runs).await;
    for (number, told) in told.into_iter().enumerate() {
        let before = if number % 2 == 0 { 1200 } else { 9 };
        let command = told.unwrap();
        assert_eq!(command["events"][0]["version"], before + 1);
        assert_eq!(command["events"][0]["data"]["turn"], before + 1);
    }
}
