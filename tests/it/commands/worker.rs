//! The worker while some of its commands take long, are held back or stumble: the others go on, and orders are kept.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::domain::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DecidedEvent, Decider, Domain,
    EventType, FoldFault, PastEvent, Rejection, State,
};
use uuid::Uuid;

use super::{command, create, execute, until, until_settled};
use crate::support::client::Client;
use crate::support::deciders::Machines;
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::on_every_database;

on_every_database!(
    a_command_that_takes_long_keeps_no_other_aggregate_waiting,
    commands_that_are_held_back_wake_nobody,
    a_fault_on_a_state_that_is_out_of_date_is_none,
);

/// No gate stays closed for longer, so that a test that fails comes to an end.
const PATIENCE: Duration = Duration::from_secs(40);

/// Gates: `wait_here` is decided when its gate is opened, `go_through` at once. Both are decided on an aggregate that is not
/// `closed`; on such a one their decider panics.
struct Gates {
    is_open: Arc<(Mutex<bool>, Condvar)>,
}

impl Gates {
    fn domain() -> (Domain, Arc<(Mutex<bool>, Condvar)>) {
        let is_open = Arc::new((Mutex::new(false), Condvar::new()));
        let gates = Self {
            is_open: is_open.clone(),
        };
        (Domain::new(vec![Arc::new(gates)]).unwrap(), is_open)
    }
}

impl Decider for Gates {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("gate").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        let command = |name: &str, creates| CommandDescription {
            name: CommandType::new(name).unwrap(),
            event_types: vec![EventType::new("passed").unwrap()],
            data_schema: None,
            creates,
        };
        vec![
            command("wait_here", false),
            command("go_through", false),
            // It says so of aggregates that are there, too.
            command("go_first", true),
        ]
    }

    fn decide(
        &self,
        state: &State,
        command: &CommandInHand<'_>,
    ) -> Result<Vec<DecidedEvent>, Rejection> {
        match command.command_type.as_str() {
            "wait_here" => tokio::task::block_in_place(|| {
                let (is_open, opened) = &*self.is_open;
                let is_open = is_open.lock().unwrap();
                let opened = opened.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open);
                drop(opened.unwrap());
            }),
            "go_first" => assert!(!state.is_null(), "it is not there"),
            _ => assert!(state["closed"] != true, "it is closed"),
        }
        Ok(vec![DecidedEvent {
            event_type: EventType::new("passed").unwrap(),
            data: json!({ "as": command.data["as"] }),
        }])
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        event.merge_into(state)
    }
}

fn input(gate: Uuid, kind: &str, number: usize) -> Value {
    json!({ "aggregateId": gate, "type": kind, "data": { "as": number } })
}

async fn a_command_that_takes_long_keeps_no_other_aggregate_waiting(
    engine: Engine,
    partitions: u8,
) {
    const OTHERS: usize = 100;
    let (domain, is_open) = Gates::domain();
    let server = TestServer::with_domain(Arc::new(Database::make(engine)), domain, |config| {
        config.database.partitions = Some(partitions);
    })
    .await;
    let client = server.client();
    let slow = Uuid::new_v4();
    let mut of_slow = vec![create(&client, input(slow, "wait_here", 0)).await["id"].clone()];
    for number in 1..5 {
        let created = create(&client, input(slow, "go_through", number)).await;
        of_slow.push(created["id"].clone());
    }
    // More than are read at a time, three of each aggregate, one after another.
    let others: Vec<Uuid> = (0..OTHERS).map(|_| Uuid::new_v4()).collect();
    let creations = others.iter().map(|other| {
        let client = &client;
        async move {
            let mut ids = Vec::new();
            for number in 0..3 {
                let created = create(client, input(*other, "go_through", number)).await;
                ids.push(created["id"].clone());
            }
            ids
        }
    });
    let created = futures_util::future::join_all(creations).await;
    for ids in &created {
        for (number, id) in ids.iter().enumerate() {
            let settled = until_settled(&client, id).await;
            assert_eq!(settled["status"], "PROCESSED");
            assert_eq!(settled["events"][0]["version"], number + 1);
        }
    }
    for id in &of_slow {
        let waiting = command(&client, id).await;
        assert_eq!(
            (&waiting["status"], &waiting["attempts"]),
            (&json!("PENDING"), &json!(0))
        );
    }

    *is_open.0.lock().unwrap() = true;
    is_open.1.notify_all();
    for (number, id) in of_slow.iter().enumerate() {
        let settled = until_settled(&client, id).await;
        assert_eq!(settled["status"], "PROCESSED");
        assert_eq!(settled["events"][0]["version"], number + 1);
        assert_eq!(settled["attempts"], 1);
    }
}

