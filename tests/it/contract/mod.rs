//! The contract of the API: every case runs on SQLite and on PostgreSQL, with 1 and with 4 partitions, against the whole
//! server in this process. A case checks the answer, and then what is stored, by another query.

/// Makes four tests of each case.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            use crate::{contract::Contract, support::in_process::Engine};

            #[tokio::test]
            async fn sqlite_1() {
                super::$case(Contract::on(Engine::Sqlite, 1).await).await;
            }

            #[tokio::test]
            async fn sqlite_4() {
                super::$case(Contract::on(Engine::Sqlite, 4).await).await;
            }

            #[tokio::test]
            async fn postgres_1() {
                super::$case(Contract::on(Engine::Postgres, 1).await).await;
            }

            #[tokio::test]
            async fn postgres_4() {
                super::$case(Contract::on(Engine::Postgres, 4).await).await;
            }
        }
    )+};
}

mod aggregates;
mod append_event;
mod append_events;
mod commands;
mod create_aggregate;
mod create_command;
pub(crate) mod database;
mod deliveries;
mod domain;
mod event_handlers;
mod event_metrics;
mod events;
mod execute_command;
mod external_models;
mod given_again;
mod handler_functions;
mod handler_pauses;
mod json;
mod large_lists;
mod projection;
mod read_model_changes;
mod read_models;
mod rebuilds;
mod server;
mod slow_handlers;
mod state;
mod streams;
mod subscriptions;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tidings::{config::Config, domain::Domain};
use uuid::Uuid;

use crate::support::{
    client::{Client, Failure, LIMIT},
    in_process::{Database, Engine, TestServer},
};

/// A server on an empty database, and a client of it.
pub struct Contract {
    pub engine: Engine,
    pub partitions: u8,
    pub server: TestServer,
    pub client: Client,
}

const EVENT: &str = "id type data metadata aggregateId aggregateType version createdAt";
const READ_MODEL: &str = "aggregateId aggregateType data version source fault createdAt updatedAt";
const ENTRY: &str = "streamName position eventId type data createdAt";
const COMMAND: &str =
    "id type data aggregateId status reason attempts createdAt notBefore processedAt";

impl Contract {
    pub async fn on(engine: Engine, partitions: u8) -> Self {
        let database = Arc::new(Database::make(engine));
        let server = TestServer::on(database, |config| {
            config.database.partitions = Some(partitions);
        })
        .await;
        Self {
            engine,
            partitions,
            client: server.client(),
            server,
        }
    }

    /// The server again on its database, with a domain (without one, the built-in one) and other options.
    pub async fn restarted(
        self,
        domain: Option<Domain>,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let database = self.server.stop().await;
        let server = match domain {
            Some(domain) => TestServer::with_domain(database, domain, configure).await,
            None => TestServer::on(database, configure).await,
        };
        Self {
            engine: self.engine,
            partitions: self.partitions,
            client: server.client(),
            server,
        }
    }

    /// A second database of the same kind, with as many partitions.
    pub async fn another(&self) -> Self {
        Self::on(self.engine, self.partitions).await
    }

    /// The data of an operation that is to succeed.
    pub async fn ask(&self, query: &str, variables: Value) -> Value {
        match self.client.query(query, variables).await {
            Ok(data) => data,
            Err(failure) => panic!("{query}\nfailed: {failure:?}"),
        }
    }

    /// The failure of an operation that is to be refused.
    pub async fn refused(&self, query: &str, variables: Value) -> Failure {
        match self.client.query(query, variables).await {
            Ok(data) => panic!("{query}\nwas to be refused, but answered {data}"),
            Err(failure) => failure,
        }
    }

    /// Appends an event: its payload.
    pub async fn append(&self, input: Value) -> Value {
        self.ask(&append_event(), json!({ "input": input })).await["appendEvent"].take()
    }

    pub async fn append_is_refused(&self, input: Value) -> Failure {
        self.refused(&append_event(), json!({ "input": input }))
            .await
    }

    /// Appends several events at once: what is stored of them.
    pub async fn append_all(&self, events: Value) -> Value {
        let variables = json!({ "input": { "events": events } });
        self.ask(&append_events(), variables).await["appendEvents"]["events"].take()
    }

    pub async fn append_all_is_refused(&self, events: Value) -> Failure {
        self.refused(&append_events(), json!({ "input": { "events": events } }))
            .await
    }

    /// Appends an entry to a stream: its payload.
    pub async fn append_entry(&self, input: Value) -> Value {
        self.ask(&append_to_stream(), json!({ "input": input }))
            .await["appendToStream"]
            .take()
    }

    pub async fn append_entry_is_refused(&self, input: Value) -> Failure {
        self.refused(&append_to_stream(), json!({ "input": input }))
            .await
    }

    /// Executes a command: its payload.
    pub async fn execute(&self, input: Value) -> Value {
        self.ask(&execute_command(), json!({ "input": input }))
            .await["executeCommand"]
            .take()
    }

    pub async fn execute_is_refused(&self, input: Value) -> Failure {
        self.refused(&execute_command(), json!({ "input": input }))
            .await
    }

