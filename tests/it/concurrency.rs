//! Many clients at once: versions and positions stay 1 … n, one of many rivals wins, and nothing is lost to a deadlock.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tidings::domain::append::{AppendRequest, Outcome, Refusal};
use tidings::domain::{
    self, AggregateId, AggregateType, EventId, EventType, ExpectedPosition, ExpectedVersion, Json,
    Partition, Position, StreamName, Version,
};
use uuid::Uuid;

use crate::support::client::{Client, Failure};
use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::load::{Append, Load, NewEvent, Told, aggregate_in, mixed};
use crate::support::log::StoredLog;
use crate::support::on_every_database;

const CLIENTS: usize = 64;
const EVENTS: usize = 5_000;

on_every_database!(
    clients_that_append_to_one_aggregate_leave_no_gap,
    clients_that_append_to_many_aggregates_leave_no_gap,
    of_rivals_with_the_same_expected_version_one_wins,
    clients_that_count_up_by_expected_versions_lose_no_step,
    repeats_of_an_id_at_once_append_one_event,
    repeats_of_an_id_at_once_append_one_entry,
    appends_over_several_aggregates_go_on_beside_single_ones,
    each_request_of_a_batch_gets_its_own_outcome,
    each_entry_of_a_batch_gets_its_own_outcome,
);

async fn start(engine: Engine, partitions: u8) -> TestServer {
    let database = Arc::new(Database::make(engine));
    TestServer::on(database, |config| {
        config.database.partitions = Some(partitions)
    })
    .await
}

/// `EVENTS` appends by `CLIENTS` writers without expected versions, the n-th to the n-th aggregate in turn.
async fn append_without_expected_versions(engine: Engine, partitions: u8, aggregates: usize) {
    let server = start(engine, partitions).await;
    let ids: Vec<Uuid> = (0..aggregates).map(|_| Uuid::new_v4()).collect();
    let targets = ids.clone();
    let load = Load::start_until(&server.client(), CLIENTS, move |writer, call| {
        let number = call * CLIENTS + writer;
        (number < EVENTS).then(|| {
            let data = json!({ "number": number, "text": "x".repeat(100) });
            Append::Event(NewEvent::new(targets[number % targets.len()], data))
        })
    });
    let ledger = load.finish().await;
    assert_eq!(ledger.counts.acknowledged, EVENTS, "{:?}", ledger.counts);
    let log = StoredLog::read_whole(&server.database.url()).await;
    ledger.assert_is_all_of(&log);
    for id in ids {
        let count = log.of_aggregate(id).len();
        assert!(
            count >= EVENTS / aggregates,
            "{count} events of an aggregate"
        );
    }
    if aggregates > 1 {
        assert_eq!(log.partitions_with_events(), usize::from(partitions));
    }
}

async fn clients_that_append_to_one_aggregate_leave_no_gap(engine: Engine, partitions: u8) {
    append_without_expected_versions(engine, partitions, 1).await;
}

async fn clients_that_append_to_many_aggregates_leave_no_gap(engine: Engine, partitions: u8) {
    append_without_expected_versions(engine, partitions, 100).await;
}

/// Appends with an expected version: the version that the event got, or the failure.
async fn append_expecting(client: &Client, aggregate: Uuid, expected: i64) -> Result<i64, Failure> {
    const APPEND: &str =
        "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { version } } }";
    let input = json!({
        "aggregateId": aggregate, "aggregateType": "race", "type": "run", "data": {}, "expectedVersion": expected,
    });
    let data = client.query(APPEND, json!({ "input": input })).await?;
    Ok(data["appendEvent"]["event"]["version"].as_i64().unwrap())
}