async fn commands_that_are_held_back_wake_nobody(engine: Engine, partitions: u8) {
    let (domain, _) = Machines::domain(usize::MAX);
    let server = TestServer::with_domain(Arc::new(Database::make(engine)), domain, |config| {
        config.database.partitions = Some(partitions);
        config.commands.retry_delay = Duration::from_secs(3600);
    })
    .await;
    let client = server.client();
    let machine = Uuid::new_v4();
    let run = json!({ "aggregateId": machine, "type": "run_machine", "data": {} });
    let first = create(&client, run).await;
    until(&client, &first["id"], |command| command["attempts"] == 1).await;
    let stop = |of: Uuid| json!({ "aggregateId": of, "type": "stop_machine", "data": {} });
    let second = create(&client, stop(machine)).await;
    // The worker goes on, and by now it has passed that one.
    let other = create(&client, stop(Uuid::new_v4())).await;
    until_settled(&client, &other["id"]).await;
    let held_back = command(&client, &second["id"]).await;
    assert_eq!(held_back["status"], "PENDING");

    let store = server.app.store();
    let all: Vec<_> = store.partitions().iter().collect();
    let looked_at: Vec<_> = all.iter().map(|partition| (*partition, vec![])).collect();
    let due = store.partitions_with_due_commands(&looked_at).await;
    let due = due.unwrap();
    assert_eq!(due, [], "what is held back is not due");
    for partition in all {
        let due = store.due_commands(partition, 10, &[]).await.unwrap();
        assert_eq!(due.commands.len(), 0);
        assert!(due.is_all);
    }
}

async fn append(client: &Client, gate: Uuid, data: Value) {
    let query = "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate } }";
    let input =
        json!({ "aggregateId": gate, "aggregateType": "gate", "type": "changed", "data": data });
    client
        .query(query, json!({ "input": input }))
        .await
        .unwrap();
}

async fn a_fault_on_a_state_that_is_out_of_date_is_none(engine: Engine, partitions: u8) {
    let server = TestServer::with_domain(
        Arc::new(Database::make(engine)),
        Gates::domain().0,
        |config| {
            config.database.partitions = Some(partitions);
            config.commands.attempts = 1;
        },
    )
    .await;
    let client = server.client();
    let is_done = |command: &Value, version: i32| {
        assert_eq!(command["status"], "PROCESSED", "{command}");
        assert_eq!(command["attempts"], 1);
        assert_eq!(command["events"][0]["version"], version);
    };
    // That it is not there is a guess, and wrong.
    let [executed, created] = [Uuid::new_v4(), Uuid::new_v4()];
    append(&client, executed, json!({})).await;
    let told = execute(&client, input(executed, "go_first", 1)).await;
    is_done(&told.unwrap(), 2);
    append(&client, created, json!({})).await;
    let id = create(&client, input(created, "go_first", 1)).await["id"].clone();
    is_done(&until_settled(&client, &id).await, 2);

    // That it is closed was true, and is kept.
    append(&client, executed, json!({ "closed": true })).await;
    let fault = execute(&client, input(executed, "go_through", 1)).await;
    assert_eq!(fault.unwrap_err().code(), "INTERNAL");
    append(&client, executed, json!({ "closed": false })).await;
    let told = execute(&client, input(executed, "go_through", 2)).await;
    is_done(&told.unwrap(), 5);
    append(&client, executed, json!({ "closed": true })).await;
    let id = create(&client, input(executed, "go_through", 3)).await["id"].clone();
    assert_eq!(until_settled(&client, &id).await["status"], "FAILED");
    append(&client, executed, json!({ "closed": false })).await;
    let id = create(&client, input(executed, "go_through", 4)).await["id"].clone();
    is_done(&until_settled(&client, &id).await, 8);

    // What is true counts, and so does what the database refuses.
    let nobody = Uuid::new_v4();
    let id = create(&client, input(nobody, "go_first", 1)).await["id"].clone();
    assert_eq!(until_settled(&client, &id).await["status"], "FAILED");
}
