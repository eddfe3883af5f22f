//! Traces: one from the request over the commit to the read model and the published entry, whoever began it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tidings::handlers::{HandlerError, HandlerFunctions};
use uuid::Uuid;

use super::{
    holding,
    receiver::{Receiver, Span},
};
use crate::support::{
    client::{Client, LIMIT},
    in_process::{Database, Engine, TestServer},
    on_every_database, receiver, server,
};

on_every_database!(
    a_request_is_one_trace_from_its_client_to_the_read_model,
    events_of_several_partitions_are_one_trace,
    a_pending_command_goes_on_with_the_trace_of_its_client,
    what_handlers_do_is_in_the_trace_and_webhooks_carry_it_on,
);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

async fn serve(engine: Engine, partitions: u8, collector: Option<&Receiver>) -> TestServer {
    let database = Arc::new(Database::make(engine));
    serve_on(database, partitions, collector).await
}

async fn serve_on(
    database: Arc<Database>,
    partitions: u8,
    collector: Option<&Receiver>,
) -> TestServer {
    TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
        let endpoint = collector.map(|to| format!("http://{}", to.address).parse().unwrap());
        config.observability.otlp_endpoint = endpoint;
    })
    .await
}

/// Sends an operation as part of a trace.
async fn send(server: &TestServer, traceparent: Option<&str>, body: Value) -> Value {
    let mut request = reqwest::Client::new()
        .post(format!("{}/graphql", server.url))
        .json(&body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["errors"], Value::Null, "{answer}");
    answer["data"].clone()
}

fn append(aggregate: Uuid, metadata: Value) -> Value {
    json!({
        "query": "mutation($input: AppendEventInput!) { appendEvent(input: $input) { event { id metadata } } }",
        "variables": { "input": { "aggregateId": aggregate, "aggregateType": "user", "type": "user_created", "data": {}, "metadata": metadata } },
    })
}

