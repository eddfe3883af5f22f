//! Bad input gets a clear error with its code, stores nothing, and the server goes on.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{APPEND, PATIENCE, ask, bad_user_input, event, goes_on, post, stored, with};
use crate::support::{
    client::{Socket, Step},
    in_process::{Database, Engine, TestServer},
};

pub(super) const APPEND_ALL: &str =
    "mutation($input: AppendEventsInput!) { appendEvents(input: $input) { events { id } } }";
pub(super) const APPEND_ENTRY: &str =
    "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { duplicate } }";
pub(super) const CREATE: &str =
    "mutation($input: CreateAggregateInput!) { createAggregate(input: $input) { created } }";

/// An entry to append.
pub(super) fn entry() -> Value {
    json!({ "streamName": "a", "eventId": Uuid::new_v4(), "type": "user_seen", "data": {} })
}

/// An operation is refused for this field, if one is named; nothing is stored.
pub(super) async fn is_refused(
    server: &TestServer,
    query: &str,
    variables: Value,
    field: Option<&str>,
) -> Value {
    let body = json!({ "query": query, "variables": variables });
    body_is_refused(server, body.to_string(), field).await
}

pub(super) async fn body_is_refused(
    server: &TestServer,
    body: String,
    field: Option<&str>,
) -> Value {
    let before = stored(&server.url).await;
    let beginning: String = body.chars().take(400).collect();
    let (_, answer) = post(&server.url, body).await;
    assert!(
        answer["errors"].is_array(),
        "{beginning} was answered: {answer}"
    );
    let error = bad_user_input(&answer).clone();
    if let Some(field) = field {
        assert_eq!(error["extensions"]["field"], field, "{beginning}: {error}");
    }
    assert_eq!(stored(&server.url).await, before, "{beginning}");
    error
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let server = TestServer::start().await;
    let whole = json!({ "query": APPEND, "variables": { "input": event() } }).to_string();
    for body in [
        whole[..whole.len() - 1].to_owned(),
        format!("{whole}}}"),
        whole.replace("\"query\"", "query"),
        whole.replace('"', "'"),
        "\u{feff}{}".to_owned(),
        "\0".to_owned(),
    ] {
        body_is_refused(&server, body, None).await;
    }
    goes_on(&server.url).await;
}

#[tokio::test]
async fn documents_that_are_not_graphql_are_refused() {
    let server = TestServer::start().await;
    for query in [
        "",
        " # nothing",
        "{",
        "}",
        "{ }",
        "{ server { version } } }",
        "{ server }",
        "{ server { version { x } } }",
        "{ server { nothing } }",
        "{ server(x: 1) { version } }",
        "{ nothing }",
        "mutation { server { version } }",
        "query($x: Nothing) { server { version } }",
        "query($x: Int) { server { version } }",
        "{ stream(name: $x) { name } }",
        "{ ...nothing }",
        "{ server { version @nothing } }",
        "{ event(id: \"x) { id } }",
        "fragment f on Query { server { version } }",
        "type X { y: Int }",
        "\0",
        "{ server { version } \u{0} }",
    ] {
        is_refused(&server, query, json!({}), None).await;
    }
    goes_on(&server.url).await;
}

#[tokio::test]
async fn values_of_wrong_types_are_refused() {
    let server = TestServer::start().await;
    for (field, wrong) in [
        ("aggregateId", json!("user-123")),
        ("aggregateId", json!("0192d3f0111172228333444455556666")),
        (
            "aggregateId",
            json!("{0192d3f0-1111-7222-8333-444455556666}"),
        ),
        ("aggregateId", json!(7)),
        ("aggregateId", json!(null)),
        ("id", json!("x")),
        ("aggregateType", json!(7)),
        ("aggregateType", json!(null)),
        ("type", json!(["user_created"])),
        ("type", json!({})),
        ("data", json!(null)),
        ("expectedVersion", json!("1")),
        ("expectedVersion", json!(1.5)),
        ("expectedVersion", json!(-1)),
    ] {
        let variables = json!({ "input": with(event(), field, wrong) });
        let field = format!("input.{field}");
        is_refused(&server, APPEND, variables, Some(&field)).await;
    }
    for (field, wrong) in [
        ("eventId", json!("x")),
        ("streamName", json!(7)),
        ("expectedPosition", json!(-1)),
        ("expectedPosition", json!(1.5)),
        ("expectedPosition", json!("1")),
        ("expectedPosition", json!(1_i64 << 53)),
        ("expectedPosition", json!(1e300)),
    ] {
        let variables = json!({ "input": with(entry(), field, wrong) });
        let field = format!("input.{field}");
        is_refused(&server, APPEND_ENTRY, variables, Some(&field)).await;
    }
    let too_large = with(event(), "expectedVersion", json!(2_147_483_648_i64));
    for input in [json!(null), json!([]), json!("x"), json!({}), too_large] {
        is_refused(&server, APPEND, json!({ "input": input }), None).await;
    }
    for missing in ["aggregateId", "aggregateType", "type", "data"] {
        let mut input = event();
        input.as_object_mut().unwrap().remove(missing);
        is_refused(&server, APPEND, json!({ "input": input }), None).await;
    }
    let unknown = with(event(), "version", json!(1));
    is_refused(&server, APPEND, json!({ "input": unknown }), None).await;
    goes_on(&server.url).await;
}

