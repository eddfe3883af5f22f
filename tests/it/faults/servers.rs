//! Several servers on one PostgreSQL, and SQL clients beside them.

use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tidings::domain::{AggregateId, PartitionCount};
use uuid::Uuid;

use super::*;
use crate::support::client::{Socket, Step};
use crate::support::load::{Append, NewEvent};
use crate::support::postgres::Cluster;

/// Appends before any is timed.
const WARM_UP: usize = 50;
/// A machine on which CPUs are waited for longer than this part of the time has none to spare.
const SPARE_PRESSURE: f64 = 0.4;

/// Ends every session that waits at the doorbell, again and again, until it is dropped.
struct NoDoorbell {
    ended: tokio::sync::watch::Receiver<i64>,
    task: tokio::task::JoinHandle<()>,
}

impl NoDoorbell {
    fn begin(database_url: &str) -> NoDoorbell {
        let url = database_url.to_owned();
        let (told, ended) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            loop {
                let count: i64 = sqlx::query_scalar(
                    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND query LIKE 'LISTEN%'",
                )
                .fetch_one(&mut connection)
                .await
                .unwrap();
                told.send_modify(|ended| *ended += count);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        NoDoorbell { ended, task }
    }
}

impl Drop for NoDoorbell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_of_one_server_are_given_what_is_appended_through_others_and_by_sql() {
    follow_what_others_append(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_miss_nothing_while_the_doorbell_is_out_of_order() {
    follow_what_others_append(true).await;
}

async fn follow_what_others_append(without_doorbell: bool) {
    const CALLS: usize = 40;
    const BY_SQL: usize = 100;
    let database = Cluster::shared().create_database();
    let near = TestServer::on(&database.url)
        .arguments(["--partitions", "4"])
        .start();
    let far = TestServer::start(&database.url);
    let no_doorbell = without_doorbell.then(|| NoDoorbell::begin(&database.url));
    if let Some(no_doorbell) = &no_doorbell {
        let mut ended = no_doorbell.ended.clone();
        let ended = ended.wait_for(|ended| *ended >= 2);
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .expect("there is a doorbell to put out of order")
            .unwrap();
    }
    let followers = follow_the_load(&near.ws_url(), false);

    let next = Arc::new(mixed());
    let loads = [&near, &far].map(|server| {
        let next = next.clone();
        Load::start_until(&Client::new(server), WRITERS, move |writer, call| {
            (call < CALLS).then(|| next(writer, call))
        })
    });
    append_by_sql(&database.url, BY_SQL).await;
    let mut ledger = Ledger::default();
    for load in loads {
        ledger.add(load.finish().await);
    }
    assert_eq!(
        ledger.counts.acknowledged,
        2 * WRITERS * CALLS,
        "{:?} {:?}",
        ledger.counts,
        ledger.reasons
    );

    let log = StoredLog::read_whole(&database.url).await;
    ledger.assert_kept_in(&log);
    assert_eq!(
        log.events.len() + log.entries.len(),
        ledger.acknowledged.len() + 2 * BY_SQL
    );
    for follower in &followers {
        follower.assert_was_given_all_of(&log).await;
    }
    assert!(followers[0].count() > BY_SQL);
    if let Some(no_doorbell) = &no_doorbell {
        let ended = *no_doorbell.ended.borrow();
        println!("the doorbell was cut off {ended} times");
        assert!(ended >= 4, "{ended}");
    }
    // When all is quiet, a single append through the other server or by SQL arrives too.
    let last = Append::Event(NewEvent::new(Uuid::new_v4(), json!({})));
    last.send_until_acknowledged(&Client::new(&far)).await;
    append_by_sql(&database.url, 1).await;
    let log = StoredLog::read_whole(&database.url).await;
    for follower in &followers {
        follower.assert_was_given_all_of(&log).await;
    }
}

/// Events and entries as a SQL client appends them, one transaction each.
pub(super) async fn append_by_sql(database_url: &str, count: usize) {
    let partitions = PartitionCount::new(4).unwrap();
    let stream = "stream-3";
    let name = tidings::domain::StreamName::new(stream).unwrap();
    let stream_partition = partitions.of_stream(&name).number();
    let mut connection = PgConnection::connect(database_url).await.unwrap();
    for _ in 0..count {
        let aggregate = Uuid::new_v4();
        let partition = partitions.of_aggregate(AggregateId(aggregate)).number();
        let version: i32 = sqlx::query_scalar(
            "SELECT version[1] FROM tidings_append_events($1, '{1}', '{1}', ARRAY[gen_random_uuid()], '{false}', ARRAY[$2], \
             '{load}', '{counted}', ARRAY['{}'], ARRAY['{}'], ARRAY[NULL::int])",
        )
        .bind(partition)
        .bind(aggregate)
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(version, 1);
        let outcome: String = sqlx::query_scalar(
            "SELECT outcome FROM tidings_append_entries($1, ARRAY[$2], ARRAY[gen_random_uuid()], '{counted}', \
             ARRAY['{}'], ARRAY[NULL::smallint], ARRAY[NULL::bigint])",
        )
        .bind(stream_partition)
        .bind(stream)
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(outcome, "appended");
    }
}

/// How long it took from the answer of an append through one server to its arrival at a subscriber of the other.
struct TimesToArrive {
    median: Duration,
    p99: Duration,
    /// Which part of the time somebody on this machine has waited for a CPU. Where the system does not tell it is 1.
    pressure: f64,
}

impl TimesToArrive {
    /// The median says what the servers do, whatever else the machine does. What the slowest hundredth takes says that only where
    /// the machine had CPUs to spare: while others compile on all of them it is their time slices.
    fn assert_within(&self, limit: Duration) {
        assert!(self.median < limit, "median {:?}", self.median);
        if self.pressure < SPARE_PRESSURE {
            assert!(self.p99 < limit, "p99 {:?}", self.p99);
        } else {
            println!("the machine is busy: p99 tells nothing");
        }
    }
}

/// For how many microseconds since the machine's start somebody has waited for a CPU.
fn microseconds_of_pressure() -> Option<f64> {
    let pressure = std::fs::read_to_string("/proc/pressure/cpu").ok()?;
    let (_, total) = pressure.lines().next()?.split_once("total=")?;
    total.trim().parse().ok()
}

/// Appends through one server and waits for each at a subscriber of the other, one after the other.
async fn times_to_arrive(near: &TestServer, far: &TestServer, count: usize) -> TimesToArrive {
    let client = Client::new(far);
    let mut socket = Socket::open(&near.ws_url(), "graphql-transport-ws", &[])
        .await
        .unwrap();
    socket.init().await.unwrap();
    let query = "subscription { events { event { id } } }";
    socket.start("1", query, json!({})).await;
    let mut times = Vec::new();
    let (began, pressure_before) = (Instant::now(), microseconds_of_pressure());
    // The first ones show that the subscription has begun, and warm everything up: connections, statements and caches.
    while times.len() < count + WARM_UP {
        let append = Append::Event(NewEvent::new(Uuid::new_v4(), json!({})));
        append.send_until_acknowledged(&client).await;
        let stored = Instant::now();
        let next = tokio::time::timeout(Duration::from_secs(5), socket.next());
        match next.await {
            Ok((_, Step::Next(data))) => {
                let id = data["data"]["events"]["event"]["id"].clone();
                assert_eq!(id, json!(append.ids()[0]), "each once, in order");
                times.push(stored.elapsed());
            }
            Ok(step) => panic!("{step:?}"),
            Err(_) => assert!(times.is_empty(), "an event does not come"),
        }
    }
    let pressure = pressure_before
        .zip(microseconds_of_pressure())
        .map(|(before, after)| (after - before) / 1e6 / began.elapsed().as_secs_f64());
    let mut times = times.split_off(WARM_UP);
    times.sort();
    let found = TimesToArrive {
        median: times[count / 2],
        p99: times[count * 99 / 100],
        pressure: pressure.unwrap_or(1.0),
    };
    println!(
        "from the commit to the subscriber of another server: median {:?}, p99 {:?}, longest {:?} of {count}; {:.0} % of the time \
         a CPU was waited for",
        found.median,
        found.p99,
        times[count - 1],
        found.pressure * 100.0
    );
    found
}

async fn time_to_arrive(
    database: &crate::support::postgres::Database,
    count: usize,
) -> TimesToArrive {
    let (near, far) = (
        TestServer::start(&database.url),
        TestServer::start(&database.url),
    );
    times_to_arrive(&near, &far, count).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_through_another_server_arrives_within_50_ms() {
    let database = Cluster::shared().create_database();
    let times = time_to_arrive(&database, rounds(300)).await;
    times.assert_within(Duration::from_millis(50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_through_another_server_arrives_within_250_ms_where_no_ring_is_heard() {
    let database = Cluster::shared().create_database();
    // Found before PostgreSQL's own: whoever rings is answered, and nobody hears it.
    database.execute(&format!(
        "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''; \
         ALTER DATABASE {} SET search_path = public, pg_catalog",
        database.name
    ));
    // Each takes a tenth of a second.
    let times = time_to_arrive(&database, rounds(200)).await;
    times.assert_within(Duration::from_millis(250));
    assert!(
        times.median > Duration::from_millis(5),
        "the poll is what finds it: {:?}",
        times.median
    );
}
