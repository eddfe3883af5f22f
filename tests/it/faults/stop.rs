//! SIGTERM and Ctrl-C: what was accepted is finished, websockets are closed with 1001, and the server is gone within ten
//! seconds, whatever its clients and its database do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::support::client::{LIMIT, Socket, Step};
use crate::support::load::{Append, NewEvent, Told};
use crate::support::postgres::Cluster;

const STOP_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_during_load_loses_nothing_on_sqlite() {
    stop_during_load(Engine::Sqlite, "TERM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_during_load_loses_nothing_on_postgres() {
    stop_during_load(Engine::Postgres, "TERM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_during_load_loses_nothing() {
    stop_during_load(Engine::Sqlite, "INT").await;
}

/// Waits for the end of a server without holding up the tasks of the test.
fn wait_for_its_end(server: &mut TestServer) -> std::process::ExitStatus {
    tokio::task::block_in_place(|| server.wait(STOP_LIMIT))
}

/// Clients that would hold up a stop if it let them.
struct Stalled {
    _half_a_request: TcpStream,
    _half_a_body: TcpStream,
    _idle: TcpStream,
    _takes_nothing: Follower,
    _never_begins: Socket,
}

impl Stalled {
    async fn connect(server: &TestServer, large_stream: &str) -> (Stalled, watch::Sender<bool>) {
        let open = |text: &str| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        };
        let (may_read, wait) = watch::channel(false);
        let follow = Follow::Stream(large_stream.to_owned());
        let manner = Manner {
            held_until: Some(wait),
            is_narrow: true,
            ..Manner::all(&follow)
        };
        let stalled = Stalled {
            _half_a_request: open("POST /graphql HTTP/1.1\r\nhost: loc"),
            _half_a_body: open(
                "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"query\":",
            ),
            _idle: open(""),
            _takes_nothing: Follower::start(&server.ws_url(), follow, manner),
            _never_begins: Socket::open(&server.ws_url(), "graphql-transport-ws", &[])
                .await
                .unwrap(),
        };
        (stalled, may_read)
    }
}

async fn stop_during_load(engine: Engine, signal: &str) {
    let database = Arc::new(Database::make(engine));
    let mut server = TestServer::start(&database.url());
    let client = Client::new(&server);
    // So much that it does not fit into the buffers between server and client.
    let large = Load::start_until(&client, 4, |_, call| {
        (call < 50).then(|| Append::entry("large", json!("x".repeat(64 << 10))))
    });
    let mut ledger = large.finish().await;
    let (stalled, _may_read) = Stalled::connect(&server, "large").await;
    let mut subscribers = Vec::new();
    for _ in 0..10 {
        let mut subscription = client
            .subscribe(
                "subscription { streamEntries(streamName: \"quiet\", after: 0) { position } }",
                json!({}),
            )
            .await;
        assert_eq!(subscription.next_within(Duration::ZERO).await, None);
        subscribers.push(subscription);
    }
    let quiet = Append::entry("quiet", json!({}));
    quiet.send_until_acknowledged(&client).await;
    for subscription in &mut subscribers {
        assert_eq!(
            subscription.next_data().await["streamEntries"]["position"],
            1
        );
    }

    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(200).await;
    let asked = Instant::now();
    server.signal(signal);
    let closes = subscribers
        .iter_mut()
        .map(|subscription| subscription.next());
    for step in futures_util::future::join_all(closes).await {
        assert!(matches!(step, Step::Closed { code: 1001, .. }), "{step:?}");
    }
    load.until("calls that nobody answers", |counts| counts.cut > 0)
        .await;
    ledger.add(load.stop().await);
    let status = wait_for_its_end(&mut server);
    println!("ended {:?} after the signal", asked.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < STOP_LIMIT);
    drop(stalled);

    let log = StoredLog::read_whole(&database.url()).await;
    ledger.assert_kept_in(&log);
    server.restart();
    ledger.repeat_unknown(&client).await;
    let log = StoredLog::read_whole(&database.url()).await;
    ledger
        .acknowledged
        .extend(quiet.ids().iter().map(|id| (*id, 1)));
    ledger.assert_is_all_of(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_was_accepted_before_the_signal_is_finished_and_answered() {
    let database = Cluster::shared().create_database();
    let mut server = TestServer::start(&database.url);
    let client = Client::new(&server);
    let aggregate = Uuid::new_v4();
    let first = Append::Event(NewEvent::new(aggregate, json!({})));
    first.send_until_acknowledged(&client).await;

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let lock = hold_lock(&mut holder).await;
    let accepted = send_behind(&client, aggregate);
    wait_for_the_lock(&database.url, 1).await;
    server.sigterm();
    wait_until_it_stops(&server).await;
    lock.rollback().await.unwrap();

    let mut versions: Vec<i64> = Vec::new();
    for told in accepted {
        match told.await.unwrap() {
            Told::Acknowledged(places, false) => versions.push(places[0].1),
            told => panic!("it was accepted before the signal: {told:?}"),
        }
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..=1 + BEHIND as i64).collect::<Vec<_>>());
    assert_eq!(wait_for_its_end(&mut server).code(), Some(0));
    let log = StoredLog::read_whole(&database.url).await;
    assert_eq!(log.of_aggregate(aggregate).len(), 1 + BEHIND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_does_not_hold_up_the_stop() {
    let database = Cluster::shared().create_database();
    let mut server = TestServer::on(&database.url)
        .arguments(["--lock-timeout", "60s"])
        .start();
    let client = Client::new(&server);
    let aggregate = Uuid::new_v4();
    let first = Append::Event(NewEvent::new(aggregate, json!({})));
    first.send_until_acknowledged(&client).await;

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let lock = hold_lock(&mut holder).await;
    let accepted = send_behind(&client, aggregate);
    wait_for_the_lock(&database.url, 1).await;
    let asked = Instant::now();
    server.sigterm();
    assert_eq!(wait_for_its_end(&mut server).code(), Some(0));
    println!("ended {:?} after the signal", asked.elapsed());
    for told in accepted {
        let told = told.await.unwrap();
        assert!(
            !matches!(told, Told::Acknowledged(..) | Told::Refused(_)),
            "{told:?}"
        );
    }
    lock.rollback().await.unwrap();
    StoredLog::read_whole(&database.url).await;
}

const BEHIND: usize = 8;

async fn hold_lock(holder: &mut PgConnection) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut lock = holder.begin().await.unwrap();
    sqlx::query(
        "SELECT 1 FROM partition_locks WHERE partition_no = 0 AND log = 'events' FOR UPDATE",
    )
    .execute(&mut *lock)
    .await
    .unwrap();
    lock
}

fn send_behind(client: &Client, aggregate: Uuid) -> Vec<tokio::task::JoinHandle<Told>> {
    (0..BEHIND)
        .map(|number| {
            let client = client.clone();
            let append = Append::Event(NewEvent::new(aggregate, json!({ "number": number })));
            tokio::spawn(async move { append.send(&client).await })
        })
        .collect()
}

/// Waits until so many sessions of the server wait for a lock.
async fn wait_for_the_lock(database_url: &str, sessions: i64) {
    let mut observer = PgConnection::connect(database_url).await.unwrap();
    let waiting = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = 'tidings' AND wait_event_type = 'Lock'",
            )
            .fetch_one(&mut observer)
            .await
            .unwrap();
            if waiting >= sessions {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .expect("the server waits for the lock");
}

/// Waits until the server takes no connection any more.
async fn wait_until_it_stops(server: &TestServer) {
    let stopped = async {
        loop {
            let Ok(mut stream) = TcpStream::connect(server.address()) else {
                return;
            };
            // A connection that was accepted by the system alone is reset.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
            let _ = stream
                .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            if answer.starts_with("HTTP/1.1 503") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, stopped)
        .await
        .expect("the server begins to stop");
}
