//! The database goes away, freezes, or is locked by somebody else, while the server runs on.

use std::process::Command;
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::support::load::{Append, NewEvent, aggregate_in};
use crate::support::postgres::Cluster;

/// A server on a cluster that this test may stop, with time-outs that keep the test short.
fn serve(database_url: &str, partitions: u8) -> TestServer {
    TestServer::on(database_url)
        .arguments(["--partitions", &partitions.to_string()])
        .arguments(["--database-acquire-timeout", "1s", "--lock-timeout", "1s"])
        .arguments(["--request-timeout", "3s"])
        .start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_recovers_by_itself_from_a_crash_of_postgres() {
    let cluster = Cluster::private();
    let database = cluster.create_database();
    let server = serve(&database.url, 4);
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false);
    let load = Load::start(&client, WRITERS, mixed());
    for round in 0..rounds(10) {
        load.until_more_acknowledged(200).await;
        let before = load.counts();
        cluster.stop_immediate();
        let failed = load
            .until("appends that fail while the database is away", |counts| {
                counts.failed() >= before.failed() + 2 * WRITERS
            })
            .await;
        let read = client.query("{ events(first: 1) { nodes { id } } }", json!({}));
        assert_eq!(read.await.unwrap_err().code(), "UNAVAILABLE");
        cluster.start();
        let started = Instant::now();
        load.until_more_acknowledged(200).await;
        println!(
            "round {round}: {before:?}, then {failed:?}; 200 more appends {:?} after the start",
            started.elapsed()
        );
    }
    let mut ledger = load.stop().await;
    println!("{:?} {:?}", ledger.counts, ledger.reasons);
    assert_eq!(ledger.counts.cut, 0, "every call was answered");
    assert!(ledger.counts.not_done > 0, "{:?}", ledger.counts);
    assert_nothing_was_lost(&database.url, &client, &mut ledger, &followers).await;
    assert!(
        followers.iter().all(|follower| follower.resumed() == 0),
        "subscriptions live through it"
    );
}

/// An aggregate in each of four partitions.
fn aggregates() -> Vec<Uuid> {
    (0..4).map(aggregate_in).collect()
}