async fn of_rivals_with_the_same_expected_version_one_wins(engine: Engine, partitions: u8) {
    const ROUNDS: usize = 20;
    let server = start(engine, partitions).await;
    let client = server.client();
    for _ in 0..ROUNDS {
        let aggregate = Uuid::new_v4();
        let rivals = (0..CLIENTS).map(|_| append_expecting(&client, aggregate, 0));
        let (won, lost): (Vec<_>, Vec<_>) =
            join_all(rivals).await.into_iter().partition(Result::is_ok);
        assert_eq!(won.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [1]);
        for failure in lost.into_iter().map(Result::unwrap_err) {
            assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
            assert_eq!(
                (failure.extension("expected"), failure.extension("actual")),
                (json!(0), json!(1))
            );
        }
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), ROUNDS);
}

async fn clients_that_count_up_by_expected_versions_lose_no_step(engine: Engine, partitions: u8) {
    const STEPS: usize = 10;
    const COUNTERS: usize = 16;
    let server = start(engine, partitions).await;
    let (client, aggregate) = (server.client(), Uuid::new_v4());
    let counters = (0..COUNTERS).map(|_| async {
        let (mut version, mut conflicts) = (0, 0);
        for _ in 0..STEPS {
            loop {
                match append_expecting(&client, aggregate, version).await {
                    Ok(new) => {
                        assert_eq!(new, version + 1);
                        version = new;
                        break;
                    }
                    Err(failure) => {
                        assert_eq!(failure.code(), "VERSION_CONFLICT", "{failure:?}");
                        let actual = failure.extension("actual").as_i64().unwrap();
                        assert!(actual > version, "{actual} after {version}");
                        (version, conflicts) = (actual, conflicts + 1);
                    }
                }
            }
        }
        conflicts
    });
    let conflicts: usize = join_all(counters).await.into_iter().sum();
    assert!(conflicts > 0, "they were to get in each other's way");
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.of_aggregate(aggregate).len(), COUNTERS * STEPS);
}

/// Sends the same append many times at once: one is the first, the answers are equal.
async fn repeat_at_once(client: &Client, append: &Append) {
    let answers = join_all((0..CLIENTS).map(|_| append.send(client))).await;
    let mut places = HashSet::new();
    let mut firsts = 0;
    for answer in answers {
        let Told::Acknowledged(at, duplicate) = answer else {
            panic!("a repeat is answered as the first: {answer:?}");
        };
        places.insert(at);
        firsts += usize::from(!duplicate);
    }
    assert_eq!(
        (places.len(), firsts),
        (1, 1),
        "one event, and equal answers"
    );
}

async fn repeats_of_an_id_at_once_append_one_event(engine: Engine, partitions: u8) {
    const IDS: usize = 20;
    let server = start(engine, partitions).await;
    let aggregate = Uuid::new_v4();
    for number in 0..IDS {
        let event = NewEvent::new(aggregate, json!({ "number": number }));
        repeat_at_once(&server.client(), &Append::Event(event)).await;
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), IDS);
}

async fn repeats_of_an_id_at_once_append_one_entry(engine: Engine, partitions: u8) {
    const IDS: usize = 20;
    let server = start(engine, partitions).await;
    for number in 0..IDS {
        let entry = Append::entry("stream", json!({ "number": number }));
        repeat_at_once(&server.client(), &entry).await;
    }
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.of_stream("stream").len(), IDS);
}

async fn appends_over_several_aggregates_go_on_beside_single_ones(engine: Engine, partitions: u8) {
    const CALLS: usize = 80;
    let server = start(engine, partitions).await;
    let next = mixed();
    let load = Load::start_until(&server.client(), 16, move |writer, call| {
        (call < CALLS).then(|| next(writer, call))
    });
    let ledger = load.finish().await;
    assert_eq!(
        ledger.counts.acknowledged,
        16 * CALLS,
        "{:?}",
        ledger.counts
    );
    let log = StoredLog::read_whole(&server.database.url()).await;
    ledger.assert_is_all_of(&log);
    assert_eq!(log.partitions_with_events(), usize::from(partitions));
}

