//! The cases of commands.toml against the server and against process_command: the same status, the same reason and the same
//! events, whether the command is executed at once or was recorded before.

use serde::Deserialize;
use serde_json::{Value, json};
use tidings::domain::{Decider, Domain, declared};
use uuid::Uuid;

use std::sync::Arc;

use super::{Sql, literal, on_postgres};
use crate::support::client::Client;
use crate::support::deciders::Accounts;
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::log::StoredLog;

on_postgres!(
    commands_come_to_the_same_by_sql_and_by_the_server,
    a_command_whose_rules_are_written_in_rust_is_left_to_the_server,
    events_of_commands_from_sql_are_published,
);

#[derive(Deserialize)]
struct File {
    domain: String,
    case: Vec<Case>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    given: Vec<(String, Value)>,
    of: Option<String>,
    command: (String, Value),
    then: Option<String>,
    #[serde(default)]
    events: Vec<(String, Value)>,
    reason: Option<String>,
    refused: Option<String>,
    mismatch: Option<String>,
    left: Option<String>,
}

/// What a command has come to, as it is stored.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: String,
    reason: Option<String>,
    events: Vec<(String, Value)>,
}

impl Case {
    fn aggregate_type(&self) -> &str {
        let of_command = match self.command.0.ends_with("_user") {
            true => "user",
            false => "purchase",
        };
        self.of.as_deref().unwrap_or(of_command)
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            status: self.then.clone().expect("a case says what it comes to"),
            reason: self.reason.clone(),
            events: self.events.clone(),
        }
    }

    fn rejected(&self, reason: String) -> Outcome {
        Outcome {
            status: "REJECTED".to_owned(),
            reason: Some(reason),
            events: Vec::new(),
        }
    }

    /// What one comes to that was recorded before.
    fn recorded(&self) -> Outcome {
        match (&self.refused, &self.mismatch) {
            (Some(violations), _) => self.rejected(format!("its data: {violations}")),
            (None, Some(mismatch)) => self.rejected(mismatch.clone()),
            (None, None) => self.outcome(),
        }
    }
}

struct Bench {
    server: TestServer,
    client: Client,
    sql: Sql,
}

impl Bench {
    async fn of(partitions: u8, domain: Domain) -> Self {
        let database = Arc::new(Database::make(Engine::Postgres));
        let server = TestServer::with_domain(database, domain, |config| {
            config.database.partitions = Some(partitions);
            // Nobody processes what is pending but who is asked to.
            config.background.enabled = false;
        })
        .await;
        Self {
            client: server.client(),
            sql: Sql::connect(&server).await,
            server,
        }
    }

    /// A new aggregate with the events that are given.
    async fn given(&mut self, case: &Case) -> Uuid {
        let id = Uuid::new_v4();
        for (event_type, data) in &case.given {
            let (of, data) = (case.aggregate_type(), literal(&data.to_string()));
            let append = format!("SELECT append_event('{id}', '{of}', '{event_type}', {data})");
            self.sql.run(&append).await.unwrap();
        }
        id
    }

    /// Records a command as PENDING, whatever it is.
    async fn record(&mut self, case: &Case, aggregate: Uuid) -> Uuid {
        let id = Uuid::new_v4();
        let (command_type, data) = (&case.command.0, literal(&case.command.1.to_string()));
        let record = format!(
            "SELECT tidings_append_one(tidings_partition_of(uuid_send('{aggregate}')), '{aggregate}', NULL, NULL, NULL, NULL, \
             NULL, NULL, '{id}', '{command_type}', {data}, 'PENDING')"
        );
        self.sql.run(&record).await.unwrap();
        id
    }