#[tokio::test]
async fn wrong_arguments_of_queries_are_refused() {
    let server = TestServer::start().await;
    for query in [
        "{ event(id: \"x\") { id } }",
        "{ event(id: 7) { id } }",
        "{ event { id } }",
        "{ events(first: \"1\") { nodes { id } } }",
        "{ events(first: 99999999999) { nodes { id } } }",
        "{ events(first: null) { nodes { id } } }",
        "{ events(first: 0) { nodes { id } } }",
        "{ events(first: 1001) { nodes { id } } }",
        "{ aggregates(first: 0) { nodes { id } } }",
        "{ aggregates(first: 1001) { nodes { id } } }",
        "{ streams(first: 0) { nodes { name } } }",
        "{ streams(first: 1001) { nodes { name } } }",
        "{ events(order: SIDEWAYS) { nodes { id } } }",
        "{ events(order: null) { nodes { id } } }",
        "{ events(filter: { createdFrom: \"yesterday\" }) { nodes { id } } }",
        "{ events(filter: { createdFrom: \"2026-01-31\" }) { nodes { id } } }",
        "{ events(filter: { createdFrom: \"2026-02-30T00:00:00Z\" }) { nodes { id } } }",
        "{ events(filter: { createdFrom: 0 }) { nodes { id } } }",
        "{ events(filter: { eventTypes: [null] }) { nodes { id } } }",
        "{ events(filter: { nothing: 1 }) { nodes { id } } }",
        "{ events(after: \"x\") { nodes { id } } }",
        "{ events(after: 7) { nodes { id } } }",
        "{ stream(name: \"a\") { entries(after: -1) { position } } }",
    ] {
        is_refused(&server, query, json!({}), None).await;
    }
    goes_on(&server.url).await;
}

#[tokio::test]
async fn names_that_are_empty_too_long_or_hold_nul_are_refused() {
    let server = TestServer::start().await;
    for name in [
        String::new(),
        "x".repeat(101),
        "ä".repeat(101),
        "x".repeat(1_000_000),
        "a\0b".to_owned(),
        "\0".to_owned(),
        "a\nb".to_owned(),
    ] {
        let name = json!(name);
        for field in ["aggregateType", "type"] {
            let input = with(event(), field, name.clone());
            let path = format!("input.{field}");
            is_refused(&server, APPEND, json!({ "input": input }), Some(&path)).await;
            let variables = json!({ "input": { "events": [event(), input] } });
            let path = format!("input.events[1].{field}");
            is_refused(&server, APPEND_ALL, variables, Some(&path)).await;
        }
        for field in ["streamName", "type"] {
            let variables = json!({ "input": with(entry(), field, name.clone()) });
            let path = format!("input.{field}");
            is_refused(&server, APPEND_ENTRY, variables, Some(&path)).await;
        }
        let variables = json!({ "input": { "type": name } });
        is_refused(&server, CREATE, variables, Some("input.type")).await;
        let query = "query($name: String!) { stream(name: $name) { name } }";
        is_refused(&server, query, json!({ "name": name }), Some("name")).await;
        for field in ["eventTypes", "aggregateTypes"] {
            let query = "query($filter: EventFilter) { events(filter: $filter) { nodes { id } } }";
            let variables = json!({ "filter": { field: ["a", name] } });
            let path = format!("filter.{field}[1]");
            is_refused(&server, query, variables, Some(&path)).await;
        }
    }
    let longest = json!("ä".repeat(100));
    let input = with(
        with(event(), "type", longest.clone()),
        "aggregateType",
        longest.clone(),
    );
    let answer = ask(&server.url, APPEND, json!({ "input": input })).await;
    assert_eq!(
        answer["data"]["appendEvent"]["duplicate"], false,
        "{answer}"
    );
    let input = with(entry(), "streamName", longest);
    let answer = ask(&server.url, APPEND_ENTRY, json!({ "input": input })).await;
    assert_eq!(
        answer["data"]["appendToStream"]["duplicate"], false,
        "{answer}"
    );
}

