//! Connections to PostgreSQL on which nothing is answered any more, and which nobody closes: the network is cut, or the
//! database's machine is gone. Whoever waits is told in time, and such a connection is not used again.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::support::client::{Failure, LIMIT};
use crate::support::clock::pass;
use crate::support::in_process::TestServer;
use crate::support::load::{Append, NewEvent, Told};
use crate::support::proxy::Proxy;

/// How long a statement that reads may take.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one that writes may take, with the time that it may wait for a lock.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15 + 5);
/// How long a connection may take to come about, or to show that it is there.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was not used for this long is asked for a sign of life before it is used.
const IDLE: Duration = Duration::from_secs(2);

/// A server that reaches its database through a proxy, with one connection for reading. Both are warm: they were just used.
async fn serve(request_timeout: Duration) -> (TestServer, Proxy) {
    let database = Arc::new(Database::make(Engine::Postgres));
    let proxy = Proxy::to(&database.url()).await;
    let server = TestServer::on(database, |config| {
        config.database.url = proxy.url.parse().unwrap();
        config.background.enabled = false;
        // They would be written as time passes, on a connection that is silent too.
        config.observability.event_metrics = false;
        config.database.max_connections = 1;
        config.limits.request_timeout = request_timeout;
    })
    .await;
    assert!(matches!(
        event().send(&server.client()).await,
        Told::Acknowledged(..)
    ));
    assert_eq!(read(&server).await.unwrap().unwrap(), 1);
    (server, proxy)
}

fn event() -> Append {
    Append::Event(NewEvent::new(Uuid::new_v4(), json!({})))
}

/// Begins to read how many events there are.
fn read(server: &TestServer) -> JoinHandle<Result<usize, Failure>> {
    let client = server.client();
    tokio::spawn(async move {
        let data = client
            .query("{ events(first: 1000) { nodes { id } } }", json!({}))
            .await?;
        Ok(data["events"]["nodes"].as_array().map_or(0, Vec::len))
    })
}

fn send(server: &TestServer, append: &Append) -> JoinHandle<Told> {
    let (client, append) = (server.client(), append.clone());
    tokio::spawn(async move { append.send(&client).await })
}

/// What a task comes to, which is not to take long.
async fn end_of<T>(task: JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(LIMIT, task).await;
    ended.expect("it ends").unwrap()
}

/// Much more than any other time-out.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_read_that_is_not_answered_is_asked_again_on_another_connection() {
    let (server, proxy) = serve(NEVER).await;
    proxy.fall_silent();
    let waiting = read(&server);
    proxy.until_asked(1).await;
    pass(READ_TIMEOUT).await;
    assert_eq!(end_of(waiting).await.unwrap(), 1);
    proxy.until_all_asked_are_given_up().await;

    assert_eq!(end_of(read(&server)).await.unwrap(), 1);
    // Were there others at hand, each is asked once.
    proxy.until_all_asked_are_given_up().await;
}

#[tokio::test]
async fn a_write_that_is_not_answered_is_given_up_and_the_next_one_takes_another_connection() {
    let (server, proxy) = serve(NEVER).await;
    proxy.fall_silent();
    let append = event();
    let waiting = send(&server, &append);
    proxy.until_asked(1).await;
    pass(WRITE_TIMEOUT).await;
    let told = end_of(waiting).await;
    assert!(matches!(told, Told::Unknown(_)), "{told:?}");
    proxy.until_all_asked_are_given_up().await;

    // The cut network has not carried it to the database: the repeat is the first.
    let told = end_of(send(&server, &append)).await;
    assert!(matches!(told, Told::Acknowledged(_, false)), "{told:?}");
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), 2);
}

#[tokio::test]
async fn a_ring_that_is_not_answered_is_given_up() {
    let (server, proxy) = serve(NEVER).await;
    let doorbell = server.app.store().doorbell().unwrap();
    doorbell.ring("").await.unwrap();
    proxy.fall_silent();
    let waiting = tokio::spawn(async move { doorbell.ring("").await });
    proxy.until_asked(1).await;
    pass(READ_TIMEOUT).await;
    assert!(end_of(waiting).await.is_err());
    proxy.until_all_asked_are_given_up().await;
    assert_eq!(end_of(read(&server)).await.unwrap(), 1);
}

#[tokio::test]
async fn connections_that_fell_silent_while_nobody_used_them_are_given_up() {
    let (server, proxy) = serve(NEVER).await;
    pass(IDLE).await;
    proxy.fall_silent();
    let append = event();
    let (reading, writing) = (read(&server), send(&server, &append));
    proxy.until_asked(2).await;
    pass(ACQUIRE_TIMEOUT).await;
    end_of(reading).await.unwrap();
    let told = end_of(writing).await;
    assert!(matches!(told, Told::Acknowledged(_, false)), "{told:?}");
    proxy.until_all_asked_are_given_up().await;
    assert_eq!(end_of(read(&server)).await.unwrap(), 2);
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_gives_its_silent_connection_up() {
    let request_timeout = Duration::from_secs(1);
    let (server, proxy) = serve(request_timeout).await;
    proxy.fall_silent();
    let waiting = read(&server);
    proxy.until_asked(1).await;
    pass(request_timeout * 2).await;
    let failure = end_of(waiting).await.unwrap_err();
    assert_eq!(failure.code(), "UNAVAILABLE", "{failure:?}");

    pass(ACQUIRE_TIMEOUT).await;
    proxy.until_all_asked_are_given_up().await;
    assert_eq!(end_of(read(&server)).await.unwrap(), 1);
    // Were there others at hand, each is asked once.
    proxy.until_all_asked_are_given_up().await;
}
