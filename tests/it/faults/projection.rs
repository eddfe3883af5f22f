//! Read models while servers are killed, stopped and continued: no event is folded twice, left out, or out of order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::support::client::{LIMIT, Step};
use crate::support::counting::STREAM;
use crate::support::load::{Append, NewEvent, aggregate_in};
use crate::support::log::StoredEntry;
use crate::support::postgres::Cluster;
use crate::support::projected::{StoredModels, assert_published};

const KILLS: usize = 10;
/// Short enough for a test, long enough for a machine that is busy.
const LEASE: Duration = Duration::from_secs(5);

/// A server with the counting domain, which soon goes on where the one before it was killed.
fn serve(database_url: &str, partitions: u8) -> TestServer {
    TestServer::counting(database_url)
        .arguments(["--partitions", &partitions.to_string(), "--lease", "150ms"])
        .start()
}

/// A client that holds every read model, by subscribing to their changes behind its newest cursor, whatever happens.
struct Holder {
    held: watch::Receiver<BTreeMap<String, Value>>,
    task: tokio::task::JoinHandle<()>,
}

impl Holder {
    fn start(client: &Client) -> Holder {
        let (told, held) = watch::channel(BTreeMap::new());
        let client = client.clone();
        let task = tokio::spawn(async move {
            let query = "subscription($after: String) { readModels(after: $after) { cursor aggregateId readModel { version data } } }";
            let mut after = json!("");
            loop {
                let Some(mut subscription) =
                    client.try_subscribe(query, json!({ "after": after })).await
                else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while let Step::Next(mut payload) = subscription.next_whenever().await {
                    let change = payload["data"]["readModels"].take();
                    assert!(change["cursor"].is_string(), "{payload}");
                    after = change["cursor"].clone();
                    told.send_modify(|held| {
                        held.insert(
                            change["aggregateId"].to_string(),
                            change["readModel"].clone(),
                        );
                    });
                }
            }
        });
        Holder { held, task }
    }

