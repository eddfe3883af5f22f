//! An event as a CloudEvents document, and the trace that it belongs to. Floor 4.

use serde_json::{Map, Value};

use crate::domain::{DatabaseId, Event, TraceParent, trace::TRACEPARENT};

/// Texts of an event's metadata that go along, each under its name in CloudEvents, where names have small letters only.
const METADATA: [(&str, &str); 5] = [
    ("commandId", "commandid"),
    ("correlationId", "correlationid"),
    ("causationId", "causationid"),
    (TRACEPARENT, "traceparent"),
    ("tracestate", "tracestate"),
];

/// Writes an event as a document of structured JSON.
///
/// Source: CloudEvents 1.0.2, "JSON event format"; the extension "Distributed tracing".
pub(super) fn document(event: &Event, database: DatabaseId) -> String {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    set("specversion", "1.0".into());
    set("id", event.id.to_string().into());
    set("source", format!("urn:uuid:{database}").into());
    set("type", event.event_type.as_str().into());
    set("subject", event.aggregate_id.to_string().into());
    set("time", event.created_at.to_string().into());
    set("datacontenttype", "application/json".into());
    set("aggregatetype", event.aggregate_type.as_str().into());
    set("aggregateversion", event.version.0.into());
    let metadata = event.metadata.to_value().unwrap_or_default();
    for (key, name) in METADATA {
        let is_right = |text: &&str| {
            !text.is_empty() && (key != TRACEPARENT || TraceParent::parse(text).is_some())
        };
        if let Some(text) = metadata.get(key).and_then(Value::as_str).filter(is_right) {
            set(name, text.into());
        }
    }
    let mut text = Value::Object(fields).to_string();
    // The data is JSON text already, and goes in as it is.
    text.pop();
    text.push_str(",\"data\":");
    text.push_str(event.data.as_str());
    text.push('}');
    text
}

/// The trace that an event belongs to, if its metadata tells one.
pub(super) fn traceparent(event: &Event) -> Option<String> {
    if !event.metadata.as_str().contains(TRACEPARENT) {
        return None;
    }
    let metadata = event.metadata.to_value().ok()?;
    let text = metadata.get(TRACEPARENT)?.as_str()?;
    TraceParent::parse(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        AggregateId, AggregateType, EventId, EventType, Json, Partition, Position, Timestamp,
        Version,
    };

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn event(metadata: &Value) -> Event {
        Event {
            partition: Partition(0),
            position: Position(7),
            id: EventId(Uuid::from_u128(1)),
            aggregate_id: AggregateId(Uuid::from_u128(2)),
            aggregate_type: AggregateType::stored("user"),
            event_type: EventType::stored("user_created"),
            data: Json::stored("{\"name\": \"Ada \\\"A\\\"\"}".to_owned()),
            metadata: Json::stored(metadata.to_string()),
            version: Version(3),
            created_at: Timestamp::from_micros(1),
        }
    }

    #[test]
    fn an_event_is_a_document_with_all_that_is_asked_for() {
        let metadata =
            json!({ "correlationId": "c-1", "traceparent": TRACE, "other": 1, "causationId": 7 });
        let text = document(&event(&metadata), DatabaseId(Uuid::from_u128(9)));
        let document: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            document,
            json!({
                "specversion": "1.0",
                "id": "00000000-0000-0000-0000-000000000001",
                "source": "urn:uuid:00000000-0000-0000-0000-000000000009",
                "type": "user_created",
                "subject": "00000000-0000-0000-0000-000000000002",
                "time": "1970-01-01T00:00:00.000001Z",
                "datacontenttype": "application/json",
                "aggregatetype": "user",
                "aggregateversion": 3,
                "correlationid": "c-1",
                "traceparent": TRACE,
                "data": { "name": "Ada \"A\"" },
            })
        );
    }

    #[test]
    fn only_a_valid_trace_goes_into_a_header() {
        assert_eq!(
            traceparent(&event(&json!({ "traceparent": TRACE }))).as_deref(),
            Some(TRACE)
        );
        for wrong in [
            json!({}),
            json!({ "traceparent": 7 }),
            json!({ "traceparent": format!("{TRACE}\r\nx: y") }),
            json!({ "traceparent": TRACE.to_uppercase() }),
            json!({ "traceparent": TRACE.replace("00-0af", "ff-0af") }),
            json!({ "traceparent": "00-00000000000000000000000000000000-b7ad6b7169203331-01" }),
        ] {
            assert_eq!(traceparent(&event(&wrong)), None, "{wrong}");
        }
    }
}
