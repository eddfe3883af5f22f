//! /metrics: what it counts, who may read it, and that Prometheus' own tool finds nothing wrong with it.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tidings::handlers::{HandlerError, HandlerFunctions};
use uuid::Uuid;

use super::{holding, samples, scrape};
use crate::support::{
    client::LIMIT,
    in_process::{Database, Engine, TestServer},
    on_every_database,
};

on_every_database!(
    requests_appends_and_subscriptions_are_counted,
    promtool_finds_nothing_wrong
);

const APPEND: &str =
    "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { id } } }";

fn event(aggregate: Uuid) -> serde_json::Value {
    json!({ "input": { "aggregateId": aggregate, "aggregateType": "user", "type": "user_created", "data": {} } })
}

async fn serve(engine: Engine, partitions: u8) -> TestServer {
    TestServer::on(Arc::new(Database::make(engine)), |config| {
        config.database.partitions = Some(partitions);
    })
    .await
}

/// Waits until a sample has a value: what is done in the background takes its time.
async fn until(server: &TestServer, sample: &str, value: f64) -> BTreeMap<String, f64> {
    let seen = async {
        loop {
            let samples = samples(&scrape(server).await);
            if samples.get(sample) == Some(&value) {
                return samples;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(LIMIT, seen).await;
    seen.unwrap_or_else(|_| panic!("{sample} does not become {value}"))
}

async fn requests_appends_and_subscriptions_are_counted(engine: Engine, partitions: u8) {
    let server = serve(engine, partitions).await;
    let client = server.client();
    for _ in 0..3 {
        client.query(APPEND, event(Uuid::new_v4())).await.unwrap();
    }
    let entry = json!({ "input": { "streamName": "s", "eventId": Uuid::new_v4(), "type": "t", "data": {} } });
    let append_entry =
        "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { duplicate } }";
    client.query(append_entry, entry).await.unwrap();
    client
        .query("{ server { version } }", json!({}))
        .await
        .unwrap();
    client
        .query("{ events(first: 0) { nodes { id } } }", json!({}))
        .await
        .unwrap_err();
    client.query("{ nothing", json!({})).await.unwrap_err();
    let conflict = json!({ "input": { "aggregateId": Uuid::new_v4(), "aggregateType": "user", "type": "a", "data": {}, "expectedVersion": 3 } });
    client.query(APPEND, conflict).await.unwrap_err();

    let mut subscription = client
        .subscribe("subscription { events(after: \"\") { cursor } }", json!({}))
        .await;
    subscription.next().await;
    let seen = until(&server, "tidings_subscriptions", 1.0).await;
    assert_eq!(seen["tidings_websockets"], 1.0);
    assert!(seen["tidings_connections"] >= 1.0);
    for (sample, value) in [
        (
            r#"tidings_requests_total{code="OK",operation="mutation"}"#,
            4.0,
        ),
        (
            r#"tidings_requests_total{code="VERSION_CONFLICT",operation="mutation"}"#,
            1.0,
        ),
        (
            r#"tidings_requests_total{code="OK",operation="query"}"#,
            1.0,
        ),
        (
            r#"tidings_requests_total{code="BAD_USER_INPUT",operation="query"}"#,
            1.0,
        ),
        (
            r#"tidings_requests_total{code="BAD_USER_INPUT",operation="unknown"}"#,
            1.0,
        ),
        (
            r#"tidings_requests_total{code="OK",operation="subscription"}"#,
            0.0,
        ),
        (
            r#"tidings_request_duration_seconds_count{operation="mutation"}"#,
            5.0,
        ),
        (
            r#"tidings_request_duration_seconds_count{operation="query"}"#,
            2.0,
        ),
        (r#"tidings_appended_total{log="events"}"#, 3.0),
        (r#"tidings_appended_total{log="entries"}"#, 1.0),
        (
            r#"tidings_append_duration_seconds_count{log="events"}"#,
            3.0,
        ),
        // Also what was refused goes to the database.
        (r#"tidings_batch_size_sum{log="events"}"#, 4.0),
        (r#"tidings_commit_failures_total{log="events"}"#, 0.0),
        (
            r#"tidings_append_queue_requests{log="events",partition="0"}"#,
            0.0,
        ),
        (
            r#"tidings_append_queue_bytes{log="entries",partition="0"}"#,
            0.0,
        ),
        ("tidings_database_up", 1.0),
        ("tidings_commands_pending", 0.0),
        ("tidings_read_models_faulted", 0.0),
        ("tidings_event_metrics_dropped_total", 0.0),
    ] {
        assert_eq!(seen.get(sample), Some(&value), "{sample}");
    }
    let sum = |seen: &BTreeMap<String, f64>, prefix: &str| -> f64 {
        let of_it = seen.iter().filter(|(name, _)| name.starts_with(prefix));
        of_it.map(|(_, value)| value).sum()
    };
    assert_eq!(sum(&seen, r#"tidings_log_position{log="events""#), 3.0);
    let has = |name: &str| seen.keys().any(|sample| sample.starts_with(name));
    assert!(has("tidings_database_connections{"), "{seen:?}");
    assert!(seen["process_resident_memory_bytes"] > 1e6);
    assert!(seen["process_cpu_seconds_total"] > 0.0);
    assert!(seen["process_open_fds"] > 3.0);

    drop(subscription);
    let seen = until(&server, "tidings_subscriptions", 0.0).await;
    assert_eq!(
        seen[r#"tidings_requests_total{code="OK",operation="subscription"}"#],
        1.0
    );
    let seen = until(&server, "tidings_leases_held", f64::from(partitions)).await;
    assert!(seen.contains_key("tidings_event_metrics_unsaved"));
    let caught_up = async {
        while sum(
            &samples(&scrape(&server).await),
            "tidings_projection_lag_events",
        ) > 0.0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, caught_up)
        .await
        .expect("read models follow");
    server.stop().await;
}

async fn promtool_finds_nothing_wrong(engine: Engine, partitions: u8) {
    let server = serve(engine, partitions).await;
    let client = server.client();
    client.query(APPEND, event(Uuid::new_v4())).await.unwrap();
    client.query("{ nothing }", json!({})).await.unwrap_err();
    let text = scrape(&server).await;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: scripts/setup does it");
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{text}"
    );
}

#[tokio::test]
async fn handlers_show_their_lag_and_their_dead_deliveries() {
    let server = serve(Engine::Postgres, 4).await;
    let client = server.client();
    for _ in 0..8 {
        client.query(APPEND, event(Uuid::new_v4())).await.unwrap();
    }
    let Database::Postgres(database) = server.database.as_ref() else {
        panic!("it is one of PostgreSQL");
    };
    let handler = Uuid::new_v4();
    database.execute(&format!(
        "INSERT INTO event_handlers (id, handler_name, event_types, handler_function, is_active, created_at) \
         VALUES ('{handler}', 'mail \"1\"', '[]', 'log', false, now())"
    ));
    database.execute(&format!(
        "INSERT INTO checkpoints (partition_no, name, position, fence) \
         SELECT no, 'handler:{handler}', 0, 0 FROM generate_series(0, 3) AS no"
    ));
    database.execute(&format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at) \
         SELECT no % 4, gen_random_uuid(), '{handler}', no, gen_random_uuid(), \
         CASE WHEN no < 3 THEN 'DEAD' ELSE 'WAITING' END, 8, now() FROM generate_series(0, 7) AS no"
    ));
    let seen = samples(&scrape(&server).await);
    let handler_id = handler;
    let handler = r#"handler="mail \"1\"""#;
    for (sample, value) in [
        (format!("tidings_handler_lag_events{{{handler}}}"), 8.0),
        (
            format!("tidings_deliveries{{{handler},status=\"DEAD\"}}"),
            3.0,
        ),
        (
            format!("tidings_deliveries{{{handler},status=\"WAITING\"}}"),
            5.0,
        ),
        (
            format!("tidings_deliveries{{{handler},status=\"RETRYING\"}}"),
            0.0,
        ),
        (format!("tidings_handler_paused{{{handler}}}"), 0.0),
    ] {
        assert_eq!(seen.get(&sample), Some(&value), "{sample} in {seen:?}");
    }
    database.execute("UPDATE event_handlers SET paused_until = now()");
    // Those of one status in one partition are counted up to 10,000.
    database.execute(&format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at) \
         SELECT 1, gen_random_uuid(), '{handler_id}', no, gen_random_uuid(), 'WAITING', 0, now() \
         FROM generate_series(1, 11000) AS no"
    ));
    let seen = samples(&scrape(&server).await);
    assert_eq!(seen[&format!("tidings_handler_paused{{{handler}}}")], 1.0);
    let waiting = format!("tidings_deliveries{{{handler},status=\"WAITING\"}}");
    assert_eq!(
        seen[&waiting], 10_004.0,
        "5, of which 1 is in that partition"
    );
    database.execute("DELETE FROM event_handlers");
    let seen = samples(&scrape(&server).await);
    assert!(
        !seen
            .keys()
            .any(|name| name.starts_with("tidings_deliveries{"))
    );
}

#[tokio::test]
async fn what_becomes_of_deliveries_is_counted() {
    let sulk = |_| async { Err::<(), _>(HandlerError::from("no")) };
    let functions = HandlerFunctions::new().with("sulk", sulk).unwrap();
    let database = Arc::new(Database::make(Engine::Sqlite));
    let server = TestServer::with_functions(database, functions, |config| {
        config.handlers.attempts = 2;
        config.handlers.retry_delay = Duration::from_millis(1);
    })
    .await;
    let client = server.client();
    for (name, function) in [("a", "log"), ("b", "publish:s"), ("c", "sulk")] {
        let register = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
        let input = json!({ "input": { "name": name, "eventTypes": [], "function": function } });
        client.query(register, input).await.unwrap();
    }
    client.query(APPEND, event(Uuid::new_v4())).await.unwrap();
    until(&server, r#"tidings_deliveries_total{outcome="dead"}"#, 1.0).await;
    until(
        &server,
        r#"tidings_deliveries_total{outcome="failed"}"#,
        2.0,
    )
    .await;
    let delivered = r#"tidings_deliveries_total{outcome="delivered"}"#;
    let seen = until(&server, delivered, 2.0).await;
    assert_eq!(seen[r#"tidings_handler_paused{handler="c"}"#], 0.0);
    server.stop().await;
}

#[tokio::test]
async fn a_figure_that_is_late_is_told_as_it_was_and_the_database_is_up() {
    let server = serve(Engine::Postgres, 1).await;
    let client = server.client();
    let Database::Postgres(database) = server.database.as_ref() else {
        panic!("it is one of PostgreSQL");
    };
    let handler = Uuid::new_v4();
    database.execute(&format!(
        "INSERT INTO event_handlers (id, handler_name, event_types, handler_function, is_active, created_at) \
         VALUES ('{handler}', 'mail', '[]', 'log', false, now())"
    ));
    database.execute(&format!(
        "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, updated_at) \
         VALUES (0, '{handler}', '{handler}', 1, '{handler}', 'DEAD', 8, now())"
    ));
    let dead = r#"tidings_deliveries{handler="mail",status="DEAD"}"#;
    let late = r#"tidings_figures_late_total{figure="deliveries"}"#;
    let seen = samples(&scrape(&server).await);
    assert_eq!((seen[dead], seen[late]), (1.0, 0.0));
    let held = holding(
        &server.database,
        "LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE",
    )
    .await;
    client.query(APPEND, event(Uuid::new_v4())).await.unwrap();
    let seen = samples(&scrape(&server).await);
    assert_eq!(seen["tidings_database_up"], 1.0);
    assert_eq!((seen[dead], seen[late]), (1.0, 1.0));
    let position = r#"tidings_log_position{log="events",partition="0"}"#;
    assert_eq!(seen[position], 1.0, "what is not late is new");
    drop(held);
    let seen = samples(&scrape(&server).await);
    assert_eq!((seen[dead], seen[late]), (1.0, 1.0));
    server.stop().await;
}

#[tokio::test]
async fn without_the_database_the_metrics_say_so_and_leave_out_what_it_would() {
    let cluster = crate::support::postgres::Cluster::private();
    let database = Box::new(cluster.create_database());
    let server = TestServer::on(Arc::new(Database::Postgres(database)), |config| {
        config.database.acquire_timeout = Duration::from_millis(500);
    })
    .await;
    let seen = samples(&scrape(&server).await);
    assert_eq!(seen["tidings_database_up"], 1.0);
    assert!(seen.contains_key("tidings_commands_pending"));
    cluster.stop_immediate();
    let seen = samples(&scrape(&server).await);
    assert_eq!(seen["tidings_database_up"], 0.0);
    let read = server
        .client()
        .query("{ events(first: 1) { nodes { id } } }", json!({}))
        .await;
    let failure = read.unwrap_err();
    assert_eq!(failure.code(), "UNAVAILABLE");
    let request_id = failure.extension("requestId");
    assert!(
        Uuid::try_parse(request_id.as_str().unwrap()).is_ok(),
        "its cause is in the log"
    );
    let seen_after = samples(&scrape(&server).await);
    assert_eq!(
        seen_after[r#"tidings_requests_total{code="UNAVAILABLE",operation="query"}"#],
        1.0
    );
    for gone in [
        "tidings_commands_pending",
        "tidings_log_position",
        "tidings_projection_lag",
    ] {
        assert!(!seen.keys().any(|name| name.starts_with(gone)), "{gone}");
    }
    assert!(seen["process_resident_memory_bytes"] > 0.0);
}

#[tokio::test]
async fn where_tokens_are_set_metrics_need_one() {
    let server = TestServer::with(|config| {
        config.access.tokens = vec!["read=reader".parse().unwrap()];
    })
    .await;
    let ask = |token: Option<&str>| {
        let request = reqwest::Client::new().get(format!("{}/metrics", server.url));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
        .send()
    };
    assert_eq!(ask(None).await.unwrap().status(), 401);
    assert_eq!(ask(Some("wrong")).await.unwrap().status(), 401);
    let answer = ask(Some("reader")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    assert!(
        answer
            .text()
            .await
            .unwrap()
            .contains("tidings_requests_total")
    );
}