fn event(aggregate: Uuid, aggregate_type: &str, expected: Option<i32>) -> domain::NewEvent {
    domain::NewEvent {
        id: EventId(Uuid::new_v4()),
        id_is_given: true,
        aggregate_id: AggregateId(aggregate),
        aggregate_type: AggregateType::new(aggregate_type).unwrap(),
        event_type: EventType::new("happened").unwrap(),
        data: Json::empty_object(),
        metadata: Json::empty_object(),
        expected_version: expected.map_or(ExpectedVersion::Any, |version| {
            ExpectedVersion::Exactly(Version(version))
        }),
    }
}

/// What a batch of the appender comes to, which forms by chance: refusals of every kind beside what is appended.
async fn each_request_of_a_batch_gets_its_own_outcome(engine: Engine, partitions: u8) {
    let server = start(engine, partitions).await;
    let (store, partition) = (server.app.store(), Partition(0));
    let (one, two, new) = (aggregate_in(0), aggregate_in(0), aggregate_in(0));
    let known = event(one, "kind", None);
    let first = store
        .append_events(partition, &[&AppendRequest::of_events(vec![known.clone()])])
        .await;
    assert!(matches!(first.unwrap()[..], [Outcome::Appended { .. }]));

    let reused = domain::NewEvent {
        event_type: EventType::new("happened_otherwise").unwrap(),
        ..known.clone()
    };
    let requests = [
        vec![event(one, "kind", None), event(two, "kind", Some(0))],
        vec![event(one, "kind", Some(2)), event(two, "kind", Some(0))],
        vec![event(one, "kind", Some(2))],
        vec![event(one, "other", None)],
        vec![known.clone()],
        vec![event(new, "kind", None), event(new, "other", None)],
        vec![reused],
        vec![event(new, "other", Some(0))],
    ];
    let requests = requests.map(AppendRequest::of_events);
    let requests: Vec<&AppendRequest> = requests.iter().collect();
    let outcomes = store.append_events(partition, &requests).await.unwrap();
    let described: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Appended { places, .. } => places
                .iter()
                .map(|event| format!("{} at {}", event.version, event.position))
                .collect::<Vec<_>>()
                .join(", "),
            Outcome::Duplicate => "duplicate".to_owned(),
            Outcome::Refused(Refusal::IdReused { index, .. }) => format!("{index}: id reused"),
            Outcome::Refused(refusal) => refusal.to_string(),
        })
        .collect();
    assert_eq!(
        described,
        [
            "2 at 2, 1 at 3",
            "the aggregate is at version 1, not 0",
            "3 at 4",
            "the aggregate is a kind, not a other",
            "duplicate",
            "the aggregate is a kind, not a other",
            "0: id reused",
            "1 at 5",
        ]
    );
    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), 5);
}

async fn each_entry_of_a_batch_gets_its_own_outcome(engine: Engine, partitions: u8) {
    let server = start(engine, partitions).await;
    let store = server.app.store();
    let stream_name = StreamName::new("stream").unwrap();
    let partition = store.partitions().of_stream(&stream_name);
    let entry = |expected: Option<i64>| domain::NewEntry {
        stream_name: stream_name.clone(),
        event_id: EventId(Uuid::new_v4()),
        event_type: EventType::new("happened").unwrap(),
        data: Json::empty_object(),
        expected_position: expected.map_or(ExpectedPosition::Any, |position| {
            ExpectedPosition::Exactly(Position(position))
        }),
    };
    let known = entry(Some(0));
    let first = store.append_entries(partition, &[&known]).await.unwrap();
    assert!(matches!(first[..], [Outcome::Appended { .. }]));
    let reused = domain::NewEntry {
        event_type: EventType::new("happened_otherwise").unwrap(),
        ..known.clone()
    };
    let entries = [
        entry(None),
        entry(Some(1)),
        known,
        entry(Some(2)),
        reused,
        entry(None),
    ];
    let entries: Vec<&domain::NewEntry> = entries.iter().collect();
    let outcomes = store.append_entries(partition, &entries).await.unwrap();
    let described: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Appended { places, .. } => places[0].position.to_string(),
            Outcome::Duplicate => "duplicate".to_owned(),
            Outcome::Refused(Refusal::IdReused { .. }) => "id reused".to_owned(),
            Outcome::Refused(refusal) => refusal.to_string(),
        })
        .collect();
    assert_eq!(
        described,
        [
            "2",
            "the stream is at position 2, not 1",
            "duplicate",
            "3",
            "id reused",
            "4",
        ]
    );
    StoredLog::read_whole(&server.database.url()).await;
}

