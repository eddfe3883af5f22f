//! Data that cannot be stored, or is too large, gets a clear error; what can be stored is read as it was meant.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    APPEND, PATIENCE, ask,
    bad_input::{APPEND_ALL, APPEND_ENTRY, body_is_refused, entry, is_refused},
    bad_user_input, event, goes_on, stored, with,
};
use crate::support::{
    client::{Socket, Step},
    in_process::{Database, Engine, TestServer},
};

/// JSON texts that no database stores, or that no reader could be given.
fn unstorable() -> Vec<String> {
    let levels = |open: &str, close: &str| format!("{}1{}", open.repeat(65), close.repeat(65));
    vec![
        r#""\u0000""#.to_owned(),
        r#""in the middle \u0000 of a text""#.to_owned(),
        r#"["a",{"b":"\u0000"}]"#.to_owned(),
        r#"{"\u0000":1}"#.to_owned(),
        r#"{"a":{"key \u0000":1}}"#.to_owned(),
        r#""\ud800""#.to_owned(),
        r#"["\udc00 first"]"#.to_owned(),
        r#"{"\ud83d":1}"#.to_owned(),
        r#""\ud83d\u0041""#.to_owned(),
        "1e131071".to_owned(),
        "[-1e131071]".to_owned(),
        "1e309".to_owned(),
        format!("1{}", "0".repeat(400)),
        levels("[", "]"),
        levels(r#"{"a":"#, "}"),
        levels(r#"[{"a":"#, "}]"),
    ]
}

async fn data_that_cannot_be_stored_is_refused(engine: Engine) {
    let database = std::sync::Arc::new(Database::make(engine));
    let server = TestServer::on(database, |_| {}).await;
    for data in unstorable() {
        let send = async |query: &str, input: Value| {
            let body = json!({ "query": query, "variables": { "input": input } }).to_string();
            body_is_refused(&server, body.replace("\"DATA\"", &data), None).await;
        };
        send(APPEND, with(event(), "data", json!("DATA"))).await;
        send(
            APPEND,
            with(event(), "metadata", json!({ "correlationId": "DATA" })),
        )
        .await;
        let events = json!([event(), with(event(), "data", json!("DATA")), event()]);
        send(APPEND_ALL, json!({ "events": events })).await;
        send(APPEND_ENTRY, with(entry(), "data", json!("DATA"))).await;
    }
    goes_on(&server.url).await;
}

#[tokio::test]
async fn data_that_cannot_be_stored_is_refused_on_sqlite() {
    data_that_cannot_be_stored_is_refused(Engine::Sqlite).await;
}

#[tokio::test]
async fn data_that_cannot_be_stored_is_refused_on_postgres() {
    data_that_cannot_be_stored_is_refused(Engine::Postgres).await;
}

#[tokio::test]
async fn data_that_cannot_be_stored_is_refused_as_a_literal_too() {
    let server = TestServer::start().await;
    let id = Uuid::new_v4();
    for data in unstorable() {
        // Names of fields have no quotes in a document.
        let literal = data.replace(r#"{"a":"#, "{a:").replace(r#"{"b":"#, "{b:");
        if literal.contains("{\"") {
            continue;
        }
        let query = format!(
            r#"mutation {{ appendEvent(input: {{ aggregateId: "{id}", aggregateType: "user", type: "x", data: {literal} }}) {{ duplicate }} }}"#
        );
        is_refused(&server, &query, json!({}), None).await;
    }
    goes_on(&server.url).await;
}

#[tokio::test]
async fn literals_are_read_as_variables_are() {
    let server = TestServer::start().await;
    let levels = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    let levels_of_objects = format!("{}1{}", "{a:".repeat(64), "}".repeat(64));
    for (literal, expected) in [
        (
            "{a: [1, -2.5e3, true, null, \"x\"], b_1: {c: {}}}",
            json!({ "a": [1, -2500.0, true, null, "x"], "b_1": { "c": {} } }),
        ),
        (
            r#""\u00e4 \" \\ \/ \b \f \n \r \t 😀""#,
            json!("ä \" \\ / \u{8} \u{c} \n \r \t 😀"),
        ),
        (
            "\"\"\"\n    a\n      \"b\"\n    \"\"\"",
            json!("a\n  \"b\""),
        ),
        ("9007199254740993", json!(9_007_199_254_740_993_i64)),
        (&levels, serde_json::from_str(&levels).unwrap()),
        (
            &levels_of_objects,
            serde_json::from_str(&levels_of_objects.replace("{a:", "{\"a\":")).unwrap(),
        ),
    ] {
        let id = Uuid::new_v4();
        let query = format!(
            r#"mutation {{ appendEvent(input: {{ aggregateId: "{id}", aggregateType: "user", type: "x", data: {literal} }}) {{ event {{ data }} }} }}"#
        );
        let answer = ask(&server.url, &query, json!({})).await;
        assert_eq!(
            answer["data"]["appendEvent"]["event"]["data"], expected,
            "{literal}: {answer}"
        );
    }
}

#[tokio::test]
async fn the_message_says_what_is_wrong_with_data() {
    let server = TestServer::start().await;
    for (data, says) in [
        (format!("{}{}", "[".repeat(65), "]".repeat(65)), "64"),
        (r#""\u0000""#.to_owned(), "U+0000"),
    ] {
        let input = with(event(), "data", json!("DATA"));
        let body = json!({ "query": APPEND, "variables": { "input": input } }).to_string();
        let error =
            body_is_refused(&server, body.replace("\"DATA\"", &data), Some("input.data")).await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn data_above_the_size_limit_is_refused() {
    let server = TestServer::start().await;
    let of_size = |bytes: usize| json!("x".repeat(bytes - 2));
    let limit = 1 << 20;
    let input = with(event(), "data", of_size(limit + 1));
    is_refused(
        &server,
        APPEND,
        json!({ "input": input }),
        Some("input.data"),
    )
    .await;
    let metadata = json!({ "x": "x".repeat(limit) });
    let input = with(event(), "metadata", metadata);
    is_refused(
        &server,
        APPEND,
        json!({ "input": input }),
        Some("input.metadata"),
    )
    .await;
    let events = json!([event(), with(event(), "data", of_size(limit + 1))]);
    let variables = json!({ "input": { "events": events } });
    is_refused(&server, APPEND_ALL, variables, Some("input.events[1].data")).await;
    let input = with(entry(), "data", of_size(limit + 1));
    is_refused(
        &server,
        APPEND_ENTRY,
        json!({ "input": input }),
        Some("input.data"),
    )
    .await;

    let input = with(event(), "data", of_size(limit));
    let answer = ask(&server.url, APPEND, json!({ "input": input })).await;
    let data = answer["data"]["appendEvent"]["event"]["data"].as_str();
    assert_eq!(data.map(str::len), Some(limit - 2));
}

#[tokio::test]
async fn a_request_above_the_size_limit_is_refused() {
    let server = TestServer::start().await;
    let input = with(event(), "data", json!("x".repeat(16 << 20)));
    let body = json!({ "query": APPEND, "variables": { "input": input } }).to_string();
    let before = stored(&server.url).await;
    let request = reqwest::Client::new()
        .post(format!("{}/graphql", server.url))
        .header("content-type", "application/json")
        .body(body.clone());
    let response = tokio::time::timeout(PATIENCE, request.send())
        .await
        .unwrap();
    // The server need not read on, so that the client may see its connection end before the answer.
    if let Ok(response) = response {
        assert_eq!(response.status(), 413);
        let answer: Value = response.json().await.unwrap();
        bad_user_input(&answer);
    }

    let mut socket = Socket::connect(&server.ws_url, None).await;
    socket.start("1", APPEND, json!({ "input": input })).await;
    let (_, step) = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(
        matches!(
            step,
            Step::Closed {
                code: 1009 | 1006,
                ..
            }
        ),
        "{step:?}"
    );
    assert_eq!(stored(&server.url).await, before);
    goes_on(&server.url).await;
}
