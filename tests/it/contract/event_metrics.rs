//! eventMetrics, eventMetricsOverTime and recordEventMetric: the counts equal the store's, whatever was appended how.

use std::collections::BTreeMap;

use tidings::domain::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DecidedEvent, Decider, Domain,
    EventType, FoldFault, MinuteTally, PastEvent, Rejection, State, Tally, Timestamp,
};

use super::*;

cases!(
    counts_equal_the_events_in_the_store_also_after_a_restart,
    what_is_not_appended_is_not_counted,
    the_time_of_an_event_begins_where_its_request_was_taken,
    counts_of_several_servers_and_minutes_are_added_up,
    pieces_of_time_follow_each_other_without_a_gap,
    an_event_from_elsewhere_is_counted,
    wrong_questions_are_refused,
    counts_that_are_too_old_are_removed,
    nothing_is_counted_where_that_is_turned_off,
    old_counts_are_removed_by_a_server_that_counts_nothing,
);

const METRIC: &str = "eventType aggregateType eventCount avgProcessingTimeMs maxProcessingTimeMs minProcessingTimeMs";

/// A type of event, and one of aggregate.
type Types = (String, String);

async fn metrics(contract: &Contract, arguments: &str) -> Vec<Value> {
    let query = format!("{{ eventMetrics{arguments} {{ {METRIC} }} }}");
    list(contract.ask(&query, json!({})).await["eventMetrics"].take())
}

async fn over_time(contract: &Contract, arguments: &str) -> Vec<Value> {
    let query = format!("{{ eventMetricsOverTime{arguments} {{ start metrics {{ {METRIC} }} }} }}");
    list(contract.ask(&query, json!({})).await["eventMetricsOverTime"].take())
}

async fn record(contract: &Contract, input: Value) -> Value {
    contract.ask(RECORD, json!({ "input": input })).await["recordEventMetric"]["recorded"].take()
}

const RECORD: &str =
    "mutation($input: RecordEventMetricInput!) { recordEventMetric(input: $input) { recorded } }";

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn counts(metrics: &[Value]) -> BTreeMap<Types, i64> {
    let count = |metric: &Value| {
        let types = (text(&metric["eventType"]), text(&metric["aggregateType"]));
        (types, metric["eventCount"].as_i64().unwrap())
    };
    metrics.iter().map(count).collect()
}

async fn stored_counts(contract: &Contract) -> BTreeMap<Types, i64> {
    let mut counts = BTreeMap::new();
    for event in contract.all_events().await {
        let types = (text(&event["type"]), text(&event["aggregateType"]));
        *counts.entry(types).or_default() += 1;
    }
    counts
}

/// Appends events of several types in all ways that there are.
async fn append_of_all_kinds(contract: &Contract) {
    contract.fill(8).await;
    let aggregates = contract.aggregates(6);
    let many = aggregates.iter().enumerate().flat_map(|(no, id)| {
        let of_type = |event_type: &str| {
            json!({ "aggregateId": id, "aggregateType": format!("kind {}", no % 2), "type": event_type, "data": {} })
        };
        [of_type("opened"), of_type("opened"), of_type("it's \"closed\"; ä")]
    });
    contract.append_all(many.collect()).await;
    let user = contract.aggregate_in(0);
    contract.execute(create_user(user, "ada")).await;
    let pending = update_user(user, json!({ "email": "ada@example.com" }));
    let pending = contract.create(pending).await;
    contract.settled(&pending["id"]).await;
}

