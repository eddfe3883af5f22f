//! Two servers on one PostgreSQL, and how long a created command takes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use serde_json::{Value, json};
use tidings::domain::Timestamp;
use uuid::Uuid;

use super::{create, execute, until_settled};
use crate::support::client::{Client, Step};
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::log::StoredLog;
use crate::support::on_every_database;

on_every_database!(a_created_command_on_an_idle_server_is_processed_within_50_ms);

const FAR: &str = "2999-01-01T00:00:00Z";

fn create_user(aggregate: Uuid) -> Value {
    json!({ "aggregateId": aggregate, "type": "create_user", "data": { "username": "ada" } })
}

fn waiting(aggregate: Uuid) -> Value {
    let mut input = create_user(aggregate);
    input["notBefore"] = json!(FAR);
    input
}

async fn two_servers(partitions: u8) -> [TestServer; 2] {
    let database = Arc::new(Database::make(Engine::Postgres));
    let one = TestServer::on(database.clone(), |config| {
        config.database.partitions = Some(partitions);
    })
    .await;
    let other = TestServer::on(database, |_| {}).await;
    [one, other]
}

async fn process(client: &Client, id: &Value) -> (bool, Value) {
    let query = "mutation($input: ProcessCommandInput!) { processCommand(input: $input) { processed command { id status attempts events { id version } } } }";
    let data = client.query(query, json!({ "input": { "id": id } })).await;
    let payload = data.unwrap()["processCommand"].take();
    (
        payload["processed"].as_bool().unwrap(),
        payload["command"].clone(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_that_process_a_command_at_once_one_does() {
    const ROUNDS: usize = 30;
    let servers = two_servers(4).await;
    let [one, other] = servers.each_ref().map(TestServer::client);
    for _ in 0..ROUNDS {
        let id = create(&one, waiting(Uuid::new_v4())).await["id"].clone();
        let (first, second) = join(process(&one, &id), process(&other, &id)).await;
        assert_eq!(usize::from(first.0) + usize::from(second.0), 1);
        assert_eq!(first.1, second.1, "both tell the same outcome");
        assert_eq!(first.1["status"], "PROCESSED");
        assert_eq!(first.1["attempts"], 1);
    }
    let log = StoredLog::read_whole(&servers[0].database.url()).await;
    assert_eq!(log.events.len(), ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_through_two_servers_on_one_aggregate_are_decided_on_its_newest_state() {
    const COMMANDS: usize = 40;
    let servers = two_servers(1).await;
    let clients = servers.each_ref().map(TestServer::client);
    let user = Uuid::new_v4();
    execute(&clients[0], create_user(user)).await.unwrap();
    let all = (0..COMMANDS).map(|number| {
        let client = &clients[number % 2];
        async move {
            let input = json!({ "aggregateId": user, "type": "update_user", "data": { "email": number.to_string() } });
            execute(client, input).await.unwrap()
        }
    });
    let told = futures_util::future::join_all(all).await;
    let mut versions: Vec<i64> = told
        .iter()
        .map(|command| command["events"][0]["version"].as_i64().unwrap())
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..=COMMANDS as i64 + 1).collect::<Vec<_>>());
    StoredLog::read_whole(&servers[0].database.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_told_of_a_command_that_another_server_settles() {
    let servers = two_servers(4).await;
    let [one, other] = servers.each_ref().map(TestServer::client);
    for _ in 0..5 {
        let id = create(&one, waiting(Uuid::new_v4())).await["id"].clone();
        let query = "subscription($id: UUID!) { command(id: $id) { status events { version } } }";
        let mut subscription = other.subscribe(query, json!({ "id": id })).await;
        assert_eq!(
            subscription.next_data().await["command"]["status"],
            "PENDING"
        );
        assert!(process(&one, &id).await.0);
        let told = subscription.next_data().await;
        let expected = json!({ "status": "PROCESSED", "events": [{ "version": 1 }] });
        assert_eq!(told["command"], expected);
        assert_eq!(subscription.next().await, Step::Complete);
    }
}

/// The median says what the server does. Nextest runs nothing beside it.
async fn a_created_command_on_an_idle_server_is_processed_within_50_ms(
    engine: Engine,
    partitions: u8,
) {
    const COMMANDS: usize = 15;
    let database = Arc::new(Database::make(engine));
    let server = TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
    })
    .await;
    let client = server.client();
    let mut taken_ms = Vec::new();
    for _ in 0..COMMANDS {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let created = create(&client, create_user(Uuid::new_v4())).await;
        let settled = until_settled(&client, &created["id"]).await;
        assert_eq!(settled["status"], "PROCESSED");
        let micros = |field: &str| {
            let instant = Timestamp::parse(settled[field].as_str().unwrap()).unwrap();
            instant.as_micros()
        };
        taken_ms.push((micros("processedAt") - micros("createdAt")) as f64 / 1000.0);
    }
    taken_ms.sort_by(f64::total_cmp);
    println!("{engine:?} with {partitions}: {taken_ms:.1?} ms");
    assert!(taken_ms[COMMANDS / 2] < 50.0, "{taken_ms:?}");
}
