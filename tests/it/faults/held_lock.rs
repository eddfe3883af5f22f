//! A SQL client that leaves its transaction open after `append_event`: who needs its partition waits and is told, nobody else
//! notices.

use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::*;
use crate::support::load::{Append, NewEvent, aggregate_in};
use crate::support::postgres::Cluster;

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// What the others take as a rule.
const UNNOTICED: Duration = Duration::from_millis(250);
/// How long appends over several partitions may hold them up, where locks are held again and again.
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(1);
/// More of them than there are connections that write.
const MAKERS: usize = 80;

fn over(aggregates: &[Uuid]) -> Append {
    let event = |id: &Uuid| NewEvent::new(*id, json!({}));
    Append::Events(aggregates.iter().map(event).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sql_client_that_leaves_its_transaction_open_holds_up_its_own_partition_alone() {
    let database = Cluster::shared().create_database();
    let server = TestServer::on(&database.url)
        .arguments(["--partitions", "4", "--lock-timeout", "5s"])
        .arguments(["--database-acquire-timeout", "1s"])
        .start();
    let client = Client::new(&server);
    // The highest partition: whoever takes the locks in their order has the others by then.
    let held = 3;
    let aggregates: Vec<Uuid> = (0..4).map(aggregate_in).collect();
    for aggregate in &aggregates {
        over(&[*aggregate]).send_until_acknowledged(&client).await;
    }

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut open = holder.begin().await.unwrap();
    let of_holder: Uuid =
        sqlx::query_scalar("SELECT append_event($1::uuid, 'load', 'counted', '{}')")
            .bind(aggregates[held])
            .fetch_one(&mut *open)
            .await
            .unwrap();

    // Those who need the partition: single events, several over it and others, and new aggregates.
    let needs_it = {
        let aggregates = aggregates.clone();
        Load::start(&client, 24, move |writer, _| match writer % 4 {
            0 => over(&[aggregates[held]]),
            other => over(&[aggregates[other - 1], aggregates[held]]),
        })
    };
    let mut makers = JoinSet::new();
    for _ in 0..MAKERS {
        let client = client.clone();
        makers.spawn(async move {
            let input = json!({ "id": aggregate_in(held), "type": "load" });
            let query = "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }";
            let called = Instant::now();
            let made = client.query(query, json!({ "input": input })).await;
            (made, called.elapsed())
        });
    }
    // Those who do not: each call is timed.
    let began = Instant::now();
    let mut others = JoinSet::new();
    for number in 0..6 {
        let (client, aggregates) = (client.clone(), aggregates.clone());
        others.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < LOCK_TIMEOUT + Duration::from_secs(1) {
                let append = match number {
                    0..3 => over(&[aggregates[number]]),
                    3 => over(&[aggregates[0], aggregates[1]]),
                    4 => over(&[aggregates[1], aggregates[2]]),
                    _ => Append::entry(format!("stream-{}", times.len() % 8), json!({})),
                };
                let called = Instant::now();
                let told = append.send(&client).await;
                times.push(called.elapsed());
                let is_stored = matches!(told, crate::support::load::Told::Acknowledged(..));
                assert!(is_stored, "{number}: {told:?}");
            }
            (number, times)
        });
    }
    for (number, mut times) in others.join_all().await {
        times.sort();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{number}: {} calls, half of them within {median:?}, the slowest {slowest:?}",
            times.len()
        );
        assert!(median < UNNOTICED, "{number}: {median:?}");
        assert!(slowest < LONGEST_DELAY + SLACK, "{number}: {slowest:?}");
    }
    for (made, taken) in makers.join_all().await {
        // Twice as long where another one was before it in PostgreSQL's own queue for the lock.
        assert!(
            taken >= LOCK_TIMEOUT && taken < LOCK_TIMEOUT * 2 + SLACK,
            "told after {taken:?}"
        );
        let failure = made.unwrap_err();
        assert_eq!(failure.code(), "UNAVAILABLE");
        assert!(
            failure.message().contains("holds the partition's lock"),
            "{failure:?}"
        );
    }
    let counts = needs_it.counts();
    assert_eq!(counts.acknowledged, 0, "{counts:?}");
    assert!(counts.not_done > 0, "they are told by then: {counts:?}");
    open.commit().await.unwrap();
    needs_it.until_more_acknowledged(100).await;
    let ledger = needs_it.stop().await;
    println!("{:?} {:?}", ledger.counts, ledger.reasons);
    // All but those single events that queued up behind a batch that waited already.
    assert!(ledger.counts.not_done >= 18, "{:?}", ledger.counts);
    let is_named = |reason: &String| reason.starts_with("another client of the database holds");
    assert!(ledger.reasons.keys().all(is_named), "{:?}", ledger.reasons);
    let log = StoredLog::read_whole(&database.url).await;
    ledger.assert_kept_in(&log);
    let second = log.of_aggregate(aggregates[held])[1];
    assert_eq!((second.id, second.version), (of_holder, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_beside_a_sql_client_that_leaves_its_transaction_open_and_nobody_notices() {
    let database = Cluster::shared().create_database();
    let serve = || {
        TestServer::on(&database.url)
            .arguments(["--partitions", "4", "--lock-timeout", "5s"])
            .start()
    };
    let server = serve();
    let client = Client::new(&server);
    let (held, other) = (aggregate_in(3), aggregate_in(0));
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut open = holder.begin().await.unwrap();
    sqlx::query("SELECT append_event($1::uuid, 'load', 'counted', '{}')")
        .bind(held)
        .execute(&mut *open)
        .await
        .unwrap();

    let load = Load::start(&client, 4, move |_, _| over(&[other]));
    load.until_more_acknowledged(20).await;
    let began = Instant::now();
    let second = tokio::task::block_in_place(serve);
    let took = began.elapsed();
    over(&[other])
        .send_until_acknowledged(&Client::new(&second))
        .await;
    let ledger = load.stop().await;
    println!("started in {took:?}, {:?}", ledger.counts);
    assert!(took < LOCK_TIMEOUT, "{took:?}");
    assert_eq!(
        (ledger.counts.failed(), ledger.counts.refused),
        (0, 0),
        "{:?}",
        ledger.reasons
    );
    open.commit().await.unwrap();
}