/// Writers 0, 4, 8 … append to the aggregate of partition 0, and so on.
fn one_partition_each(aggregates: &[Uuid]) -> impl Fn(usize, usize) -> Append + use<> {
    let aggregates = aggregates.to_vec();
    move |writer, call| {
        let data = json!({ "writer": writer, "call": call });
        Append::Event(NewEvent::new(aggregates[writer % 4], data))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_somebody_holds_stops_its_own_partition_alone() {
    let database = Cluster::shared().create_database();
    let server = serve(&database.url, 4);
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false)
        .into_iter()
        .take(3)
        .collect::<Vec<_>>();
    let aggregates = aggregates();
    let in_partition_0 = Load::start(&client, 4, {
        let aggregate = aggregates[0];
        move |_, call| Append::Event(NewEvent::new(aggregate, json!({ "call": call })))
    });
    let elsewhere = Load::start(&client, 6, {
        let next = one_partition_each(&aggregates);
        move |writer, call| next(writer % 3 + 1, call)
    });
    in_partition_0.until_more_acknowledged(20).await;

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query(
        "SELECT 1 FROM partition_locks WHERE partition_no = 0 AND log = 'events' FOR UPDATE",
    )
    .execute(&mut *lock)
    .await
    .unwrap();
    let locked = in_partition_0.counts();
    let failed = in_partition_0
        .until("appends that fail for the lock", |counts| {
            counts.failed() >= locked.failed() + 8
        })
        .await;
    // What was answered while the lock was being taken apart, nothing gets past it.
    assert!(
        failed.acknowledged <= locked.acknowledged + 4,
        "{locked:?}, then {failed:?}"
    );
    elsewhere.until_more_acknowledged(50).await;
    let read = client
        .query(
            "query($id: UUID!) { aggregate(id: $id) { version events(first: 1) { version } } }",
            json!({ "id": aggregates[0] }),
        )
        .await
        .unwrap();
    assert_eq!(read["aggregate"]["events"][0]["version"], 1);
    assert_eq!(
        in_partition_0.counts().acknowledged,
        failed.acknowledged,
        "the lock was held all the time"
    );
    lock.rollback().await.unwrap();
    in_partition_0.until_more_acknowledged(50).await;

    let elsewhere = elsewhere.stop().await;
    assert_eq!(
        elsewhere.counts.failed(),
        0,
        "other partitions do not notice: {:?} {:?}",
        elsewhere.counts,
        elsewhere.reasons
    );
    let mut ledger = in_partition_0.stop().await;
    assert!(
        ledger
            .reasons
            .keys()
            .any(|reason| reason.starts_with("another client of the database holds")),
        "{:?}",
        ledger.reasons
    );
    ledger.add(elsewhere);
    assert_nothing_was_lost(&database.url, &client, &mut ledger, &followers).await;
}

/// Stops or continues processes.
fn signal(name: &str, pids: &[i32]) {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let command = format!("kill -{name} {}", pids.join(" "));
    let status = Command::new("/bin/sh").args(["-c", &command]).status();
    assert!(status.unwrap().success(), "{command}");
}

/// The processes of PostgreSQL that serve connections of a server to a database.
async fn backends(observer: &mut PgConnection) -> Vec<i32> {
    sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tidings'",
    )
    .fetch_all(observer)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_after_its_database_was_frozen() {
    let cluster = Cluster::private();
    let database = cluster.create_database();
    let server = serve(&database.url, 4);
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), false);
    let load = Load::start(&client, WRITERS, mixed());
    load.until_more_acknowledged(200).await;

    let mut observer = PgConnection::connect(&database.url).await.unwrap();
    let frozen = backends(&mut observer).await;
    assert!(!frozen.is_empty());
    signal("STOP", &frozen);
    let before = load.counts();
    let failed = load
        .until("appends that fail while the database is frozen", |counts| {
            counts.unknown > 0 && counts.failed() >= before.failed() + WRITERS
        })
        .await;
    signal("CONT", &frozen);
    load.until_more_acknowledged(200).await;
    let mut ledger = load.stop().await;
    println!("{before:?}, then {failed:?}; {:?}", ledger.reasons);
    assert!(ledger.counts.unknown > 0, "{:?}", ledger.counts);
    assert_eq!(ledger.counts.cut, 0, "every call was answered");
    assert_nothing_was_lost(&database.url, &client, &mut ledger, &followers).await;
}

/// A server that is stopped in the middle of a transaction keeps its locks only as long as PostgreSQL lets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_does_not_hold_up_another_one() {
    let database = Cluster::shared().create_database();
    let frozen = TestServer::on(&database.url)
        .arguments(["--partitions", "4"])
        .start();
    let other = TestServer::start(&database.url);
    let aggregates = aggregates();
    // Appends over all partitions take several round trips under their locks.
    let over_all = {
        let aggregates = aggregates.clone();
        move |writer: usize, call: usize| {
            let data = json!({ "writer": writer, "call": call });
            Append::Events(
                aggregates
                    .iter()
                    .map(|id| NewEvent::new(*id, data.clone()))
                    .collect(),
            )
        }
    };
    let load = Load::start(&Client::new(&frozen), WRITERS, over_all);
    load.until_more_acknowledged(50).await;
    let mut observer = PgConnection::connect(&database.url).await.unwrap();
    // Until it is caught while it holds a lock.
    let caught = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            signal("STOP", &[i32::try_from(frozen.pid()).unwrap()]);
            let holding: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND state = 'idle in transaction'",
            )
            .fetch_one(&mut observer)
            .await
            .unwrap();
            if holding > 0 {
                return;
            }
            signal("CONT", &[i32::try_from(frozen.pid()).unwrap()]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    caught.await.expect("it is caught in a transaction");

    let client = Client::new(&other);
    let began = Instant::now();
    for aggregate in &aggregates {
        Append::Event(NewEvent::new(*aggregate, json!({})))
            .send_until_acknowledged(&client)
            .await;
    }
    println!("the other server went on after {:?}", began.elapsed());
    // Those that wait for the lock behind the one that holds it get it in turn, and each keeps it for as long.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );

    signal("CONT", &[i32::try_from(frozen.pid()).unwrap()]);
    load.until_more_acknowledged(50).await;
    let mut ledger = load.stop().await;
    assert_eq!(ledger.counts.cut, 0, "{:?}", ledger.counts);
    ledger.repeat_unknown(&client).await;
    ledger.assert_kept_in(&StoredLog::read_whole(&database.url).await);
}