    async fn stored(&mut self, case: &Case, id: Uuid) -> Outcome {
        let rows = format!("SELECT aggregate_id, status, reason FROM commands WHERE id = '{id}'");
        let command = self.sql.rows(&rows).await.remove(0);
        let aggregate = command["aggregate_id"].as_str().unwrap();
        let rows = format!(
            "SELECT event_type, event_data, event_metadata FROM get_events_for_aggregate('{aggregate}', {})",
            case.given.len()
        );
        let events = self.sql.rows(&rows).await;
        for event in &events {
            let expected = json!({ "commandId": id, "causationId": id, "correlationId": id });
            assert_eq!(event["event_metadata"], expected, "{}", case.name);
        }
        let of_event = |event: &Value| {
            let event_type = event["event_type"].as_str().unwrap().to_owned();
            (event_type, event["event_data"].clone())
        };
        Outcome {
            status: command["status"].as_str().unwrap().to_owned(),
            reason: command["reason"].as_str().map(str::to_owned),
            events: events.iter().map(of_event).collect(),
        }
    }

    async fn process_by_server(&self, id: Uuid) {
        let query = "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed } }";
        let variables = json!({ "input": { "id": id } });
        self.client.query(query, variables).await.unwrap();
    }

    /// Whether it says TRUE; the refusal where the command is left to the server.
    async fn process_by_sql(&mut self, id: Uuid) -> Result<bool, super::Refused> {
        let query = format!("SELECT process_command('{id}')");
        let answer = self.sql.value(&query).await?;
        Ok(answer.as_deref() == Some("true"))
    }

    async fn executed_by_the_server(&mut self, case: &Case) {
        let aggregate = self.given(case).await;
        let query = "mutation($input: CreateCommandInput!) { executeCommand(input: $input) { command { id } } }";
        let input =
            json!({ "aggregateId": aggregate, "type": case.command.0, "data": case.command.1 });
        let executed = self.client.query(query, json!({ "input": input })).await;
        let name = &case.name;
        if let Some(violations) = &case.refused {
            let message = executed.unwrap_err().message().to_owned();
            let expected = format!(
                "input.data is not what {} takes: {violations}",
                case.command.0
            );
            assert_eq!(message, expected, "{name}");
        } else if case.mismatch.is_some() {
            assert_eq!(
                executed.unwrap_err().code(),
                "AGGREGATE_TYPE_MISMATCH",
                "{name}"
            );
        } else if case.then.as_deref() == Some("PENDING") {
            assert!(executed.is_err(), "{name}");
        } else if case.left.is_none() || case.then.as_deref() == Some("PROCESSED") {
            let executed = executed.unwrap();
            let id = executed["executeCommand"]["command"]["id"]
                .as_str()
                .unwrap();
            let id = id.parse().unwrap();
            assert_eq!(self.stored(case, id).await, case.outcome(), "{name}");
        }
    }

    async fn created_and_processed_by_sql(&mut self, case: &Case) {
        let aggregate = self.given(case).await;
        let (name, command_type) = (&case.name, &case.command.0);
        let data = literal(&case.command.1.to_string());
        let create = format!("SELECT create_command('{aggregate}', '{command_type}', {data})");
        let created = self.sql.value(&create).await;
        if let Some(violations) = &case.refused {
            let refused = created.unwrap_err();
            let expected = format!("p_command_data is not what {command_type} takes: {violations}");
            assert_eq!(
                (refused.code.as_str(), refused.message),
                ("22023", expected),
                "{name}"
            );
            return;
        }
        if let Some(mismatch) = &case.mismatch {
            let refused = created.unwrap_err();
            assert_eq!(
                (refused.code.as_str(), &refused.message),
                ("TD002", mismatch),
                "{name}"
            );
            return;
        }
        let id = created.unwrap().unwrap().parse().unwrap();
        self.processed_by_sql(case, id, &case.outcome()).await;
    }

    /// Also where another call has settled it; and by the server, where it is left to it.
    async fn processed_by_sql(&mut self, case: &Case, id: Uuid, expected: &Outcome) {
        let name = &case.name;
        let answer = self.process_by_sql(id).await;
        if let Some(why) = &case.left {
            let refused = answer.unwrap_err();
            assert_eq!(refused.code, "TD007", "{name}");
            let expected = format!(
                "the command {id} ({}) is left PENDING for a server: {why}",
                case.command.0
            );
            assert!(
                refused.message.starts_with(&expected),
                "{name}: {}",
                refused.message
            );
            assert_eq!(self.stored(case, id).await.status, "PENDING", "{name}");
            if expected_is_settled(case) {
                self.process_by_server(id).await;
            }
        } else {
            let is_processed = expected.status == "PROCESSED";
            assert_eq!(answer.unwrap(), is_processed, "{name}");
            assert_eq!(
                self.process_by_sql(id).await.unwrap(),
                is_processed,
                "{name}: again"
            );
        }
        if expected_is_settled(case) {
            assert_eq!(self.stored(case, id).await, *expected, "{name}");
        }
    }
}