    /// Waits until it holds what is stored.
    async fn assert_holds(&self, stored: &StoredModels) {
        let expected: BTreeMap<String, Value> = stored
            .models
            .values()
            .map(|model| {
                let shown = json!({ "version": model.version, "data": model.data });
                (json!(model.aggregate_id).to_string(), shown)
            })
            .collect();
        let mut held = self.held.clone();
        let waited = tokio::time::timeout(LIMIT, held.wait_for(|held| *held == expected)).await;
        assert!(
            waited.is_ok(),
            "{:?}\nand not\n{expected:?}",
            self.held.borrow()
        );
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

on_databases!(
    kill_again_and_again:
    a_killed_server_folds_and_publishes_each_event_once_on_sqlite(Sqlite, 1),
    a_killed_server_folds_and_publishes_each_event_once_on_sqlite_with_4_partitions(Sqlite, 4),
    a_killed_server_folds_and_publishes_each_event_once_on_postgres(Postgres, 1),
    a_killed_server_folds_and_publishes_each_event_once_on_postgres_with_4_partitions(Postgres, 4),
);

async fn kill_again_and_again(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let mut server = serve(&database.url(), partitions);
    let client = Client::new(&server);
    let holder = Holder::start(&client);
    let ledger = kill_during_load(&mut server, &client, KILLS).await;
    let (mut log, models) = StoredModels::read_settled(&database.url()).await;
    models.assert_folded(&log);
    assert_published(&log);
    log.entries.retain(is_appended);
    ledger.assert_kept_in(&log);
    holder.assert_holds(&models).await;
    println!("{:?}, {} events folded", ledger.counts, log.events.len());
}

/// Whether a client has appended it: entries that are published have the ids of their events.
fn is_appended(entry: &StoredEntry) -> bool {
    entry.stream != STREAM
}

/// How often a server has begun to work on a partition, as it says itself.
fn begun(server: &TestServer) -> usize {
    server
        .output()
        .matches("this server works on the partition")
        .count()
}

fn serve_telling(database_url: &str) -> TestServer {
    let lease = format!("{}ms", LEASE.as_millis());
    TestServer::counting(database_url)
        .arguments(["--partitions", "4", "--lease", &lease])
        .env("COUNTING_SERVER_LOG", "info,tidings::app=debug")
        .start()
}

/// Appends to an aggregate of each partition, and waits until all is folded.
async fn append_and_read(client: &Client) -> Duration {
    let began = Instant::now();
    let query = "query($id: UUID!) { readModel(aggregateId: $id, minVersion: 1, waitMs: 30000) { version } }";
    for partition in 0..4 {
        let id = aggregate_in(partition);
        let event = Append::Event(NewEvent::new(id, json!({})));
        event.send_until_acknowledged(client).await;
        let found = client.query(query, json!({ "id": id })).await;
        assert_eq!(found.unwrap()["readModel"]["version"], 1);
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_at_a_time_works_on_a_partition_and_another_takes_over_when_it_is_killed() {
    let database = Cluster::shared().create_database();
    let mut working = serve_telling(&database.url);
    append_and_read(&Client::new(&working)).await;
    assert_eq!(begun(&working), 4);
    let mut waiting = serve_telling(&database.url);
    let mut ledger = Ledger::default();
    for round in 0..rounds(3) {
        let client = Client::new(&waiting);
        let load = Load::start(&client, WRITERS, mixed());
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        assert_eq!(begun(&waiting), 0, "one works, the other does not");
        let told = begun(&working);

        working.kill9();
        let killed = Instant::now();
        append_and_read(&client).await;
        let took_over = killed.elapsed();
        println!("round {round}: the other one went on {took_over:?} after the kill");
        assert!(took_over < LEASE + Duration::from_secs(4), "{took_over:?}");
        assert_eq!((told, begun(&waiting)), (4, 4));
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        ledger.add(load.stop().await);

        working = std::mem::replace(&mut waiting, serve_telling(&database.url));
    }
    let (mut log, models) = StoredModels::read_settled(&database.url).await;
    models.assert_folded(&log);
    assert_published(&log);
    log.entries.retain(is_appended);
    ledger.assert_kept_in(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_gives_its_partitions_back_at_once() {
    let database = Cluster::shared().create_database();
    let arguments = ["--partitions", "4", "--lease", "60s"];
    let mut working = TestServer::counting(&database.url)
        .arguments(arguments)
        .start();
    append_and_read(&Client::new(&working)).await;
    let waiting = TestServer::counting(&database.url)
        .arguments(arguments)
        .start();
    let status = tokio::task::block_in_place(|| working.sigterm_and_wait(Duration::from_secs(10)));
    assert!(status.success());
    let took_over = append_and_read(&Client::new(&waiting)).await;
    assert!(took_over < Duration::from_secs(25), "{took_over:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_stopped_past_its_lease_changes_nothing() {
    let database = Cluster::shared().create_database();
    let mut working = serve_telling(&database.url);
    append_and_read(&Client::new(&working)).await;
    let mut waiting = serve_telling(&database.url);
    for round in 0..rounds(3) {
        let client = Client::new(&waiting);
        let load = Load::start(&client, WRITERS, mixed());
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        // In the middle of its work, wherever that is.
        working.signal("STOP");
        let stopped = Instant::now();
        append_and_read(&client).await;
        println!(
            "round {round}: the other one went on after {:?}",
            stopped.elapsed()
        );
        load.until_more_acknowledged(ACKNOWLEDGED_BEFORE_A_KILL)
            .await;
        load.stop().await;
        let (log, before) = StoredModels::read_settled(&database.url).await;
        let leases = leases(&database.url).await;

        let said_before = working.output().len();
        working.signal("CONT");
        let noticed = async {
            while partitions_lost(&working.output()[said_before..]) < 4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, noticed)
            .await
            .expect("it finds that it has lost its leases");
        let after = StoredModels::read(&database.url).await;
        assert_eq!(after.models, before.models);
        assert_eq!(after.checkpoints, before.checkpoints);
        assert_eq!(leases, self::leases(&database.url).await);
        before.assert_folded(&log);
        assert_published(&log);
        std::mem::swap(&mut working, &mut waiting);
    }
    append_and_read(&Client::new(&working)).await;
    append_and_read(&Client::new(&waiting)).await;
    let (log, models) = StoredModels::read_settled(&database.url).await;
    models.assert_folded(&log);
    assert_published(&log);
}

/// For how many partitions a server has said that it has lost the lease.
fn partitions_lost(output: &str) -> usize {
    let tells = |line: &&str| {
        ["has run out", "another server has"]
            .iter()
            .any(|text| line.contains(text))
    };
    let lines: Vec<&str> = output.lines().filter(tells).collect();
    let is_told = |partition: &usize| {
        let name = format!("partition-{partition}");
        lines.iter().any(|line| line.contains(&name))
    };
    (0..4).filter(is_told).count()
}

/// The owner and the token of each lease.
async fn leases(database_url: &str) -> Vec<(String, Uuid, i64)> {
    let mut connection = PgConnection::connect(database_url).await.unwrap();
    let leases = sqlx::query_as("SELECT name, owner, token FROM leases ORDER BY name");
    leases.fetch_all(&mut connection).await.unwrap()
}
