//! A client that hangs up while its append is under way: what was begun is finished, and told to whoever follows.

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::support::client::LIMIT;
use crate::support::in_process::TestServer;
use crate::support::load::aggregate_in;

const APPEND: &str =
    "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }";

/// Waits until a server waits for a lock in the database.
async fn until_a_lock_is_waited_for(observer: &mut PgConnection) {
    let waiting = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = 'tidings' AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut *observer)
            .await
            .unwrap();
            if waiting > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, waiting)
        .await
        .expect("the append waits for the lock");
}

#[tokio::test]
async fn an_append_over_several_partitions_is_finished_when_its_client_hangs_up_in_the_middle() {
    let database = Arc::new(Database::make(Engine::Postgres));
    let server = TestServer::on(database, |config| config.database.partitions = Some(4)).await;
    let client = server.client();
    let query = "subscription { events(after: \"\") { event { aggregateId } } }";
    let mut subscription = client.subscribe(query, json!({})).await;
    let url = server.database.url();
    let mut holder = PgConnection::connect(&url).await.unwrap();
    let mut observer = PgConnection::connect(&url).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query(
        "SELECT 1 FROM partition_locks WHERE partition_no = 2 AND log = 'events' FOR UPDATE",
    )
    .execute(&mut *lock)
    .await
    .unwrap();

    // It has the lock of partition 1, and waits for that of partition 2.
    let aggregates: [Uuid; 2] = [aggregate_in(1), aggregate_in(2)];
    let events = aggregates.map(
        |id| json!({ "aggregateId": id, "aggregateType": "user", "type": "counted", "data": {} }),
    );
    let body = json!({ "query": APPEND, "variables": { "input": { "events": events } } });
    let body = body.to_string();
    let head = format!(
        "POST /graphql HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        server.authority(),
        body.len()
    );
    let mut socket = TcpStream::connect(server.authority()).await.unwrap();
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    until_a_lock_is_waited_for(&mut observer).await;
    // The server closes its end of the connection once it has noticed and let the request go.
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(LIMIT, socket.read_to_end(&mut answer)).await;
    closed.expect("the server hangs up as well").unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    lock.rollback().await.unwrap();

    let mut followed: Vec<String> = subscription
        .take("events", 2)
        .await
        .iter()
        .map(|step| {
            step["event"]["aggregateId"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    let mut expected = aggregates.map(|id| id.to_string());
    followed.sort();
    expected.sort();
    assert_eq!(followed, expected);
    let log = StoredLog::read_whole(&url).await;
    assert_eq!(log.events.len(), 2);
    assert_eq!(log.partitions_with_events(), 2);
}