async fn counts_equal_the_events_in_the_store_also_after_a_restart(contract: Contract) {
    append_of_all_kinds(&contract).await;
    let first = metrics(&contract, "").await;
    let stored = stored_counts(&contract).await;
    assert_eq!(stored.values().sum::<i64>(), 8 + 18 + 2);
    assert_eq!(counts(&first), stored);
    for metric in &first {
        let time = |of: &str| metric[of].as_f64().unwrap();
        let [avg, max, min] =
            ["avg", "max", "min"].map(|of| time(&format!("{of}ProcessingTimeMs")));
        assert!(0.0 < min && min <= avg && avg <= max, "{metric}");
        assert!(max < 60_000.0, "milliseconds: {metric}");
    }
    let times = |metrics: &[Value]| {
        let mut metrics = metrics.to_vec();
        metrics.sort_by_key(|metric| {
            metric["eventType"].to_string() + &metric["aggregateType"].to_string()
        });
        metrics
    };
    // What is counted right before the stop is there as well.
    append_of_all_kinds(&contract).await;
    let contract = contract.restarted(None, |_| {}).await;
    let store = contract.server.app.store();
    let all = store
        .event_metrics(Timestamp::from_micros(0), later(), 100)
        .await;
    let total: i64 = all.unwrap().iter().map(|metric| metric.count).sum();
    assert_eq!(total, 2 * (8 + 18 + 2), "before anybody has asked");
    let second = metrics(&contract, "").await;
    assert_eq!(counts(&second), stored_counts(&contract).await);
    append_of_all_kinds(&contract).await;
    let third = metrics(&contract, "").await;
    assert_eq!(counts(&third), stored_counts(&contract).await);
    assert_ne!(times(&first), times(&third));
}

/// Later than any event.
fn later() -> Timestamp {
    Timestamp::parse("9999-01-01T00:00:00Z").unwrap()
}

async fn what_is_not_appended_is_not_counted(contract: Contract) {
    let aggregate = contract.aggregate_in(0);
    let input = with(event(aggregate), json!({ "id": Uuid::new_v4() }));
    contract.append(input.clone()).await;
    let repeated = contract.append(input.clone()).await;
    assert_eq!(repeated["duplicate"], true);
    contract
        .append_is_refused(with(event(aggregate), json!({ "expectedVersion": 7 })))
        .await;
    let other = with(
        event(contract.aggregate_in(1)),
        json!({ "aggregateType": "order" }),
    );
    let refused = with(event(aggregate), json!({ "expectedVersion": 9 }));
    contract
        .append_all_is_refused(json!([other, refused]))
        .await;
    let user = ("user_created".to_owned(), "user".to_owned());
    assert_eq!(counts(&metrics(&contract, "").await), [(user, 1)].into());
    assert_eq!(contract.all_events().await.len(), 1);
}

/// Clocks, whose command takes its time to be decided on.
struct Slow;

const DECIDES_MS: u64 = 40;

impl Decider for Slow {
    fn aggregate_type(&self) -> AggregateType {
        AggregateType::new("clock").unwrap()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        vec![CommandDescription {
            name: CommandType::new("wind_up").unwrap(),
            event_types: vec![EventType::new("wound_up").unwrap()],
            data_schema: None,
            creates: true,
        }]
    }

    fn decide(&self, _: &State, _: &CommandInHand<'_>) -> Result<Vec<DecidedEvent>, Rejection> {
        std::thread::sleep(Duration::from_millis(DECIDES_MS));
        Ok(vec![DecidedEvent {
            event_type: EventType::new("wound_up").unwrap(),
            data: json!({}),
        }])
    }

    fn evolve(&self, state: State, _: PastEvent<'_>) -> Result<State, FoldFault> {
        Ok(state)
    }
}

async fn the_time_of_an_event_begins_where_its_request_was_taken(contract: Contract) {
    let domain = Domain::new(vec![Arc::new(Slow)]).unwrap();
    let contract = contract.restarted(Some(domain), |_| {}).await;
    let command = || json!({ "aggregateId": Uuid::new_v4(), "type": "wind_up", "data": {} });
    // Over HTTP, on a websocket, and in the background.
    contract.execute(command()).await;
    let variables = json!({ "input": command() });
    let mut on_socket = contract
        .client
        .subscribe(&execute_command(), variables)
        .await;
    on_socket.next_data().await;
    let pending = contract.create(command()).await;
    contract.settled(&pending["id"]).await;
    let found = metrics(&contract, "").await;
    assert_eq!(counts(&found), stored_counts(&contract).await);
    assert_eq!(found[0]["eventCount"], 3);
    let shortest = found[0]["minProcessingTimeMs"].as_f64().unwrap();
    assert!(shortest >= DECIDES_MS as f64, "{shortest}");
}