#[tokio::test]
async fn a_filter_with_nul_is_answered_on_both_databases() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let server = TestServer::on(std::sync::Arc::new(Database::make(engine)), |_| {}).await;
        let query = "query($filter: EventFilter) { events(filter: $filter) { nodes { id } } }";
        for text in ["\0", "a\0b"] {
            let variables = json!({ "filter": { "correlationId": text } });
            is_refused(&server, query, variables, Some("filter.correlationId")).await;
        }
        goes_on(&server.url).await;
    }
}

#[tokio::test]
async fn a_required_variable_that_is_left_out_is_refused() {
    let server = TestServer::start().await;
    for variables in [
        json!({}),
        json!({ "input": null }),
        json!({ "Input": event() }),
    ] {
        is_refused(&server, APPEND, variables, None).await;
    }
    let query = "query($name: String!) { stream(name: $name) { name } }";
    is_refused(&server, query, json!({}), None).await;
    is_refused(&server, query, json!({ "name": null }), None).await;
    // Where nothing may be null, a variable that may be has to have a value.
    let query = "query($name: String) { stream(name: $name) { name } }";
    is_refused(&server, query, json!({ "name": null }), None).await;
    is_refused(&server, query, json!({}), None).await;
    goes_on(&server.url).await;
}

#[tokio::test]
async fn an_operation_that_is_not_there_is_refused() {
    let server = TestServer::start().await;
    let two = format!(
        "{} query B {{ server {{ version }} }}",
        APPEND.replace("mutation(", "mutation A(")
    );
    let variables = json!({ "input": event() });
    for (query, name) in [
        (two.as_str(), json!(null)),
        (&two, json!("C")),
        (&two, json!("a")),
        (&two, json!(7)),
        ("{ server { version } }", json!("A")),
        ("fragment A on Query { server { version } }", json!("A")),
    ] {
        let body = json!({ "query": query, "operationName": name, "variables": variables });
        body_is_refused(&server, body.to_string(), None).await;
    }
    let body = json!({ "query": two, "operationName": "B", "variables": variables });
    let (_, answer) = post(&server.url, body.to_string()).await;
    assert!(answer["data"]["server"]["version"].is_string(), "{answer}");
    goes_on(&server.url).await;
}

#[tokio::test]
async fn bad_input_over_a_websocket_ends_its_operation_only() {
    let server = TestServer::start().await;
    let mut socket = Socket::connect(&server.ws_url, None).await;
    for (query, variables) in [
        ("{", json!({})),
        ("{ nothing }", json!({})),
        ("subscription { nothing }", json!({})),
        (
            "subscription { streamEntries(streamName: \"\") { position } }",
            json!({}),
        ),
        (
            "subscription { streamEntries(streamName: \"a\", after: -1) { position } }",
            json!({}),
        ),
        (
            "subscription { events(after: \"x\") { cursor } }",
            json!({}),
        ),
        (
            "subscription { events(filter: { eventTypes: [\"\"] }) { cursor } }",
            json!({}),
        ),
        (
            "subscription($after: String!) { events(after: $after) { cursor } }",
            json!({}),
        ),
    ] {
        socket.start("1", query, variables).await;
        let (id, step) = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        assert_eq!(id, "1");
        let Step::Errors(errors) = step else {
            panic!("{query} was to be refused: {step:?}");
        };
        assert_eq!(
            errors[0]["extensions"]["code"], "BAD_USER_INPUT",
            "{query}: {errors}"
        );
    }
    socket.start("2", APPEND, json!({ "input": event() })).await;
    let (_, step) = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    let Step::Next(payload) = step else {
        panic!("an append was to be answered: {step:?}");
    };
    assert_eq!(payload["data"]["appendEvent"]["event"]["version"], 1);
}
