//! Which events somebody wants to see. Floor 0.

use serde::Deserialize;

use super::{AggregateId, AggregateType, Event, EventType, Timestamp};

/// An event passes where it meets every part that is given; within a list any one value is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventFilter {
    /// Events of this aggregate.
    pub aggregate_id: Option<AggregateId>,
    /// Events of aggregates of these types.
    pub aggregate_types: Option<Vec<AggregateType>>,
    /// Events of these types.
    pub event_types: Option<Vec<EventType>>,
    /// Events with this `correlationId` in their metadata.
    pub correlation_id: Option<String>,
    /// Events appended at this instant or later.
    pub created_from: Option<Timestamp>,
    /// Events appended before this instant.
    pub created_before: Option<Timestamp>,
}

impl EventFilter {
    /// Whether every event passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the event passes.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        self.aggregate_id.is_none_or(|id| id == event.aggregate_id)
            && self
                .aggregate_types
                .as_ref()
                .is_none_or(|types| types.contains(&event.aggregate_type))
            && self
                .event_types
                .as_ref()
                .is_none_or(|types| types.contains(&event.event_type))
            && self
                .created_from
                .is_none_or(|from| event.created_at >= from)
            && self
                .created_before
                .is_none_or(|before| event.created_at < before)
            && self
                .correlation_id
                .as_ref()
                .is_none_or(|id| correlates(event, id))
    }
}

/// As `event_metadata ->> 'correlationId'` sees it.
fn correlates(event: &Event, id: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        correlation_id: Option<serde_json::Value>,
    }
    match serde_json::from_str::<Metadata>(event.metadata.as_str())
        .ok()
        .and_then(|metadata| metadata.correlation_id)
    {
        Some(serde_json::Value::String(text)) => text == id,
        Some(other) => serde_json::to_string(&other).is_ok_and(|text| text == id),
        None => false,
    }
}
