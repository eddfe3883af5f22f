//! What the API refuses, what it costs, and who may do what.

mod bad_data;
mod bad_input;
mod bombs;
mod roles;
mod shapes;
mod statements;

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

/// Everything that is waited for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

const APPEND: &str = "mutation($input: AppendEventInput!) { appendEvent(input: $input) { duplicate event { id version data } } }";

/// An event of a user to append.
fn event() -> Value {
    json!({ "aggregateId": Uuid::new_v4(), "aggregateType": "user", "type": "user_created", "data": {} })
}

/// The same with another field.
fn with(mut value: Value, field: &str, other: Value) -> Value {
    value[field] = other;
    value
}

/// Sends a body as it is: the status and the answer.
async fn post(url: &str, body: String) -> (u16, Value) {
    // The server may run in another process.
    crate::support::client::install_tls();
    let request = reqwest::Client::new()
        .post(format!("{url}/graphql"))
        .header("content-type", "application/json")
        .body(body);
    let response = tokio::time::timeout(PATIENCE, request.send())
        .await
        .expect("the server answers in time")
        .unwrap();
    let status = response.status().as_u16();
    let text = tokio::time::timeout(PATIENCE, response.text())
        .await
        .expect("the answer ends in time")
        .unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
    (status, body)
}

/// Sends an operation.
async fn ask(url: &str, query: &str, variables: Value) -> Value {
    let body = json!({ "query": query, "variables": variables });
    post(url, body.to_string()).await.1
}

/// How many events, aggregates and streams there are.
async fn stored(url: &str) -> [usize; 3] {
    let query = "{ events(first: 1000) { nodes { id } } aggregates(first: 1000) { nodes { id } } streams(first: 1000) { nodes { name } } }";
    let data = ask(url, query, json!({})).await["data"].take();
    ["events", "aggregates", "streams"].map(|list| {
        let nodes = data[list]["nodes"].as_array();
        nodes.unwrap_or_else(|| panic!("{data}")).len()
    })
}

/// The server goes on: an append works.
async fn goes_on(url: &str) {
    let answer = ask(url, APPEND, json!({ "input": event() })).await;
    assert_eq!(
        answer["data"]["appendEvent"]["event"]["version"], 1,
        "{answer}"
    );
}

/// The only error of an answer, which is the client's fault and stands alone.
fn bad_user_input(answer: &Value) -> &Value {
    let error = &answer["errors"][0];
    assert_eq!(
        error["extensions"]["code"],
        "BAD_USER_INPUT",
        "{}",
        brief(answer)
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.len() > 10),
        "it says what is wrong: {}",
        brief(answer)
    );
    error
}

/// The beginning of an answer, for a message.
fn brief(answer: &Value) -> String {
    answer.to_string().chars().take(500).collect()
}