/// SQL clients that append to two partitions in one transaction, half of them in the other order, and the server's own
/// appends over both: these deadlock all the time, and PostgreSQL ends one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_append_of_the_server_is_lost_to_a_deadlock_with_sql_clients() {
    const SQL_CLIENTS: usize = 4;
    const TRANSACTIONS: usize = 40;
    let server = start(Engine::Postgres, 4).await;
    let url = server.database.url();
    // Deadlocks are looked for after a second otherwise: this is about how they end, not about how long they take.
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let alter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database()); END $$";
    sqlx::raw_sql(alter).execute(&mut connection).await.unwrap();
    let database = server.database.clone();
    server.stop().await;
    // Whoever began to wait last is the victim, with a deadlock time-out this short: most tries end so, and it is luck how many
    // it takes.
    let server = TestServer::on(database, |config| {
        config.database.max_connections = 10;
        config.database.lock_timeout = Duration::from_secs(60);
    })
    .await;

    let (low, high) = (aggregate_in(1), aggregate_in(2));
    let load = Load::start(&server.client(), 12, move |writer, call| {
        let data = json!({ "writer": writer, "call": call });
        let (low, high) = (
            NewEvent::new(low, data.clone()),
            NewEvent::new(high, data.clone()),
        );
        match writer % 3 {
            0 => Append::Event(low),
            1 => Append::Event(high),
            _ => Append::Events(vec![high, low]),
        }
    });

    let transactions = (0..SQL_CLIENTS).map(|client| {
        let url = url.clone();
        async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let places = [(1_i16, low), (2, high)];
            let places = if client % 2 == 0 {
                places
            } else {
                [places[1], places[0]]
            };
            let (mut committed, mut gave_way) = (0, 0);
            while committed < TRANSACTIONS {
                match append_by_sql(&mut connection, &places).await {
                    Ok(()) => committed += 1,
                    Err(error) => {
                        let code = error
                            .as_database_error()
                            .and_then(|error| error.code())
                            .map(|code| code.into_owned());
                        assert_eq!(code.as_deref(), Some("40P01"), "{error}");
                        gave_way += 1;
                    }
                }
            }
            gave_way
        }
    });
    let gave_way = join_all(transactions).await;
    let ledger = load.stop().await;
    println!("{:?}, SQL clients gave way {gave_way:?}", ledger.counts);

    assert_eq!(
        (ledger.counts.failed(), ledger.counts.refused),
        (0, 0),
        "{:?} {:?}",
        ledger.counts,
        ledger.reasons
    );
    assert!(ledger.counts.acknowledged > 100, "{:?}", ledger.counts);
    let log = StoredLog::read_whole(&url).await;
    ledger.assert_kept_in(&log);
    assert_eq!(
        log.events.len(),
        ledger.acknowledged.len() + 2 * SQL_CLIENTS * TRANSACTIONS
    );
    let deadlocks: i64 = sqlx::query_scalar(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(deadlocks > 0, "there was no deadlock");
}

async fn append_by_sql(
    connection: &mut PgConnection,
    places: &[(i16, Uuid)],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    for (partition, aggregate) in places {
        sqlx::query(
            "SELECT outcome FROM tidings_append_events($1, '{1}', '{1}', ARRAY[gen_random_uuid()], '{false}', ARRAY[$2], \
             '{load}', '{counted}', ARRAY['{}'], ARRAY['{}'], ARRAY[NULL::int])",
        )
        .bind(partition)
        .bind(aggregate)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await
}
