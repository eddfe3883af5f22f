//! Followers of the log below the API: the turns of the partitions, progress, and how much is read at a time.

use std::sync::Arc;
use std::time::Duration;

use tidings::domain::{
    Event, EventFilter, EventType, ExpectedPosition, Json, NewEntry, NewEvent, Order, Partition,
    Place, Position, StreamName,
};
use tidings::store::EventScan;
use tidings::tail::{EventFollower, EventStep};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::support::client::LIMIT;
use crate::support::clock::pass;
use crate::support::in_process::{Database, Engine, TestServer, new_event};
use crate::support::load::aggregate_in;
use crate::support::on_every_database;

/// What is read of history at a time.
const PAGE_ROWS: usize = 500;
const PAGE_BYTES: usize = 1 << 20;
/// At least so often a follower that asked for progress hears how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

on_every_database!(what_is_read_at_a_time_is_bounded_in_bytes);

async fn serve(engine: Engine, partitions: u8, window_bytes: usize) -> TestServer {
    TestServer::on(Arc::new(Database::make(engine)), |config| {
        config.database.partitions = Some(partitions);
        config.limits.tail_window_bytes = window_bytes;
        // What is published would come between the entries.
        config.background.enabled = false;
    })
    .await
}

async fn append(server: &TestServer, events: Vec<NewEvent>) -> Vec<Arc<Event>> {
    let appended = server.app.appender().append_events(events).await;
    appended.unwrap().stored
}

/// Follows everything from the beginning.
async fn follow(server: &TestServer, filter: EventFilter, progress: bool) -> EventFollower {
    let start = Place::start(server.app.store().partitions());
    let follower = server
        .app
        .tail()
        .follow_events(Some(start), filter, progress)
        .await;
    follower.unwrap()
}

async fn next(follower: &mut EventFollower) -> EventStep {
    let step = timeout(LIMIT, follower.next()).await;
    step.expect("a step comes").unwrap()
}

fn nothing() -> EventFilter {
    EventFilter {
        event_types: Some(vec![EventType::new("nothing_has_this_type").unwrap()]),
        ..EventFilter::default()
    }
}

#[tokio::test]
async fn a_follower_takes_the_partitions_in_turn() {
    // Behind a window that holds everything, and one that holds nothing: history.
    for window_bytes in [16 << 20, 1] {
        let server = serve(Engine::Sqlite, 4, window_bytes).await;
        let busy = aggregate_in(2);
        for _ in 0..3 {
            append(&server, (0..1000).map(|_| new_event(busy)).collect()).await;
        }
        for partition in [0, 1, 3] {
            append(&server, vec![new_event(aggregate_in(partition))]).await;
        }
        let mut follower = follow(&server, EventFilter::default(), false).await;
        let mut others = 0;
        let mut of_busy = 0;
        while others < 3 {
            let event = next(&mut follower).await.event.unwrap();
            match event.partition {
                Partition(2) => of_busy += 1,
                _ => others += 1,
            }
            assert!(
                of_busy <= PAGE_ROWS,
                "{others} of the others after {of_busy} of the busy one"
            );
        }
    }
}

#[tokio::test]
async fn a_follower_that_is_behind_hears_how_far_it_is() {
    const EVENTS: usize = 1000;
    let server = serve(Engine::Sqlite, 1, 16 << 20).await;
    let aggregate = Uuid::new_v4();
    append(&server, (0..EVENTS).map(|_| new_event(aggregate)).collect()).await;
    let head = Place::behind(vec![Position(EVENTS as i64)]);
    let mut follower = follow(&server, nothing(), true).await;
    let mut before = Position::START;
    for _ in 0..3 {
        pass(PROGRESS_EVERY).await;
        let step = next(&mut follower).await;
        assert!(step.event.is_none());
        assert!(!step.caught_up, "{step:?}");
        let place = step.place.behind[0];
        assert!(before < place && place < head.behind[0], "{step:?}");
        before = place;
    }
    // With no time between, it hears nothing before the end.
    let step = next(&mut follower).await;
    assert!(step.event.is_none() && step.caught_up, "{step:?}");
    assert_eq!(step.place, head);
}

