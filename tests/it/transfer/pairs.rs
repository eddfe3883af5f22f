//! From every kind of database to every other: what is there is the same, and a server goes on with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{contents::Contents, export, import, pipe};
use crate::support::client::Client;
use crate::support::in_process::{Database, Engine};
use crate::support::log::StoredLog;
use crate::support::on_every_database;
use crate::support::projected::StoredModels;
use crate::support::server::TestServer;

on_every_database!(everything_that_is_there_arrives_everywhere);

const APPEND: &str = "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate event { id version } } }";
const EXECUTE: &str = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { status reason } events { id version } } }";
const CREATE_COMMAND: &str =
    "mutation($input: CreateCommandInput!) { createCommand(input: $input) { command { status } } }";
const ENTRY: &str = "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { entry { position } } }";

struct Made {
    /// An aggregate of one event, made before it.
    early: Uuid,
    notes: Vec<Uuid>,
    users: Vec<Uuid>,
    /// A command that was processed.
    command: Value,
    /// What it was answered.
    outcome: Value,
    cursor: String,
}

async fn send(client: &Client, query: &str, input: Value) -> Value {
    client
        .query(query, json!({ "input": input }))
        .await
        .unwrap()
}

/// Makes something of every kind.
async fn fill(client: &Client) -> Made {
    let id = Uuid::new_v4;
    let create =
        "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }";
    let (early, empty) = (id(), id());
    for aggregate in [early, empty] {
        send(client, create, json!({ "id": aggregate, "type": "note" })).await;
    }
    let unicode: String = (1..0x11_0000_u32)
        .step_by(17)
        .filter_map(char::from_u32)
        .filter(|char| *char != '\0')
        .collect();
    let notes: Vec<Uuid> = (0..12).map(|_| id()).collect();
    let data = [
        json!({ "b": 1, "a": { "z": [1, 2.5, 1e300, -0.0, 1e-7], "y": null }, "long key": true }),
        json!({ "text": unicode }),
        json!({ "big": "0123456789".repeat(60_000), "n": 9_007_199_254_740_993_i64 }),
        json!([
            1.5e19,
            18_446_744_073_709_551_615_u64,
            "\u{1}\u{7f}\"\\\n\u{2028}"
        ]),
    ];
    for (round, data) in data.iter().cycle().take(6).enumerate() {
        for aggregate in notes.iter().chain((round == 1).then_some(&early)) {
            let input = json!({
                "aggregateId": aggregate, "aggregateType": "note", "type": format!("noted {round} é"), "data": data,
                "metadata": { "correlationId": format!("c{round}"), "x": [round] },
            });
            send(client, APPEND, input).await;
        }
    }
    let users: Vec<Uuid> = (0..8).map(|_| id()).collect();
    let (mut command, mut outcome) = (Value::Null, Value::Null);
    for user in &users {
        command = json!({ "id": id(), "aggregateId": user, "type": "create_user", "data": { "username": "ä", "n": 1e2 } });
        outcome = send(client, EXECUTE, command.clone()).await;
    }
    assert_eq!(outcome["executeCommand"]["command"]["status"], "PROCESSED");
    // A rejected one, and one that waits.
    let again = json!({ "id": id(), "aggregateId": users[0], "type": "create_user", "data": { "username": "b" } });
    let rejected = send(client, EXECUTE, again).await;
    assert_eq!(rejected["executeCommand"]["command"]["status"], "REJECTED");
    let later = json!({ "id": id(), "aggregateId": users[1], "type": "update_user", "data": { "username": "c" }, "notBefore": "2999-01-01T00:00:00Z" });
    send(client, CREATE_COMMAND, later).await;
    for (round, stream) in ["one", "two", "trois é"]
        .iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        let input = json!({ "streamName": stream, "eventId": id(), "type": "said", "data": { "round": round } });
        send(client, ENTRY, input).await;
    }
    let write =
        "mutation($input: UpdateReadModelInput!) { updateReadModel(input: $input) { updated } }";
    for (aggregate, version) in [(notes[0], 3), (id(), 7)] {
        let input = json!({ "aggregateId": aggregate, "aggregateType": "note", "data": { "mine": [true, "x y"] }, "version": version });
        send(client, write, input).await;
    }
    let register = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { name } } }";
    let input = json!({ "name": "copies", "function": "publish:copies", "eventTypes": ["user_created"], "startAfter": "" });
    send(client, register, input).await;
    let page = client
        .query("{ events(first: 5) { pageInfo { endCursor } } }", json!({}))
        .await
        .unwrap();
    let cursor = page["events"]["pageInfo"]["endCursor"]
        .as_str()
        .unwrap()
        .to_owned();
    Made {
        early,
        notes,
        users,
        command,
        outcome,
        cursor,
    }
}