/// Waits until the events of the server are folded and published.
async fn settle(server: &TestServer, entries: usize) {
    let client = server.client();
    let query = r#"{ projection { lagEvents } stream(name: "user_events") { lastPosition } }"#;
    let settled = async {
        loop {
            let data = client.query(query, json!({})).await.unwrap();
            if data["projection"]["lagEvents"] == 0 && data["stream"]["lastPosition"] == entries {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, settled)
        .await
        .expect("everything is projected");
}

fn of_trace(spans: &[Span], trace: &str) -> Vec<Span> {
    let of_it = spans.iter().filter(|span| span.trace == trace);
    of_it.cloned().collect()
}

fn one<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

async fn a_request_is_one_trace_from_its_client_to_the_read_model(engine: Engine, partitions: u8) {
    let collector = Receiver::start().await;
    let server = serve(engine, partitions, Some(&collector)).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let stored = send(
        &server,
        Some(&parent),
        append(Uuid::new_v4(), json!({ "by": "me" })),
    )
    .await;
    // Two more that no one traces: one by itself, one that its client does not want to be recorded.
    send(&server, None, append(Uuid::new_v4(), json!({}))).await;
    let unsampled = format!("00-{}-{PARENT}-00", TRACE.replace('4', "5"));
    let untraced = send(&server, Some(&unsampled), append(Uuid::new_v4(), json!({}))).await;
    assert_eq!(untraced["appendEvent"]["event"]["metadata"], json!({}));
    settle(&server, 3).await;
    server.stop().await;

    let all = collector.spans();
    let spans = of_trace(&all, TRACE);
    let request = one(&spans, "POST /graphql");
    assert_eq!(request.parent, PARENT);
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert!(Uuid::try_parse(request.attribute("tidings.request_id")).is_ok());
    let operation = one(&spans, "graphql mutation");
    let appended = one(&spans, "append");
    let commit = one(&spans, "commit");
    assert_eq!(operation.parent, request.id);
    assert_eq!(appended.parent, operation.id);
    assert_eq!(commit.parent, appended.id);
    assert_eq!(commit.attribute("tidings.batch.events"), "1");
    let event = &stored["appendEvent"]["event"];
    let traceparent = format!("00-{TRACE}-{}-01", appended.id);
    assert_eq!(
        event["metadata"],
        json!({ "by": "me", "traceparent": traceparent })
    );
    for name in ["project", "publish"] {
        let span = one(&spans, name);
        assert_eq!(span.parent, appended.id);
        assert_eq!(
            span.attribute("tidings.event.id"),
            event["id"].as_str().unwrap()
        );
        assert!(span.end >= span.begin && span.end >= commit.begin);
    }
    assert!(spans.iter().all(|span| !span.failed));
    // The second request is a trace of its own; the third one is none.
    let others: Vec<&Span> = all.iter().filter(|span| span.trace != TRACE).collect();
    let own: Vec<&&Span> = others.iter().filter(|span| span.name == "append").collect();
    assert_eq!(own.len(), 1, "{others:#?}");
    assert_eq!(of_trace(&all, &own[0].trace).len(), 6);
    assert!(
        collector
            .resources()
            .contains(&("service.name".to_owned(), "tidings".to_owned()))
    );
}

async fn events_of_several_partitions_are_one_trace(engine: Engine, partitions: u8) {
    let collector = Receiver::start().await;
    let server = serve(engine, partitions, Some(&collector)).await;
    let event = || json!({ "aggregateId": Uuid::new_v4(), "aggregateType": "user", "type": "user_created", "data": {} });
    let events: Vec<Value> = (0..12).map(|_| event()).collect();
    let body = json!({
        "query": "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }",
        "variables": { "input": { "events": events } },
    });
    send(&server, Some(&format!("00-{TRACE}-{PARENT}-01")), body).await;
    settle(&server, 12).await;
    server.stop().await;
    let spans = of_trace(&collector.spans(), TRACE);
    let appended = one(&spans, "append");
    assert_eq!(one(&spans, "commit").parent, appended.id);
    for name in ["project", "publish"] {
        let of_events: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(of_events.len(), 12, "{name}");
        assert!(of_events.iter().all(|span| span.parent == appended.id));
    }
}

async fn a_pending_command_goes_on_with_the_trace_of_its_client(engine: Engine, partitions: u8) {
    let collector = Receiver::start().await;
    let server = serve(engine, partitions, Some(&collector)).await;
    let body = json!({
        "query": "mutation($input: CreateCommandInput!) { createCommand(input: $input) { command { id } } }",
        "variables": { "input": { "aggregateId": Uuid::new_v4(), "type": "create_user", "data": { "username": "ada" } } },
    });
    send(&server, Some(&format!("00-{TRACE}-{PARENT}-01")), body).await;
    settle(&server, 1).await;
    server.stop().await;
    let spans = of_trace(&collector.spans(), TRACE);
    let processed = one(&spans, "process command");
    let appended: Vec<&Span> = spans.iter().filter(|span| span.name == "append").collect();
    assert_eq!(appended.len(), 2, "the command, and its event: {spans:#?}");
    assert_eq!(processed.parent, appended[0].id);
    assert_eq!(appended[1].parent, processed.id);
    for name in ["project", "publish"] {
        assert_eq!(one(&spans, name).parent, appended[1].id, "{name}");
    }
}

#[tokio::test]
async fn a_batch_that_is_cut_off_by_a_stop_is_in_its_trace() {
    let collector = Receiver::start().await;
    let database = Arc::new(Database::make(Engine::Postgres));
    let server = serve_on(Arc::clone(&database), 1, Some(&collector)).await;
    let held = holding(&database, "LOCK TABLE read_models IN EXCLUSIVE MODE").await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    send(&server, Some(&parent), append(Uuid::new_v4(), json!({}))).await;
    let Database::Postgres(postgres) = database.as_ref() else {
        panic!("it is one of PostgreSQL");
    };
    let waits = "SELECT count(*)::text FROM pg_locks \
                 WHERE relation = 'read_models'::regclass AND NOT granted";
    let saving = async {
        while postgres.text(waits).await == "0" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, saving)
        .await
        .expect("the read model is saved");
    server.stop().await;
    drop(held);
    let spans = of_trace(&collector.spans(), TRACE);
    assert_eq!(one(&spans, "project").parent, one(&spans, "append").id);
}

async fn what_handlers_do_is_in_the_trace_and_webhooks_carry_it_on(engine: Engine, partitions: u8) {
    let collector = Receiver::start().await;
    let database = Arc::new(Database::make(engine));
    let functions = HandlerFunctions::new()
        .with("remember", |_| async { Ok::<_, HandlerError>(()) })
        .unwrap();
    let server = TestServer::with_functions(database, functions, |config| {
        config.database.partitions = Some(partitions);
        let endpoint = format!("http://{}", collector.address).parse().unwrap();
        config.observability.otlp_endpoint = Some(endpoint);
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        config.handlers.webhook_secrets = vec![secret.parse().unwrap()];
        config.handlers.allow_private = true;
        config.handlers.retry_delay = Duration::from_millis(20);
    })
    .await;
    // The first attempt fails.
    let hook = receiver::Receiver::start(|no, _| {
        let status = if no == 0 { 500 } else { 200 };
        (status, Duration::ZERO)
    })
    .await;
    let mut handlers = vec![
        ("hook", hook.url.as_str()),
        ("copy", "publish:copy"),
        ("line", "log"),
        ("rust", "remember"),
    ];
    if let Database::Postgres(database) = server.database.as_ref() {
        database.execute(
            "CREATE FUNCTION note(event uuid, aggregate uuid, data jsonb) RETURNS void LANGUAGE sql AS $$ SELECT $$",
        );
        handlers.push(("sql", "sql:note"));
    }
    let client = server.client();
    for (name, function) in &handlers {
        let query = "mutation($input: RegisterEventHandlerInput!) { registerEventHandler(input: $input) { eventHandler { id } } }";
        let input = json!({ "name": name, "function": function });
        let registered = client.query(query, json!({ "input": input })).await;
        registered.unwrap();
    }
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let stored = send(&server, Some(&parent), append(Uuid::new_v4(), json!({}))).await;
    let handled = async {
        let query = "{ eventHandlers { lagEvents deliveries { nodes { id } } } }";
        loop {
            let data = client.query(query, json!({})).await.unwrap();
            let done = json!({ "lagEvents": 0, "deliveries": { "nodes": [] } });
            let mut all = data["eventHandlers"].as_array().unwrap().iter();
            if all.all(|handler| *handler == done) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let handled = tokio::time::timeout(LIMIT, handled).await;
    handled.expect("every handler has done its part");
    server.stop().await;

    let spans = of_trace(&collector.spans(), TRACE);
    let appended = one(&spans, "append");
    let of_handler = |name: &str| -> Vec<&Span> {
        let of_it = spans
            .iter()
            .filter(|span| span.name == "handle" && span.attribute("tidings.handler") == name);
        of_it.collect()
    };
    for (name, _) in &handlers {
        let found = of_handler(name);
        let count = if *name == "hook" { 2 } else { 1 };
        assert_eq!(found.len(), count, "{name}: {spans:#?}");
        for (no, span) in found.iter().enumerate() {
            assert_eq!(span.parent, appended.id, "{name}");
            let event = &stored["appendEvent"]["event"];
            assert_eq!(
                span.attribute("tidings.event.id"),
                event["id"].as_str().unwrap()
            );
            assert_eq!(span.failed, *name == "hook" && no == 0, "{name}");
        }
    }
    // Each post is part of its own span, and the document tells the event's.
    let posted = hook.posted();
    assert_eq!(posted.len(), 2);
    for (posted, span) in posted.iter().zip(of_handler("hook")) {
        let own = format!("00-{TRACE}-{}-01", span.id);
        assert_eq!(posted.headers["traceparent"], own);
        let of_event = format!("00-{TRACE}-{}-01", appended.id);
        assert_eq!(posted.body["traceparent"], of_event);
    }
}

#[tokio::test]
async fn another_server_goes_on_with_the_trace() {
    let collector = Receiver::start().await;
    let database = Arc::new(Database::make(Engine::Postgres));
    let appender = TestServer::on(Arc::clone(&database), |config| {
        let endpoint = format!("http://{}", collector.address).parse().unwrap();
        config.observability.otlp_endpoint = Some(endpoint);
        config.background.enabled = false;
    })
    .await;
    let elsewhere = Receiver::start().await;
    let projector = serve_on(database, 1, Some(&elsewhere)).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    send(&appender, Some(&parent), append(Uuid::new_v4(), json!({}))).await;
    settle(&projector, 1).await;
    appender.stop().await;
    projector.stop().await;
    let appended = of_trace(&collector.spans(), TRACE);
    let projected = of_trace(&elsewhere.spans(), TRACE);
    let names: Vec<&str> = projected.iter().map(|span| span.name.as_str()).collect();
    assert!(
        names.contains(&"project") && names.contains(&"publish"),
        "{names:?}"
    );
    assert_eq!(
        one(&projected, "project").parent,
        one(&appended, "append").id
    );
}

#[tokio::test]
async fn the_service_has_the_name_that_the_environment_gives_it() {
    for (variable, value, service) in [
        ("OTEL_SERVICE_NAME", "orders", "orders"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "a=b,service.name=bills",
            "bills",
        ),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b", "tidings"),
    ] {
        let collector = Receiver::start().await;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tidings.db", folder.path().display());
        let mut server = server::TestServer::on(&url)
            .env(variable, value)
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", collector.address),
            )
            .start();
        let client = Client::new(&server);
        client
            .query("{ server { version } }", json!({}))
            .await
            .unwrap();
        tokio::task::spawn_blocking(move || server.sigterm_and_wait(Duration::from_secs(20)))
            .await
            .unwrap();
        let of_service = |(key, _): &&(String, String)| key == "service.name";
        let resources = collector.resources();
        let names: Vec<_> = resources.iter().filter(of_service).collect();
        assert!(!names.is_empty(), "{variable}={value}");
        assert!(names.iter().all(|(_, name)| name == service), "{names:?}");
    }
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_added_to_an_event() {
    let server = serve(Engine::Sqlite, 1, None).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let stored = send(&server, Some(&parent), append(Uuid::new_v4(), json!({}))).await;
    assert_eq!(stored["appendEvent"]["event"]["metadata"], json!({}));
    server.stop().await;
}

#[tokio::test]
async fn a_traceparent_of_the_client_s_own_stays_in_the_event() {
    let collector = Receiver::start().await;
    let server = serve(Engine::Sqlite, 1, Some(&collector)).await;
    let own = format!("00-{}-{PARENT}-01", "a".repeat(32));
    for metadata in [json!({ "traceparent": own }), json!({ "traceparent": 7 })] {
        let stored = send(&server, None, append(Uuid::new_v4(), metadata.clone())).await;
        assert_eq!(stored["appendEvent"]["event"]["metadata"], metadata);
    }
    settle(&server, 2).await;
    server.stop().await;
    let spans = of_trace(&collector.spans(), &"a".repeat(32));
    assert_eq!(one(&spans, "project").parent, PARENT);
}

#[tokio::test]
async fn a_refused_operation_is_a_failed_span() {
    let collector = Receiver::start().await;
    let server = serve(Engine::Sqlite, 1, Some(&collector)).await;
    let client = server.client();
    client
        .query("{ events(first: 0) { nodes { id } } }", json!({}))
        .await
        .unwrap_err();
    server.stop().await;
    assert!(one(&collector.spans(), "graphql query").failed);
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_nothing() {
    let server = TestServer::with(|config| {
        let nobody = format!("http://127.0.0.1:{}", crate::support::server::free_port());
        config.observability.otlp_endpoint = Some(nobody.parse().unwrap());
    })
    .await;
    for _ in 0..10 {
        send(&server, None, append(Uuid::new_v4(), json!({}))).await;
    }
    let began = std::time::Instant::now();
    server.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
}