#[tokio::test]
async fn a_follower_hears_how_far_it_is_while_the_log_moves_on_without_an_event_for_it() {
    const STEP: Duration = Duration::from_secs(1);
    let server = serve(Engine::Sqlite, 1, 16 << 20).await;
    let mut follower = follow(&server, nothing(), true).await;
    assert!(next(&mut follower).await.caught_up);
    let (told, mut steps) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(step) = follower.next().await {
            told.send((step, Instant::now())).unwrap();
        }
    });
    // It moves on once …
    append(&server, vec![new_event(Uuid::new_v4())]).await;
    pass(PROGRESS_EVERY).await;
    let heard = timeout(LIMIT, steps.recv()).await;
    let (step, first_at) = heard.expect("a step comes").unwrap();
    assert!(step.event.is_none() && step.caught_up, "{step:?}");
    assert_eq!(step.place.behind, [Position(1)]);

    // … and every second.
    let mut heard_at = vec![first_at];
    for _ in 0..21 {
        append(&server, vec![new_event(Uuid::new_v4())]).await;
        pass(STEP).await;
        while let Ok((step, at)) = steps.try_recv() {
            assert!(step.event.is_none(), "{step:?}");
            heard_at.push(at);
        }
    }
    heard_at.push(Instant::now());
    let longest = heard_at.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.unwrap() < PROGRESS_EVERY + 2 * STEP, "{heard_at:?}");
}

/// Large events and entries: a page of many rows would hold them all.
async fn what_is_read_at_a_time_is_bounded_in_bytes(engine: Engine, partitions: u8) {
    const LARGE: i64 = 7;
    let server = serve(engine, partitions, 1).await;
    let store = server.app.store();
    let large = Json::stored(format!("\"{}\"", "x".repeat(900 << 10)));
    let aggregate = Uuid::new_v4();
    let partition = store.partitions().of_aggregate(aggregate.into());
    let mut appended = Vec::new();
    for _ in 0..LARGE {
        let event = NewEvent {
            data: large.clone(),
            ..new_event(aggregate)
        };
        appended.push(append(&server, vec![event]).await[0].id);
    }

    let filter = EventFilter::default();
    let scan = |above: i64, max_bytes| EventScan {
        partition,
        above: Position(above),
        up_to: Position(LARGE),
        filter: &filter,
        order: Order::OldestFirst,
        limit: PAGE_ROWS as u64,
        max_bytes,
    };
    for (above, max_bytes, expected) in [
        // Up to the one that reaches the bound.
        (0, Some(PAGE_BYTES), 1..=2),
        (3, Some(PAGE_BYTES), 4..=5),
        (LARGE - 1, Some(PAGE_BYTES), LARGE..=LARGE),
        (0, Some(1), 1..=1),
        (0, Some(4 * PAGE_BYTES), 1..=5),
        (0, None, 1..=LARGE),
    ] {
        let events = store.scan_events(&scan(above, max_bytes)).await.unwrap();
        let positions: Vec<i64> = events.iter().map(|event| event.position.0).collect();
        assert_eq!(positions, expected.collect::<Vec<_>>(), "{max_bytes:?}");
    }

    let statements = store.statements_read();
    let mut follower = follow(&server, EventFilter::default(), false).await;
    let mut followed = Vec::new();
    while followed.len() < appended.len() {
        followed.push(next(&mut follower).await.event.unwrap().id);
    }
    assert_eq!(followed, appended);
    assert!(store.statements_read() >= statements + 4, "two at a time");
    let more = append(&server, vec![new_event(aggregate)]).await;
    assert_eq!(next(&mut follower).await.event.unwrap().id, more[0].id);

    entries_are_bounded_too(&server, large).await;
}

async fn entries_are_bounded_too(server: &TestServer, large: Json) {
    let store = server.app.store();
    let name = StreamName::new("large").unwrap();
    let mut appended = Vec::new();
    for _ in 0..5 {
        let entry = NewEntry {
            stream_name: name.clone(),
            event_id: Uuid::new_v4().into(),
            event_type: EventType::new("user_seen").unwrap(),
            data: large.clone(),
            expected_position: ExpectedPosition::Any,
        };
        appended.push(entry.event_id);
        server.app.appender().append_entry(entry).await.unwrap();
    }
    let partition = store.partitions().of_stream(&name);
    for (max_bytes, expected) in [(1, 1), (PAGE_BYTES, 2), (4 * PAGE_BYTES, 5)] {
        let ids = appended[..expected].to_vec();
        let of_stream = store.scan_stream(&name, Position::START, 500, max_bytes);
        let of_stream = of_stream.await.unwrap();
        let of_partition = store.scan_entries(partition, Position::START, 500, max_bytes);
        let of_partition = of_partition.await.unwrap();
        for entries in [of_stream, of_partition] {
            let found: Vec<_> = entries.iter().map(|entry| entry.event_id).collect();
            assert_eq!(found, ids, "{max_bytes}");
        }
    }
    let tail = server.app.tail();
    let mut follower = tail
        .follow_stream(name, Some(Position::START))
        .await
        .unwrap();
    for id in appended {
        let entry = timeout(LIMIT, follower.next()).await.expect("it comes");
        assert_eq!(entry.unwrap().event_id, id);
    }
}
