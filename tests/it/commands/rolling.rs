//! Servers with two domains on one database, as while a change of the domain goes from server to server.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::{Value, json};
use tidings::domain::{
    AggregateType, CommandDescription, CommandInHand, DecidedEvent, Decider, Domain, FoldFault,
    PastEvent, Rejection, State, StreamName,
};
use uuid::Uuid;

use super::{command, create, until_settled};
use crate::support::client::LIMIT;
use crate::support::deciders::{Accounts, Machines};
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::log::StoredLog;

async fn start(database: &Arc<Database>, domain: Domain, is_working: bool) -> TestServer {
    TestServer::with_domain(database.clone(), domain, |config| {
        config.database.partitions = Some(1);
        config.commands.attempts = 2;
        config.commands.retry_delay = Duration::from_millis(1);
        config.background.enabled = is_working;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_only_the_domain_in_force_knows_waits_for_a_server_with_it() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let old = start(&database, Machines::domain(0).0, true).await;
    let new = start(&database, Accounts::domain(), false).await;
    let (to_old, to_new) = (old.client(), new.client());
    let account = Uuid::new_v4();
    let open = json!({ "aggregateId": account, "type": "open_account", "data": {} });
    let deposit =
        json!({ "aggregateId": account, "type": "deposit_money", "data": { "amount": 5 } });
    let mut of_account = Vec::new();
    for input in [open, deposit] {
        of_account.push(create(&to_new, input).await["id"].clone());
    }
    // The old server goes on with what it knows, and has come by the others again and again.
    for _ in 0..5 {
        let stop = json!({ "aggregateId": Uuid::new_v4(), "type": "stop_machine", "data": {} });
        let id = create(&to_old, stop).await["id"].clone();
        assert_eq!(until_settled(&to_old, &id).await["status"], "PROCESSED");
    }
    // Nor does it count a try when it is told to.
    let query = "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed command { status } } }";
    let variables = json!({ "input": { "id": of_account[0] } });
    let told = to_old.query(query, variables).await.unwrap();
    assert_eq!(
        told["processCommand"],
        json!({ "processed": false, "command": { "status": "PENDING" } })
    );
    for id in &of_account {
        let left = command(&to_new, id).await;
        assert_eq!(
            (&left["status"], &left["attempts"], &left["reason"]),
            (&json!("PENDING"), &json!(0), &Value::Null)
        );
    }

    old.stop().await;
    let working = start(&database, Accounts::domain(), true).await;
    for (number, id) in of_account.iter().enumerate() {
        let settled = until_settled(&working.client(), id).await;
        assert_eq!(settled["status"], "PROCESSED");
        assert_eq!(settled["attempts"], 1);
        assert_eq!(settled["events"][0]["version"], number + 1);
    }
    new.stop().await;
}

/// Publishes the events of its aggregates, and has no commands.
struct Published(&'static str);

impl Decider for Published {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("load").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        Vec::new()
    }

    fn publish_to(&self) -> Option<StreamName> {
        Some(StreamName::new(self.0).unwrap())
    }

    fn decide(&self, _: &State, _: &CommandInHand<'_>) -> Result<Vec<DecidedEvent>, Rejection> {
        Ok(Vec::new())
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        event.merge_into(state)
    }
}

/// Waits until so many entries are in a stream; the ids of their events.
async fn published(database_url: &str, stream: &str, count: usize) -> Vec<Uuid> {
    let wait = async {
        loop {
            let log = StoredLog::read_whole(database_url).await;
            let entries = log.of_stream(stream);
            if entries.len() >= count {
                return entries.iter().map(|entry| entry.event_id).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .expect("they are published")
}

async fn append(server: &TestServer, count: usize) -> Vec<Uuid> {
    let query =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { id } } }";
    let mut ids = Vec::new();
    for _ in 0..count {
        let input = json!({ "aggregateId": Uuid::new_v4(), "aggregateType": "load", "type": "loaded", "data": {} });
        let told = server
            .client()
            .query(query, json!({ "input": input }))
            .await;
        let id = &told.unwrap()["appendEvent"]["event"]["id"];
        ids.push(id.as_str().unwrap().parse().unwrap());
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_brings_another_domain_takes_the_partitions_from_those_without_it() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let url = database.url();
    let domain = |stream| Domain::new(vec![Arc::new(Published(stream))]).unwrap();
    let start = async |stream| start(&database, domain(stream), true).await;
    let old = start("old").await;
    let before = append(&old, 5).await;
    assert_eq!(published(&url, "old", 5).await, before);

    // A second one with the same domain takes nothing; one with another does, and a second one of that takes nothing again.
    let beside = start("old").await;
    let new = start("new").await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let taken = async {
        // What publishes is fenced as well as the lease.
        let taken = "SELECT l.token = 2 AND c.fence = 2 FROM leases l, checkpoints c \
             WHERE l.name = 'partition-0' AND c.name = 'publish'";
        while !sqlx::query_scalar::<_, bool>(taken)
            .fetch_one(&mut connection)
            .await
            .unwrap()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, taken)
        .await
        .expect("it takes the partition over");
    let beside_new = start("new").await;
    let mut after = append(&old, 5).await;
    after.extend(append(&new, 5).await);
    assert_eq!(published(&url, "new", 10).await, after);
    let token: i64 = sqlx::query_scalar("SELECT token FROM leases WHERE name = 'partition-0'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(token, 2);

    // With nobody else there, an old one works again: better by the old rules than not at all.
    new.stop().await;
    beside_new.stop().await;
    let last = append(&beside, 1).await;
    assert_eq!(published(&url, "old", 6).await[5..], last);
    old.stop().await;
    beside.stop().await;
}
