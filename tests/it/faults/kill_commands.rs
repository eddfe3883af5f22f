//! `kill -9` of the server while it executes, records and processes commands, again and again: none is ever half done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::support::{
    client::{Failure, LIMIT},
    on_every_database,
    projected::StoredModels,
};

const ROUNDS: usize = 5;
const ACKNOWLEDGED_BEFORE_A_KILL: usize = 1000;

on_every_database!(no_command_is_half_done_by_a_killed_server);

/// A command, and how it is given.
#[derive(Clone, Debug)]
struct Given {
    id: Uuid,
    input: Value,
    manner: Manner,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Execute,
    Create,
    /// Recorded for an instant that is far, and then processed by a call.
    CreateAndProcess,
}

/// What was told of a command: its status, or nothing.
type Told = Option<String>;

impl Given {
    /// The n-th command of a client: new users, and changes of a few that all clients change.
    fn next(client: usize, call: usize, users: &[Uuid]) -> Given {
        let id = Uuid::new_v4();
        let user = users[(client + call) % users.len()];
        let mut input = match call % 4 {
            0 => {
                json!({ "aggregateId": Uuid::new_v4(), "type": "create_user", "data": { "username": "new" } })
            }
            1 => {
                json!({ "aggregateId": user, "type": "create_user", "data": { "username": "first" } })
            }
            _ => {
                json!({ "aggregateId": user, "type": "update_user", "data": { "email": call.to_string() } })
            }
        };
        input["id"] = json!(id);
        let manner = match (client + call / 4) % 4 {
            0 => Manner::Create,
            1 => Manner::CreateAndProcess,
            _ => Manner::Execute,
        };
        if manner == Manner::CreateAndProcess {
            input["notBefore"] = json!("2999-01-01T00:00:00Z");
        }
        Given { id, input, manner }
    }

    /// Gives it once; what was told of it in the end.
    async fn send(&self, client: &Client) -> Told {
        let (mutation, field) = match self.manner {
            Manner::Execute => ("executeCommand", "status events { version }"),
            _ => ("createCommand", "status"),
        };
        let query = format!(
            "mutation($input: CreateCommandInput!) {{ {mutation}(input: $input) {{ command {{ {field} }} }} }}"
        );
        let told = answered(
            client.query(&query, json!({ "input": self.input })).await,
            mutation,
        )?;
        if self.manner != Manner::CreateAndProcess {
            return Some(told);
        }
        let query = "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed command { status } } }";
        let variables = json!({ "input": { "id": self.id } });
        // That it was recorded is known, whatever is told of its processing.
        let processed = answered(client.query(query, variables).await, "processCommand");
        Some(processed.unwrap_or(told))
    }
}

fn answered(answer: Result<Value, Failure>, mutation: &str) -> Told {
    match answer {
        Ok(data) => Some(
            data[mutation]["command"]["status"]
                .as_str()
                .unwrap()
                .to_owned(),
        ),
        Err(Failure::Transport(_)) => None,
        Err(failure) if failure.code() == "UNAVAILABLE" => None,
        Err(failure) => panic!("{mutation}: {failure:?}"),
    }
}

/// What a status may have become after it was told.
fn may_be(told: &str, stored: &str) -> bool {
    told == stored || told == "PENDING"
}