/// The server again, which removes nothing however old it is.
async fn keeping_all(contract: Contract) -> Contract {
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    contract
        .restarted(None, |config| {
            config.observability.event_metrics_retention = century
        })
        .await
}

/// A row as a server writes it.
fn row(minute: &str, event_type: &str, times_ms: &[Option<f64>]) -> MinuteTally {
    let mut tally = Tally::default();
    for time in times_ms {
        tally.add(1, *time);
    }
    MinuteTally {
        id: Uuid::new_v4(),
        minute: Timestamp::parse(minute).unwrap(),
        event_type: EventType::new(event_type).unwrap(),
        aggregate_type: AggregateType::new("user").unwrap(),
        tally,
    }
}

async fn save(contract: &Contract, rows: &[MinuteTally]) {
    let store = contract.server.app.store();
    store.save_event_metrics(rows).await.unwrap();
}

async fn counts_of_several_servers_and_minutes_are_added_up(contract: Contract) {
    let contract = keeping_all(contract).await;
    let rows = [
        row("2026-01-01T00:00:00Z", "a", &[Some(1.0), Some(3.0)]),
        row("2026-01-01T00:00:00Z", "a", &[Some(8.0), None]),
        row("2026-01-01T00:01:00Z", "a", &[None]),
        row("2026-01-01T00:01:00Z", "b", &[None, None]),
        row("2026-01-01T00:02:00Z", "a", &[Some(100.0)]),
        row("2025-12-31T23:59:00Z", "a", &[Some(0.5)]),
    ];
    save(&contract, &rows).await;
    // A write whose outcome was not known comes again.
    save(&contract, &rows).await;
    let found = metrics(
        &contract,
        r#"(from: "2026-01-01T00:00:59Z", to: "2026-01-01T00:02:00Z")"#,
    )
    .await;
    let expected = json!([
        { "eventType": "a", "aggregateType": "user", "eventCount": 5, "avgProcessingTimeMs": 4.0, "maxProcessingTimeMs": 8.0, "minProcessingTimeMs": 1.0 },
        { "eventType": "b", "aggregateType": "user", "eventCount": 2, "avgProcessingTimeMs": null, "maxProcessingTimeMs": null, "minProcessingTimeMs": null },
    ]);
    assert_eq!(Value::Array(found), expected);
    let more = MinuteTally {
        tally: {
            let mut tally = rows[3].tally;
            tally.add(1, Some(2.0));
            tally
        },
        ..rows[3].clone()
    };
    save(&contract, &[more]).await;
    let found = metrics(
        &contract,
        r#"(from: "2026-01-01T00:01:00Z", to: "2026-01-01T00:01:01Z")"#,
    );
    let found = found.await;
    assert_eq!(
        (&found[0]["eventType"], &found[0]["eventCount"]),
        (&json!("b"), &json!(3))
    );
    assert_eq!(found[0]["avgProcessingTimeMs"], 2.0);
}

