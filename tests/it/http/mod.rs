//! What a client sees of HTTP and websockets.

mod access;
mod spec;
mod websocket;
mod websocket_client;

use std::time::Duration;

use serde_json::{Value, json};

/// Everything that is waited for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// An operation that every server answers.
const QUERY: &str = "{ server { version } }";

/// The code of the first error.
fn code(body: &Value) -> &str {
    body["errors"][0]["extensions"]["code"]
        .as_str()
        .unwrap_or_else(|| panic!("no code in {body}"))
}

/// The request that appends an entry to a stream.
fn append(stream: &str) -> Value {
    json!({
        "query": "mutation($input: AppendToStreamInput!) { appendToStream(input: $input) { duplicate entry { position } } }",
        "variables": { "input": { "streamName": stream, "eventId": uuid::Uuid::new_v4(), "type": "thing_happened", "data": {} } },
    })
}

/// The request that follows a stream from its beginning.
fn follow(stream: &str) -> Value {
    json!({
        "query": "subscription($stream: String!) { streamEntries(streamName: $stream, after: 0) { position } }",
        "variables": { "stream": stream },
    })
}