async fn no_command_is_half_done_by_a_killed_server(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let mut server = TestServer::on(&database.url())
        .arguments(["--partitions", &partitions.to_string()])
        .start();
    let client = Client::new(&server);
    let mut all: HashMap<Uuid, (Given, Told)> = HashMap::new();
    let mut unanswered = 0;
    for _ in 0..rounds(ROUNDS) {
        let users: Arc<[Uuid]> = (0..8).map(|_| Uuid::new_v4()).collect();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let is_killed = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (client, users) = (client.clone(), users.clone());
                let (acknowledged, is_killed) = (acknowledged.clone(), is_killed.clone());
                tokio::spawn(async move {
                    let mut given = Vec::new();
                    for call in 0.. {
                        let next = Given::next(number, call, &users);
                        let told = next.send(&client).await;
                        let is_cut = told.is_none();
                        acknowledged.fetch_add(usize::from(!is_cut), Ordering::Relaxed);
                        given.push((next, told));
                        // A server that is slow for once is not at its end.
                        if is_cut && is_killed.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    given
                })
            })
            .collect();
        let started = Instant::now();
        while acknowledged.load(Ordering::Relaxed) < ACKNOWLEDGED_BEFORE_A_KILL {
            assert!(started.elapsed() < LIMIT, "the server takes commands");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        is_killed.store(true, Ordering::Relaxed);
        server.kill9();
        let mut round = Vec::new();
        for writer in writers {
            round.extend(writer.await.unwrap());
        }
        server.restart();

        let log = StoredLog::read_whole(&database.url()).await;
        for (given, told) in &round {
            let stored = log.commands.get(&given.id);
            if let Some(told) = told {
                let stored = stored.unwrap_or_else(|| panic!("{told} and not there: {given:?}"));
                assert!(
                    may_be(told, &stored.status),
                    "{told}, {stored:?}: {given:?}"
                );
            }
        }
        // What was not answered is given again, with the same id.
        for (given, told) in &mut round {
            if told.is_none() {
                unanswered += 1;
                *told = given.send(&client).await;
                assert!(told.is_some(), "{given:?}");
            }
        }
        all.extend(
            round
                .into_iter()
                .map(|(given, told)| (given.id, (given, told))),
        );
    }
    println!(
        "{} commands, of which {unanswered} were unanswered",
        all.len()
    );
    assert!(unanswered >= ROUNDS, "the kills came during load");

    // A command that was cut off between its recording and its processing waits for its instant still.
    for (given, _) in all.values() {
        if given.manner == Manner::CreateAndProcess {
            given.send(&client).await;
        }
    }
    let started = Instant::now();
    let log = loop {
        let log = StoredLog::read_whole(&database.url()).await;
        if log
            .commands
            .values()
            .all(|command| command.status != "PENDING")
        {
            break log;
        }
        assert!(started.elapsed() < LIMIT, "all that are due are processed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(log.commands.len(), all.len());
    for (id, command) in &log.commands {
        let (given, told) = &all[id];
        let told = told.as_deref().unwrap_or("PENDING");
        assert!(
            may_be(told, &command.status),
            "{told}, {command:?}: {given:?}"
        );
        assert!(["PROCESSED", "REJECTED"].contains(&command.status.as_str()));
    }
    let compared = assert_read_models_are_folds(&database.url()).await;
    assert!(compared > 0, "there are users");
    println!("{compared} read models compared");
}

/// What an event of a user makes of its state. Written for this test, and not the server's own.
fn folded(state: &Value, event_type: &str, data: &Value) -> Value {
    match event_type {
        "user_created" => data.clone(),
        "user_updated" => {
            let mut state = state.clone();
            for (key, value) in data.as_object().unwrap() {
                state[key] = value.clone();
            }
            state
        }
        _ => panic!("no command causes {event_type}"),
    }
}

/// The stored read model of every aggregate is the fold of its events from the first one; answers how many there are.
async fn assert_read_models_are_folds(database_url: &str) -> usize {
    let (log, stored) = StoredModels::read_settled(database_url).await;
    let data = StoredLog::data_of_events(database_url).await;
    let mut folds: HashMap<Uuid, (i32, Value)> = HashMap::new();
    for event in &log.events {
        let (version, state) = folds.entry(event.aggregate_id).or_default();
        *version = event.version;
        *state = folded(state, &event.event_type, &data[&event.id]);
    }
    assert_eq!(stored.models.len(), folds.len());
    for (id, (version, state)) in &folds {
        let model = &stored.models[id];
        assert_eq!((model.version, &model.data), (*version, state), "{model:?}");
        assert_eq!(model.fault, None, "{model:?}");
        assert!(!model.is_deleted, "{model:?}");
    }
    stored.assert_changes(&log);
    folds.len()
}