async fn pieces_of_time_follow_each_other_without_a_gap(contract: Contract) {
    let contract = keeping_all(contract).await;
    let rows = [
        row("2026-01-01T22:59:00Z", "a", &[Some(1.0)]),
        row("2026-01-01T23:00:00Z", "a", &[Some(2.0)]),
        row("2026-01-01T23:59:00Z", "a", &[Some(4.0)]),
        row("2026-01-01T23:59:00Z", "b", &[Some(1.0), Some(1.0)]),
        row("2026-01-03T00:00:00Z", "a", &[Some(8.0)]),
    ];
    save(&contract, &rows).await;
    let pieces = async |interval: &str, from: &str, to: &str| {
        let arguments = format!(r#"(from: "{from}", to: "{to}", interval: {interval})"#);
        let found = over_time(&contract, &arguments).await;
        let piece = |bucket: &Value| {
            let count = |metric: &Value| {
                format!(
                    "{}{}",
                    metric["eventType"].as_str().unwrap(),
                    metric["eventCount"]
                )
            };
            let start = text(&bucket["start"]).replace(":00.000000Z", "");
            let counts: Vec<String> = list(bucket["metrics"].clone()).iter().map(count).collect();
            format!("{start} {}", counts.join(" ")).trim().to_owned()
        };
        found.iter().map(piece).collect::<Vec<_>>()
    };
    assert_eq!(
        pieces("MINUTE", "2026-01-01T23:58:30Z", "2026-01-02T00:00:30Z").await,
        [
            "2026-01-01T23:58",
            "2026-01-01T23:59 b2 a1",
            "2026-01-02T00:00"
        ]
    );
    assert_eq!(
        pieces("HOUR", "2026-01-01T22:00:00Z", "2026-01-02T01:00:00Z").await,
        [
            "2026-01-01T22:00 a1",
            "2026-01-01T23:00 a2 b2",
            "2026-01-02T00:00"
        ]
    );
    assert_eq!(
        pieces("DAY", "2026-01-01T12:00:00Z", "2026-01-03T00:00:01Z").await,
        [
            "2026-01-01T00:00 a3 b2",
            "2026-01-02T00:00",
            "2026-01-03T00:00 a1"
        ]
    );
    // Without a time: the last hour, minute by minute, and what has happened until now.
    contract.append(event(contract.aggregate_in(0))).await;
    let found = over_time(&contract, "").await;
    assert_eq!(found.len(), 61);
    let last = list(found[60]["metrics"].clone());
    let before = list(found[59]["metrics"].clone());
    assert_eq!(last.len() + before.len(), 1, "{found:?}");
}

async fn an_event_from_elsewhere_is_counted(contract: Contract) {
    let input = json!({ "eventType": "seen", "aggregateType": "page", "processingTimeMs": 2.5 });
    assert_eq!(record(&contract, input).await, true);
    let input = json!({ "eventType": "seen", "aggregateType": "page" });
    assert_eq!(record(&contract, input).await, true);
    for (field, input) in [
        (
            "input.eventType",
            json!({ "eventType": "", "aggregateType": "page" }),
        ),
        (
            "input.aggregateType",
            json!({ "eventType": "seen", "aggregateType": "a\u{1}" }),
        ),
        (
            "input.processingTimeMs",
            json!({ "eventType": "seen", "aggregateType": "page", "processingTimeMs": -1 }),
        ),
    ] {
        let failure = contract.refused(RECORD, json!({ "input": input })).await;
        assert_eq!(
            (failure.code(), failure.extension("field")),
            ("BAD_USER_INPUT", json!(field))
        );
    }
    let found = metrics(&contract, "").await;
    let expected = json!([{ "eventType": "seen", "aggregateType": "page", "eventCount": 2, "avgProcessingTimeMs": 2.5, "maxProcessingTimeMs": 2.5, "minProcessingTimeMs": 2.5 }]);
    assert_eq!(Value::Array(found), expected);
    assert!(contract.all_events().await.is_empty());
}

async fn wrong_questions_are_refused(contract: Contract) {
    for (field, question) in [
        (
            "from",
            r#"eventMetrics(from: "2026-01-02T00:00:00Z", to: "2026-01-01T00:00:00Z") { eventType }"#,
        ),
        (
            "from",
            r#"eventMetrics(from: "2999-01-01T00:00:00Z") { eventType }"#,
        ),
        (
            "interval",
            r#"eventMetricsOverTime(from: "2026-01-01T00:00:00Z", to: "2026-02-01T00:00:00Z") { start }"#,
        ),
        (
            "interval",
            r#"eventMetricsOverTime(from: "0001-01-01T00:00:00Z", interval: DAY) { start }"#,
        ),
    ] {
        let failure = contract
            .refused(&format!("{{ {question} }}"), json!({}))
            .await;
        assert_eq!(failure.code(), "BAD_USER_INPUT", "{question}");
        assert_eq!(failure.extension("field"), field, "{question}");
    }
}

async fn counts_that_are_too_old_are_removed(contract: Contract) {
    let contract = keeping_all(contract).await;
    let rows: Vec<MinuteTally> = (0..7000)
        .map(|no| row("2026-01-01T00:00:00Z", &format!("old {no}"), &[None]))
        .chain([row("2026-01-02T00:00:00Z", "old", &[None])])
        .collect();
    save(&contract, &rows).await;
    contract.append(event(contract.aggregate_in(0))).await;
    let contract = contract
        .restarted(None, |config| {
            // Longer than the minute that a new row stands for.
            config.observability.event_metrics_retention = Duration::from_secs(3600);
        })
        .await;
    let store = contract.server.app.store();
    let removed = async {
        loop {
            let all = store
                .event_metrics(Timestamp::from_micros(0), later(), 10_000)
                .await;
            let all = all.unwrap();
            if all.len() == 1 {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let left = tokio::time::timeout(LIMIT, removed).await.expect("they go");
    assert_eq!(left[0].event_type.as_str(), "user_created");
}

async fn nothing_is_counted_where_that_is_turned_off(contract: Contract) {
    let contract = contract
        .restarted(None, |config| config.observability.event_metrics = false)
        .await;
    contract.append(event(contract.aggregate_in(0))).await;
    let input = json!({ "eventType": "seen", "aggregateType": "page" });
    assert_eq!(record(&contract, input).await, false);
    assert_eq!(metrics(&contract, "").await, [] as [Value; 0]);
    assert_eq!(contract.all_events().await.len(), 1);
}

async fn old_counts_are_removed_by_a_server_that_counts_nothing(contract: Contract) {
    let contract = keeping_all(contract).await;
    save(&contract, &[row("2026-01-01T00:00:00Z", "old", &[None])]).await;
    let contract = contract
        .restarted(None, |config| config.observability.event_metrics = false)
        .await;
    let store = contract.server.app.store();
    let all = (Timestamp::from_micros(0), later());
    let removed = async {
        while !store
            .event_metrics(all.0, all.1, 10)
            .await
            .unwrap()
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, removed).await.expect("they go");
}

#[tokio::test]
async fn two_servers_on_a_database_count_together() {
    let contract = Contract::on(Engine::Postgres, 4).await;
    let database = Arc::clone(&contract.server.database);
    let other = TestServer::on(database, |_| {}).await;
    let second = Contract {
        engine: contract.engine,
        partitions: contract.partitions,
        client: other.client(),
        server: other,
    };
    append_of_all_kinds(&contract).await;
    append_of_all_kinds(&second).await;
    second.server.stop().await;
    assert_eq!(
        counts(&metrics(&contract, "").await),
        stored_counts(&contract).await
    );
}

#[tokio::test]
async fn counts_that_cannot_be_written_are_written_later() {
    let contract = Contract::on(Engine::Postgres, 1).await;
    let Database::Postgres(database) = contract.server.database.as_ref() else {
        panic!("it is one of PostgreSQL");
    };
    contract.append(event(contract.aggregate_in(0))).await;
    metrics(&contract, "").await;
    database.execute("ALTER TABLE event_metrics RENAME TO elsewhere");
    append_of_all_kinds(&contract).await;
    let failure = contract
        .refused("{ eventMetrics { eventType } }", json!({}))
        .await;
    assert_eq!(failure.code(), "INTERNAL");
    append_of_all_kinds(&contract).await;
    database.execute("ALTER TABLE elsewhere RENAME TO event_metrics");
    assert_eq!(
        counts(&metrics(&contract, "").await),
        stored_counts(&contract).await
    );
}
