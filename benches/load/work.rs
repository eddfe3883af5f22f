//! The operations that the clients send.

use serde_json::{Value, json};

/// Replaced by a fresh id in each request (the same one in all its places).
pub const FRESH_ID: &str = "aaaaaaaa-0000-4000-8000-aaaaaaaaaaaa";
/// Replaced by the id of one of the known aggregates.
pub const KNOWN_ID: &str = "bbbbbbbb-0000-4000-8000-bbbbbbbbbbbb";
pub const ID_BYTES: usize = 36;

/// The aggregates that are read, and the events that each has.
pub const KNOWN_AGGREGATES: u32 = 1000;
pub const KNOWN_EVENTS: u32 = 50;

const DATA_BYTES: usize = 200;

/// A JSON object of 200 bytes.
pub fn event_data() -> String {
    let with_note = |note: &str| {
        json!({ "email": "reader@example.org", "note": note, "username": "reader" }).to_string()
    };
    with_note(&"x".repeat(DATA_BYTES - with_note("").len()))
}

pub fn known_id(number: u32) -> String {
    format!("cccccccc-0000-4000-8000-{number:012}")
}

/// The same in SQL, of a number that is an expression there.
pub fn known_id_sql(number: &str) -> String {
    format!("('cccccccc-0000-4000-8000-' || lpad({number}::text, 12, '0'))::uuid")
}

/// An operation, and how its answer is known to be right.
pub struct Work {
    pub query: &'static str,
    pub variables: Value,
    /// Whether the `data` of an answer is what was asked for; checked of the first answer on each connection.
    pub is_right: fn(&Value) -> bool,
}

fn event(aggregate_type: &str, aggregate_id: &str) -> Value {
    let data: Value = serde_json::from_str(&event_data()).expect("it is JSON");
    json!({ "aggregateId": aggregate_id, "aggregateType": aggregate_type, "type": "user_updated", "data": data })
}

/// `appendEvent` to this aggregate, or to a fresh one each time.
pub fn append_event(aggregate_id: &str) -> Work {
    append_event_of("user", aggregate_id)
}

/// The same to an aggregate of another type.
pub fn append_event_of(aggregate_type: &str, aggregate_id: &str) -> Work {
    Work {
        query: "mutation Append($input: AppendEventInput!) { appendEvent(input: $input) { event { id version aggregateId } } }",
        variables: json!({ "input": event(aggregate_type, aggregate_id) }),
        is_right: |data| {
            data["appendEvent"]["event"]["version"]
                .as_u64()
                .is_some_and(|version| version > 0)
        },
    }
}

/// `executeCommand` on this aggregate, or on a fresh one each time, with the data that [`append_event`] appends.
pub fn execute_command(aggregate_id: &str) -> Work {
    let data: Value = serde_json::from_str(&event_data()).expect("it is JSON");
    Work {
        query: "mutation Execute($input: CreateCommandInput!) \
                { executeCommand(input: $input) { command { id status } events { id version } } }",
        variables: json!({ "input": { "aggregateId": aggregate_id, "type": "create_user", "data": data } }),
        is_right: |data| {
            let executed = &data["executeCommand"];
            executed["command"]["status"] == "PROCESSED" && executed["events"][0]["version"] == 1
        },
    }
}

/// `appendEvents` with so many events for one aggregate.
pub fn append_events(aggregate_id: &str, count: usize) -> Work {
    append_events_of("user", aggregate_id, count)
}

/// The same for an aggregate of another type.
pub fn append_events_of(aggregate_type: &str, aggregate_id: &str, count: usize) -> Work {
    let event = event(aggregate_type, aggregate_id);
    let events: Vec<Value> = (0..count).map(|_| event.clone()).collect();
    Work {
        query: "mutation Append($input: AppendEventsInput!) { appendEvents(input: $input) { events { id version } } }",
        variables: json!({ "input": { "events": events } }),
        is_right: |data| {
            data["appendEvents"]["events"]
                .as_array()
                .is_some_and(|events| !events.is_empty())
        },
    }
}

/// `appendToStream` to this stream, with a fresh event id each time.
pub fn append_to_stream(stream: &str) -> Work {
    let data: Value = serde_json::from_str(&event_data()).expect("it is JSON");
    Work {
        query: "mutation Append($input: AppendToStreamInput!) \
                { appendToStream(input: $input) { entry { position createdAt } } }",
        variables: json!({
            "input": { "streamName": stream, "eventId": FRESH_ID, "type": "user_updated", "data": data }
        }),
        is_right: |data| {
            data["appendToStream"]["entry"]["position"]
                .as_u64()
                .is_some_and(|position| position > 0)
        },
    }
}

/// All fields of the events of a known aggregate, by the root field `events`.
pub fn read_events() -> Work {
    Work {
        query: "query Read($id: UUID!) { events(filter: { aggregateId: $id }, first: 50) { nodes \
                { id type data metadata aggregateId aggregateType version createdAt } } }",
        variables: json!({ "id": KNOWN_ID }),
        is_right: |data| {
            data["events"]["nodes"]
                .as_array()
                .is_some_and(|nodes| is_all_of_them(nodes))
        },
    }
}

/// The same by way of the aggregate.
pub fn read_aggregate() -> Work {
    Work {
        query: "query Read($id: UUID!) { aggregate(id: $id) { events(first: 50) \
                { id type data metadata aggregateId aggregateType version createdAt } } }",
        variables: json!({ "id": KNOWN_ID }),
        is_right: |data| {
            data["aggregate"]["events"]
                .as_array()
                .is_some_and(|nodes| is_all_of_them(nodes))
        },
    }
}

fn is_all_of_them(events: &[Value]) -> bool {
    events.len() == KNOWN_EVENTS as usize
        && events
            .iter()
            .all(|event| event["data"].is_object() && event["createdAt"].is_string())
}
