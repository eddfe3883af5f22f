//! SQL clients, and GraphQL clients of two servers, all on the same aggregates and streams: with nothing else happening, and
//! while a server is killed, the other one is frozen, and PostgreSQL crashes.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::{JoinSet, block_in_place};
use uuid::Uuid;

use super::*;
use crate::support::load::{Append, NewEvent, Told};
use crate::support::postgres::Cluster;
use crate::support::sql_clients::{Servers, SqlClient, SqlLedger};

/// Each SQL client commits event by event, so the database's disk sets the pace.
const EVENTS: usize = 20_000;
const AGGREGATES: usize = 50;
const STREAMS: usize = 5;
const LEASE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// Each of so many events comes with an entry of a stream, and with an expected version.
const ENTRY_EACH: usize = 5;
const EXPECTED_EACH: usize = 4;

/// What all clients share.
struct Work {
    aggregates: Vec<Uuid>,
    events: usize,
    begun: AtomicUsize,
    /// What versions the aggregates had when they were last heard of.
    versions: Mutex<HashMap<Uuid, i64>>,
}

/// What GraphQL clients were told.
#[derive(Default)]
struct Answers {
    acknowledged: HashMap<Uuid, i64>,
    conflicted: Vec<Append>,
    failures: usize,
}

impl Work {
    fn of(events: usize) -> Arc<Work> {
        Arc::new(Work {
            aggregates: (0..AGGREGATES).map(|_| Uuid::new_v4()).collect(),
            events,
            begun: AtomicUsize::new(0),
            versions: Mutex::default(),
        })
    }

