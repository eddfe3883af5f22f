//! Many subscribers with different places, filters and speeds while many writers append: each is given what is its own,
//! once, in order, and the server's memory stays bounded.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::follow::{Filter, Follow, Follower, Manner};
use crate::support::in_process::{self, Database, Engine};
use crate::support::load::{Append, Ledger, Load, NewEvent, aggregate_in};
use crate::support::log::StoredLog;
use crate::support::server::TestServer;

const WRITERS: usize = 32;
const SUBSCRIBERS: usize = 50;
const CALLS: usize = 40;
const HISTORY_CALLS: usize = 8;
/// Of one large event or entry. All of them together are many times what the server may take for them.
const LARGE_BYTES: usize = 64 << 10;
const LARGE_STREAM: &str = "large";
const TYPES: [&str; 4] = ["red", "green", "blue", "large"];
const STREAMS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subscriber_is_given_what_is_its_own_on_sqlite() {
    subscribe_while_writers_append(Engine::Sqlite, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subscriber_is_given_what_is_its_own_on_postgres() {
    subscribe_while_writers_append(Engine::Postgres, 4).await;
}

/// What the writers send: small events of three types over 16 aggregates, entries of a few streams, and large ones of both.
fn appends(aggregates: Vec<Uuid>, is_history: bool) -> impl Fn(usize, usize) -> Option<Append> {
    move |writer, call| {
        if call >= if is_history { HISTORY_CALLS } else { CALLS } {
            return None;
        }
        let number = writer + call;
        let text = |bytes| json!({ "writer": writer, "call": call, "text": "x".repeat(bytes) });
        let event = |kind: usize, bytes| {
            let index = kind * 4 + number % 4;
            Append::Event(NewEvent {
                aggregate_type: TYPES[kind].to_owned(),
                ..NewEvent::new(aggregates[index], text(bytes))
            })
        };
        Some(match call % 8 {
            0 | 1 => Append::entry(format!("small-{}", number % STREAMS), text(100)),
            2 if !is_history => event(3, LARGE_BYTES),
            3..=5 if !is_history => Append::entry(LARGE_STREAM, text(LARGE_BYTES)),
            _ => event(number % 3, 200),
        })
    }
}

/// A place in the middle of what is stored, and what lies before it.
async fn middle_of_events(client: &Client) -> (Value, HashSet<Uuid>) {
    let query = "{ events(first: 60) { edges { cursor node { id } } } }";
    let data = client.query(query, json!({})).await.unwrap();
    let edges = data["events"]["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 60);
    let before = edges
        .iter()
        .map(|edge| edge["node"]["id"].as_str().unwrap().parse().unwrap());
    (edges[59]["cursor"].clone(), before.collect())
}

/// The subscribers, by what is special about them.
struct Subscribers {
    quick: Vec<Follower>,
    resuming: Vec<Follower>,
    /// They read a little at a time, all the time.
    slow: Vec<Follower>,
    /// They read nothing before the writers are done.
    held: Vec<Follower>,
}

fn subscribe(
    ws_url: &str,
    aggregates: &[Uuid],
    middle: &(Value, HashSet<Uuid>),
    may_read: &watch::Receiver<bool>,
) -> Subscribers {
    let start = |follow: &Follow, manner: Manner| Follower::start(ws_url, follow.clone(), manner);
    let events = |filter: Filter, progress| Follow::Events { filter, progress };
    let of_types = |types: &[&str]| Filter {
        aggregate_types: types.iter().map(|&name| name.to_owned()).collect(),
        ..Filter::default()
    };
    let of_aggregate = |index: usize| Filter {
        aggregate: Some(aggregates[index]),
        ..Filter::default()
    };
    let from_middle = || Manner {
        after: Some(middle.0.clone()),
        skipped: middle.1.clone(),
        ..Manner::default()
    };

    let mut quick = Vec::new();
    // Three places, with and without progress, through five filters.
    for (number, filter) in [
        Filter::default(),
        of_types(&["red"]),
        of_types(&["green", "large"]),
        of_aggregate(0),
        of_aggregate(13),
    ]
    .into_iter()
    .enumerate()
    {
        for progress in [false, true] {
            let follow = events(filter.clone(), progress);
            quick.push(start(&follow, Manner::all(&follow)));
            quick.push(start(&follow, from_middle()));
            if number % 2 == 0 {
                quick.push(start(&follow, Manner::default()));
            }
        }
    }
    for number in 0..STREAMS {
        let follow = Follow::Stream(format!("small-{number}"));
        quick.push(start(&follow, Manner::all(&follow)));
        quick.push(start(&follow, Manner::default()));
    }
    let large = Follow::Stream(LARGE_STREAM.to_owned());
    quick.push(start(&large, Manner::all(&large)));

    let resume = |follow: &Follow, cut_each| {
        let manner = Manner {
            cuts: 10,
            cut_each,
            ..Manner::all(follow)
        };
        start(follow, manner)
    };
    let resuming = vec![
        resume(&events(Filter::default(), false), 50),
        resume(&events(Filter::default(), true), 37),
        resume(&events(of_types(&["blue", "large"]), true), 11),
        resume(&Follow::Stream("small-1".to_owned()), 4),
        resume(&large, 20),
    ];

    let slow = |is_narrow| {
        let manner = Manner {
            pause: Some((Duration::from_millis(250), may_read.clone())),
            is_narrow,
            ..Manner::all(&large)
        };
        start(&large, manner)
    };
    let hold = || {
        let manner = Manner {
            held_until: Some(may_read.clone()),
            is_narrow: true,
            ..Manner::all(&large)
        };
        start(&large, manner)
    };
    Subscribers {
        quick,
        resuming,
        slow: vec![slow(true), slow(true), slow(false)],
        held: (0..3).map(|_| hold()).collect(),
    }
}

impl Subscribers {
    fn all(&self) -> impl Iterator<Item = &Follower> {
        let kinds = [&self.quick, &self.resuming, &self.slow, &self.held];
        kinds.into_iter().flatten()
    }
}

async fn append(client: &Client, aggregates: &[Uuid], is_history: bool, ledger: &mut Ledger) {
    let load = Load::start_until(client, WRITERS, appends(aggregates.to_vec(), is_history));
    ledger.add(load.finish().await);
    assert_eq!(
        (ledger.counts.failed(), ledger.counts.refused),
        (0, 0),
        "{:?}",
        ledger.counts
    );
}

/// Watches the memory of a process until it is dropped.
struct Memory {
    most: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Memory {
    fn watch(server: &TestServer) -> Memory {
        let (told, most) = watch::channel(server.resident_bytes());
        let path = format!("/proc/{}/status", server.pid());
        let task = tokio::spawn(async move {
            while let Ok(status) = std::fs::read_to_string(&path) {
                let line = status.lines().find(|line| line.starts_with("VmRSS:"));
                let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
                told.send_modify(|most| *most = (*most).max(kib.unwrap_or_default() * 1024));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Memory { most, task }
    }

    fn most(&self) -> u64 {
        *self.most.borrow()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn subscribe_while_writers_append(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let server = TestServer::on(&database.url())
        .arguments(["--partitions", &partitions.to_string()])
        .arguments(["--tail-window-bytes", "1MiB"])
        .start();
    let client = Client::new(&server);
    let aggregates: Vec<Uuid> = (0..16).map(|number| aggregate_in(number % 4)).collect();
    let mut ledger = Ledger::default();
    append(&client, &aggregates, true, &mut ledger).await;

    let middle = middle_of_events(&client).await;
    let (may_read, wait) = watch::channel(false);
    let subscribers = subscribe(&server.ws_url(), &aggregates, &middle, &wait);
    assert!(subscribers.all().count() >= SUBSCRIBERS);
    let before = server.resident_bytes();
    let memory = Memory::watch(&server);
    append(&client, &aggregates, false, &mut ledger).await;
    let most_at_first = memory.most();
    append(&client, &aggregates, false, &mut ledger).await;
    let most = memory.most();

    let log = StoredLog::read_whole(&database.url()).await;
    ledger.assert_is_all_of(&log);
    let large = log.of_stream(LARGE_STREAM).len();
    let slow: Vec<usize> = subscribers.slow.iter().map(Follower::count).collect();
    for (follower, given) in subscribers.slow.iter().zip(&slow) {
        assert!(
            *given > 0 && *given < large / 2,
            "far behind: {} of {large} given, {follower:?}",
            given
        );
    }
    assert!(
        subscribers
            .held
            .iter()
            .all(|follower| follower.count() == 0),
        "they have read nothing yet"
    );
    may_read.send_replace(true);
    let mut given = 0;
    for follower in subscribers.all() {
        given += follower.assert_was_given_all_of(&log).await;
    }
    for follower in &subscribers.resuming {
        assert_eq!(follower.resumed(), 10, "{follower:?}");
    }
    for follower in subscribers.all() {
        assert!(follower.count() > 0, "{follower:?}");
    }
    let waiting_bytes = (large * LARGE_BYTES / 2) as u64;
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{} events and {} entries; {given} given to {} subscribers; the slow ones had {slow:?} of {large} large ones when \
         the writers were done; memory {} MiB before, {} MiB at most in the first half, {} MiB in the second, in which {} MiB \
         more were waiting for each slow one, {} MiB at most when they were delivered",
        log.events.len(),
        log.entries.len(),
        subscribers.all().count(),
        mib(before),
        mib(most_at_first),
        mib(most),
        mib(waiting_bytes),
        mib(memory.most()),
    );
    // What is in work takes its memory at once; what piles up takes more and more.
    assert!(
        most - most_at_first < waiting_bytes / 2,
        "what waits for slow readers is kept in memory"
    );
}

/// It comes to a ping late, with everything that was sent before it to read first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_reads_slowly_is_not_taken_for_dead() {
    const KEEP_ALIVE: Duration = Duration::from_millis(400);
    const ENTRIES: usize = 160;
    let server = in_process::TestServer::with(|config| config.limits.keep_alive = KEEP_ALIVE).await;
    let load = Load::start_until(&server.client(), 8, |_, call| {
        (call < ENTRIES / 8).then(|| Append::entry(LARGE_STREAM, json!("x".repeat(LARGE_BYTES))))
    });
    load.finish().await;
    let follow = Follow::Stream(LARGE_STREAM.to_owned());
    let (may_read, wait) = watch::channel(false);
    let manner = Manner {
        held_until: Some(wait),
        is_narrow: true,
        ..Manner::all(&follow)
    };
    let follower = Follower::start(&server.ws_url, follow, manner);
    // What is waited for is this time itself: longer than a websocket may be silent.
    tokio::time::sleep(KEEP_ALIVE * 6).await;
    may_read.send_replace(true);
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(follower.assert_was_given_all_of(&log).await, ENTRIES);
}