/// A fault counts as a try, and stays pending.
fn expected_is_settled(case: &Case) -> bool {
    case.then.as_deref() != Some("PENDING")
}

async fn commands_come_to_the_same_by_sql_and_by_the_server(partitions: u8) {
    let file: File = toml::from_str(include_str!("commands.toml")).unwrap();
    let declared = declared::parse(&file.domain).unwrap().into_iter();
    let deciders = declared.map(|aggregate| Arc::new(aggregate) as Arc<dyn Decider>);
    let domain = Domain::new(deciders.collect()).unwrap();
    let mut bench = Bench::of(partitions, domain).await;
    for case in &file.case {
        bench.executed_by_the_server(case).await;
        bench.created_and_processed_by_sql(case).await;

        // Recorded before, under another domain maybe, so that nobody has looked at its data.
        let aggregate = bench.given(case).await;
        let id = bench.record(case, aggregate).await;
        bench.process_by_server(id).await;
        if expected_is_settled(case) {
            assert_eq!(
                bench.stored(case, id).await,
                case.recorded(),
                "{}",
                case.name
            );
        }
        let aggregate = bench.given(case).await;
        let id = bench.record(case, aggregate).await;
        bench.processed_by_sql(case, id, &case.recorded()).await;
    }
    StoredLog::read_whole(&bench.server.database.url()).await;
}

async fn a_command_whose_rules_are_written_in_rust_is_left_to_the_server(partitions: u8) {
    let domain = Domain::new(vec![Arc::new(Accounts)]).unwrap();
    let mut bench = Bench::of(partitions, domain).await;
    let create = "SELECT create_command('account', 'open_account', '{}')";
    let id = bench.sql.value(create).await.unwrap().unwrap();
    let id: Uuid = id.parse().unwrap();
    let refused = bench.process_by_sql(id).await.unwrap_err();
    assert_eq!(refused.code, "TD007");
    let expected = format!(
        "the command {id} (open_account) is left PENDING for a server: its rules are written in Rust"
    );
    assert_eq!(refused.message, expected);
    let status = format!("SELECT status FROM commands WHERE id = '{id}'");
    assert_eq!(
        bench.sql.rows(&status).await,
        [json!({ "status": "PENDING" })]
    );
    bench.process_by_server(id).await;
    assert_eq!(
        bench.sql.rows(&status).await,
        [json!({ "status": "PROCESSED" })]
    );
    assert!(bench.process_by_sql(id).await.unwrap());
    let events = "SELECT event_type FROM get_events_for_aggregate('account')";
    assert_eq!(
        bench.sql.rows(events).await,
        [json!({ "event_type": "account_opened" })]
    );
}

async fn events_of_commands_from_sql_are_published(partitions: u8) {
    let server = super::start(partitions, |_| {}).await;
    let mut sql = Sql::connect(&server).await;
    let process = "BEGIN; SELECT process_command(create_command('user-1', 'create_user', '{\"username\": \"ada\"}')); COMMIT";
    sql.run(process).await.unwrap();
    let query = "subscription { streamEntries(streamName: \"user_events\", after: 0) { eventId type data position } }";
    let mut entries = server.client().subscribe(query, json!({})).await;
    let entry = entries.next_data().await["streamEntries"].take();
    let event = sql
        .rows("SELECT id FROM get_events_for_aggregate('user-1')")
        .await;
    let expected = json!({ "eventId": event[0]["id"], "type": "user_created", "data": { "username": "ada" }, "position": 1 });
    assert_eq!(entry, expected);
}