    /// Records a command: as it is then.
    pub async fn create(&self, input: Value) -> Value {
        self.ask(&create_command(), json!({ "input": input })).await["createCommand"]["command"]
            .take()
    }

    pub async fn create_is_refused(&self, input: Value) -> Failure {
        self.refused(&create_command(), json!({ "input": input }))
            .await
    }

    /// Processes a pending command: its payload.
    pub async fn process(&self, id: &Value) -> Value {
        let query = format!(
            "mutation($input: ProcessCommandInput!) {{ processCommand(input: $input) {{ processed command {{ {COMMAND} }} }} }}"
        );
        self.ask(&query, json!({ "input": { "id": id } })).await["processCommand"].take()
    }

    /// A command by its id, with its events.
    pub async fn command(&self, id: &Value) -> Value {
        let query = format!(
            "query($id: UUID!) {{ command(id: $id) {{ {COMMAND} events {{ {EVENT} }} }} }}"
        );
        self.ask(&query, json!({ "id": id })).await["command"].take()
    }

    /// A command by its id once it is not pending any more.
    pub async fn settled(&self, id: &Value) -> Value {
        let started = std::time::Instant::now();
        loop {
            let command = self.command(id).await;
            if command["status"] != "PENDING" {
                return command;
            }
            assert!(started.elapsed() < LIMIT, "it stays pending: {command}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Every event of the database, as a list answers them.
    pub async fn all_events(&self) -> Vec<Value> {
        let query = format!("{{ events(first: 1000) {{ nodes {{ {EVENT} }} }} }}");
        list(self.ask(&query, json!({})).await["events"]["nodes"].take())
    }

    /// An event by its id.
    pub async fn event(&self, id: &Value) -> Value {
        let query = format!("query($id: UUID!) {{ event(id: $id) {{ {EVENT} }} }}");
        self.ask(&query, json!({ "id": id })).await["event"].take()
    }

    /// An aggregate with its events, which are in order without a gap.
    pub async fn aggregate(&self, id: Uuid) -> Value {
        let query = format!(
            "query($id: UUID!) {{ aggregate(id: $id) {{ id type version createdAt updatedAt events(first: 1000) {{ {EVENT} }} }} }}"
        );
        let aggregate = self.ask(&query, json!({ "id": id })).await["aggregate"].take();
        if !aggregate.is_null() {
            let versions: Vec<i64> = list(aggregate["events"].clone())
                .iter()
                .map(|event| event["version"].as_i64().unwrap())
                .collect();
            let newest = aggregate["version"].as_i64().unwrap();
            assert_eq!(versions, (1..=newest).collect::<Vec<_>>());
        }
        aggregate
    }

    /// A stream with its entries, which are in order without a gap.
    pub async fn stream(&self, name: &str) -> Value {
        let query = format!(
            "query($name: String!) {{ stream(name: $name) {{ name lastPosition entries(first: 1000) {{ {ENTRY} }} }} }}"
        );
        let stream = self.ask(&query, json!({ "name": name })).await["stream"].take();
        if !stream.is_null() {
            let positions: Vec<i64> = list(stream["entries"].clone())
                .iter()
                .map(|entry| entry["position"].as_i64().unwrap())
                .collect();
            let newest = stream["lastPosition"].as_i64().unwrap();
            assert_eq!(positions, (1..=newest).collect::<Vec<_>>());
        }
        stream
    }

    /// A read model once it has come to a version.
    pub async fn read_model(&self, id: Uuid, min_version: i64) -> Value {
        let query = format!(
            "query($id: UUID!, $min: Int) {{ readModel(aggregateId: $id, minVersion: $min, waitMs: 20000) {{ {READ_MODEL} }} }}"
        );
        let variables = json!({ "id": id, "min": min_version });
        self.ask(&query, variables).await["readModel"].take()
    }

    /// A read model as it is.
    pub async fn present_model(&self, id: Uuid) -> Value {
        let query =
            format!("query($id: UUID!) {{ readModel(aggregateId: $id) {{ {READ_MODEL} }} }}");
        self.ask(&query, json!({ "id": id })).await["readModel"].take()
    }

    /// Every read model, the oldest first.
    pub async fn all_models(&self) -> Vec<Value> {
        let query = format!(
            "{{ readModels(orderBy: CREATED_OLDEST_FIRST, first: 1000) {{ nodes {{ {READ_MODEL} }} }} }}"
        );
        list(self.ask(&query, json!({})).await["readModels"]["nodes"].take())
    }

    /// How far the projection is.
    pub async fn projection(&self) -> Value {
        let query = "{ projection { lagEvents lagMs faulted } }";
        self.ask(query, json!({})).await["projection"].take()
    }

    /// Waits until every event was looked at.
    pub async fn projected(&self) {
        let wait = async {
            while self.projection().await["lagEvents"] != 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait)
            .await
            .expect("everything is projected in the end");
    }

    /// Writes a read model from outside: the payload.
    pub async fn update_model(&self, input: Value) -> Value {
        self.ask(&update_model(), json!({ "input": input })).await["updateReadModel"].take()
    }

    pub async fn update_is_refused(&self, input: Value) -> Failure {
        self.refused(&update_model(), json!({ "input": input }))
            .await
    }

    /// Folds read models anew: how many.
    pub async fn rebuild(&self, input: Value) -> i64 {
        let query = "mutation($input: RebuildReadModelsInput!) { rebuildReadModels(input: $input) { count } }";
        let data = self.ask(query, json!({ "input": input })).await;
        data["rebuildReadModels"]["count"].as_i64().unwrap()
    }

    /// The newest place in the log of events.
    pub async fn newest_place(&self) -> String {
        let query = "{ events(first: 1000) { pageInfo { endCursor hasNextPage } } }";
        let page = self.ask(query, json!({})).await["events"]["pageInfo"].take();
        assert_eq!(page["hasNextPage"], false);
        page["endCursor"].as_str().unwrap().to_owned()
    }

    /// The newest place in all logs.
    pub async fn head(&self) -> String {
        let data = self.ask("{ server { headCursor } }", json!({})).await;
        data["server"]["headCursor"].as_str().unwrap().to_owned()
    }

    /// The partition that an aggregate lies in.
    pub fn partition_of(&self, aggregate: Uuid) -> u8 {
        Sha256::digest(aggregate.as_bytes())[0] & (self.partitions - 1)
    }

    /// A new aggregate in a partition; where there is only one, in that.
    pub fn aggregate_in(&self, partition: u8) -> Uuid {
        std::iter::repeat_with(Uuid::new_v4)
            .find(|id| self.partition_of(*id) == partition % self.partitions)
            .unwrap()
    }

    /// New aggregates, as many in each partition as in the others.
    pub fn aggregates(&self, count: u8) -> Vec<Uuid> {
        (0..count).map(|no| self.aggregate_in(no)).collect()
    }

    /// Appends an event each to new aggregates of several partitions, one after another.
    pub async fn fill(&self, count: u8) -> Vec<Value> {
        let mut events = Vec::new();
        for (no, aggregate) in self.aggregates(count).into_iter().enumerate() {
            let input = with(event(aggregate), json!({ "data": { "no": no } }));
            events.push(self.append(input).await["event"].take());
        }
        events
    }
}

/// An event of a user to append.
pub fn event(aggregate: Uuid) -> Value {
    json!({ "aggregateId": aggregate, "aggregateType": "user", "type": "user_created", "data": { "name": "Ada" } })
}

/// An entry to append.
pub fn entry(stream: &str) -> Value {
    json!({ "streamName": stream, "eventId": Uuid::new_v4(), "type": "user_seen", "data": { "page": 1 } })
}

/// A command that makes a user.
pub fn create_user(aggregate: Uuid, name: &str) -> Value {
    json!({ "aggregateId": aggregate, "type": "create_user", "data": { "username": name } })
}

/// A command that changes a user.
pub fn update_user(aggregate: Uuid, data: Value) -> Value {
    json!({ "aggregateId": aggregate, "type": "update_user", "data": data })
}

/// The same with other fields.
pub fn with(mut value: Value, other: Value) -> Value {
    let fields = value.as_object_mut().unwrap();
    for (name, field) in other.as_object().unwrap() {
        fields.insert(name.clone(), field.clone());
    }
    value
}

/// The elements of an array.
pub fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(elements) => elements,
        other => panic!("not a list: {other}"),
    }
}

/// One field of each.
pub fn pick(values: &[Value], field: &str) -> Vec<Value> {
    values.iter().map(|value| value[field].clone()).collect()
}

/// In an order that two lists of the same events share.
pub fn by_id(mut events: Vec<Value>) -> Vec<Value> {
    events.sort_by_key(|event| event["id"].to_string());
    events
}

fn append_event() -> String {
    format!(
        "mutation($input: AppendEventInput!) {{ appendEvent(input: $input) {{ duplicate event {{ {EVENT} }} }} }}"
    )
}

fn update_model() -> String {
    format!(
        "mutation($input: UpdateReadModelInput!) {{ updateReadModel(input: $input) {{ updated readModel {{ {READ_MODEL} }} }} }}"
    )
}

fn append_events() -> String {
    format!(
        "mutation($input: AppendEventsInput!) {{ appendEvents(input: $input) {{ events {{ {EVENT} }} }} }}"
    )
}

fn execute_command() -> String {
    format!(
        "mutation($input: CreateCommandInput!) {{ executeCommand(input: $input) {{ command {{ {COMMAND} events {{ {EVENT} }} }} events {{ {EVENT} }} }} }}"
    )
}

fn create_command() -> String {
    format!(
        "mutation($input: CreateCommandInput!) {{ createCommand(input: $input) {{ command {{ {COMMAND} }} }} }}"
    )
}

fn append_to_stream() -> String {
    format!(
        "mutation($input: AppendToStreamInput!) {{ appendToStream(input: $input) {{ duplicate entry {{ {ENTRY} }} }} }}"
    )
}