    /// The next event to append: its number, its aggregate, and maybe a stream that gets an entry too.
    fn next(&self) -> Option<(usize, Uuid, Option<String>)> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let stream = number
            .is_multiple_of(ENTRY_EACH)
            .then(|| format!("stream-{}", number / ENTRY_EACH % STREAMS));
        let aggregate = self.aggregates[number * 7 % AGGREGATES];
        (number < self.events).then_some((number, aggregate, stream))
    }

    async fn until_begun(&self, part: f64) {
        let wanted = (self.events as f64 * part) as usize;
        while self.begun.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn hear_of(&self, aggregate: Uuid, version: i64) {
        let mut versions = self.versions.lock().unwrap();
        let known = versions.entry(aggregate).or_default();
        *known = version.max(*known);
    }

    fn version_of(&self, aggregate: Uuid) -> i64 {
        let versions = self.versions.lock().unwrap();
        versions.get(&aggregate).copied().unwrap_or_default()
    }

    async fn by_graphql(self: Arc<Work>, client: Client) -> Answers {
        let mut told = Answers::default();
        while let Some((number, aggregate, stream)) = self.next() {
            let mut event = NewEvent::new(aggregate, json!({ "text": number.to_string() }));
            if number.is_multiple_of(EXPECTED_EACH) {
                event.expected = Some(self.version_of(aggregate));
            }
            self.append(&client, Append::Event(event), &mut told).await;
            if let Some(stream) = stream {
                let entry = Append::entry(stream, json!({ "text": number.to_string() }));
                self.append(&client, entry, &mut told).await;
            }
        }
        told
    }

    /// Repeats an append with the same id until it is stored; after a conflict, a new one without an expected version.
    async fn append(&self, client: &Client, mut append: Append, told: &mut Answers) {
        loop {
            match append.send(client).await {
                Told::Acknowledged(places, _) => {
                    if let Append::Event(event) = &append {
                        self.hear_of(event.aggregate, places[0].1);
                    }
                    told.acknowledged.extend(places);
                    return;
                }
                Told::Refused(failure) => match &append {
                    Append::Event(event) if event.expected.is_some() => {
                        assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
                        let event = NewEvent::new(event.aggregate, event.data.clone());
                        told.conflicted.push(append);
                        append = Append::Event(event);
                    }
                    _ => panic!("{append:?} was refused: {failure:?}"),
                },
                Told::NotDone(_) | Told::Unknown(_) | Told::Cut(_) => {
                    told.failures += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn by_sql(self: Arc<Work>, url: String) -> SqlLedger {
        let mut client = SqlClient::to(Servers::new(&[&url]));
        while let Some((number, aggregate, stream)) = self.next() {
            let is_expecting = number.is_multiple_of(EXPECTED_EACH);
            let text = number.to_string();
            client.append_event(aggregate, &text, is_expecting).await;
            if let Some(stream) = stream {
                client.append_to_stream(&stream, &text).await;
            }
        }
        client.ledger
    }
}

/// Two servers, and what happens to them.
struct Scene {
    cluster: Option<Cluster>,
    servers: [TestServer; 2],
}

impl Scene {
    /// One after the other, so that each is got over by itself.
    async fn disturb(&mut self, work: &Work) {
        work.until_begun(0.2).await;
        self.servers[1].kill9();
        tokio::time::sleep(2 * LEASE).await;
        block_in_place(|| self.servers[1].restart());
        work.until_begun(0.4).await;
        self.servers[0].signal("STOP");
        tokio::time::sleep(2 * LEASE).await;
        self.servers[0].signal("CONT");
        work.until_begun(0.6).await;
        let cluster = self.cluster.as_ref().expect("it is this test's own");
        block_in_place(|| {
            cluster.stop_immediate();
            cluster.start();
        });
        work.until_begun(1.0).await;
    }
}

async fn run(events: usize, is_disturbed: bool) {
    let cluster = is_disturbed.then(Cluster::private);
    let database = cluster
        .as_ref()
        .unwrap_or_else(|| Cluster::shared())
        .create_database();
    let serve = || {
        TestServer::on(&database.url)
            .arguments(["--partitions", "4", "--lease", "1s"])
            .start()
    };
    let mut scene = Scene {
        servers: [serve(), serve()],
        cluster,
    };
    let clients = scene.servers.each_ref().map(Client::new);
    let followers: Vec<Follower> = scene
        .servers
        .iter()
        .flat_map(|server| follow_the_load(&server.ws_url(), true))
        .collect();
    let work = Work::of(events);
    let (mut graphql, mut sql) = (JoinSet::new(), JoinSet::new());
    let began = Instant::now();
    for _ in 0..WRITERS {
        for client in &clients {
            graphql.spawn(work.clone().by_graphql(client.clone()));
        }
        sql.spawn(work.clone().by_sql(database.url.clone()));
    }
    if is_disturbed {
        scene.disturb(&work).await;
    }
    let graphql = graphql.join_all().await;
    let sql = sql.join_all().await;
    println!("{events} events in {:?}", began.elapsed());

    let log = StoredLog::read_whole(&database.url).await;
    let mut ledger = Ledger::default();
    let (mut conflicts, mut failures, mut lost) = (0, 0, 0);
    for told in graphql {
        conflicts += told.conflicted.len();
        failures += told.failures;
        ledger.acknowledged.extend(told.acknowledged);
        ledger.not_done.extend(told.conflicted);
    }
    for told in sql {
        conflicts += told.conflicts;
        lost += told.lost;
        told.add_to(&mut ledger, &log);
    }
    println!("{conflicts} conflicts, {failures} failed calls, {lost} lost connections");
    ledger.assert_is_all_of(&log);
    assert_eq!(log.events.len(), events);
    assert_eq!(log.entries.len(), events.div_ceil(ENTRY_EACH));
    assert!(conflicts > 0, "they met");
    if is_disturbed {
        assert!(failures > 0 && lost > 0, "the faults came during load");
    } else {
        assert_eq!((failures, lost), (0, 0));
    }
    for follower in &followers {
        let given = follower.assert_was_given_all_of(&log).await;
        assert!(given > 0, "there was something to be given");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_clients_and_clients_of_two_servers_append_to_the_same_aggregates_and_streams() {
    run(EVENTS, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_while_a_server_is_killed_another_is_frozen_and_postgres_crashes() {
    run(EVENTS, true).await;
}