async fn everything_that_is_there_arrives_everywhere(engine: Engine, partitions: u8) {
    let source = Database::make(engine);
    let partitions_of_source = partitions.to_string();
    let mut server = TestServer::on(&source.url())
        .arguments(["--partitions", &partitions_of_source])
        .start();
    let client = Client::new(&server);
    let made = fill(&client).await;
    // What is published and handled is part of what is carried.
    StoredModels::read_settled(&source.url()).await;
    wait_for_handlers(&client).await;
    server.kill9();
    let before = Contents::read(&source.url()).await;
    assert!(
        !before.entries.is_empty() && before.commands.len() == 10 && before.read_models.len() == 2
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.jsonl");
    export(&source.url(), &file).succeed();
    let whole = std::fs::read_to_string(&file).unwrap();
    for (engine, partitions) in [
        (Engine::Sqlite, 1),
        (Engine::Postgres, 16),
        (Engine::Sqlite, 16),
        (Engine::Postgres, 1),
    ] {
        let target = Arc::new(Database::make(engine));
        let said = import(&target.url(), partitions, &file).succeed();
        assert!(
            said.out.contains("what is stored is what was exported"),
            "{said:?}"
        );
        assert_eq!(
            Contents::read(&target.url()).await,
            before,
            "{engine:?} {partitions}"
        );
        StoredLog::read_whole(&target.url()).await;
        // And back: the same lines again, but for the first and the places.
        let back = folder.path().join(format!("{engine:?}{partitions}.jsonl"));
        export(&target.url(), &back).succeed();
        assert_eq!(
            last_line(&whole),
            last_line(&std::fs::read_to_string(&back).unwrap())
        );
        a_server_goes_on(&target, &made, &before).await;
    }
    // The same through a pipe.
    let target = Database::make(Engine::Sqlite);
    pipe(&source.url(), &target.url(), 4).succeed();
    assert_eq!(Contents::read(&target.url()).await, before);
}

fn last_line(export: &str) -> &str {
    export.lines().last().unwrap()
}

async fn wait_for_handlers(client: &Client) {
    let lags = async {
        loop {
            let query = "{ eventHandlers { lagEvents } }";
            let answer = client.query(query, json!({})).await.unwrap();
            let lags = answer["eventHandlers"].as_array().unwrap().clone();
            if lags.iter().all(|handler| handler["lagEvents"] == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), lags)
        .await
        .expect("handlers come to the end");
}

/// Versions, positions, commands and read models go on; nothing is published or handled twice; cursors of the old database
/// are refused.
async fn a_server_goes_on(target: &Database, made: &Made, before: &Contents) {
    let mut server = TestServer::start(&target.url());
    let client = Client::new(&server);
    let input = json!({ "aggregateId": made.notes[3], "aggregateType": "note", "type": "noted", "data": {}, "expectedVersion": 6 });
    let appended = send(&client, APPEND, input).await;
    assert_eq!(appended["appendEvent"]["event"]["version"], 7);
    let input = json!({ "aggregateId": made.early, "aggregateType": "note", "type": "noted", "data": {}, "expectedVersion": 1 });
    send(&client, APPEND, input).await;
    let repeated = send(&client, EXECUTE, made.command.clone()).await;
    assert_eq!(repeated, made.outcome, "it has its effect once");
    let everything = "subscription { events(after: \"\") { event { aggregateId version } } }";
    let mut followed = client.subscribe(everything, json!({})).await;
    let positions = before
        .entries
        .keys()
        .filter(|(stream, _)| stream == "one")
        .count();
    let input =
        json!({ "streamName": "one", "eventId": Uuid::new_v4(), "type": "said", "data": {} });
    let appended = send(&client, ENTRY, input).await;
    assert_eq!(
        appended["appendToStream"]["entry"]["position"],
        positions + 1
    );
    // From the first event on to those that came here.
    let mut seen: HashMap<String, i64> = HashMap::new();
    for update in followed.take("events", before.events.len() + 2).await {
        let last = seen
            .entry(update["event"]["aggregateId"].to_string())
            .or_default();
        *last += 1;
        assert_eq!(update["event"]["version"], *last, "each once and in order");
    }
    // Read models follow from the first event on.
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 1, waitMs: 20000) { version source } }";
    let model = client
        .query(query, json!({ "id": made.users[3] }))
        .await
        .unwrap();
    assert_eq!(
        model["readModel"],
        json!({ "version": 1, "source": "PROJECTED" })
    );
    let model = client
        .query(query, json!({ "id": made.notes[0] }))
        .await
        .unwrap();
    assert_eq!(
        model["readModel"],
        json!({ "version": 3, "source": "EXTERNAL" })
    );
    StoredModels::read_settled(&target.url()).await;
    wait_for_handlers(&client).await;
    let failure = client
        .query(
            "query($c: String) { events(first: 1, after: $c) { nodes { id } } }",
            json!({ "c": made.cursor }),
        )
        .await;
    let failure = match failure {
        Err(failure) => failure,
        Ok(page) => panic!("the cursor of another database was taken: {page}"),
    };
    assert_eq!(failure.code(), "BAD_USER_INPUT", "{failure:?}");
    let again = json!({ "id": made.command["id"], "aggregateId": made.users[1], "type": "create_user", "data": { "username": "ä" } });
    assert!(
        client
            .query(EXECUTE, json!({ "input": again }))
            .await
            .is_err()
    );
    server.kill9();
    let after = Contents::read(&target.url()).await;
    let streams = |contents: &Contents, name: &str| {
        contents
            .entries
            .keys()
            .filter(|(stream, _)| stream == name)
            .count()
    };
    for stream in ["user_events", "copies"] {
        assert_eq!(streams(&after, stream), streams(before, stream), "{stream}");
    }
    for (key, event) in &before.events {
        assert_eq!(&after.events[key], event);
    }
    StoredLog::read_whole(&target.url()).await;
}
