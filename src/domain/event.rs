//! Events: before they are appended, and after. Floor 0.

use super::{
    AggregateId, AggregateType, EventId, EventType, ExpectedVersion, Json, Partition, Position,
    Timestamp, Version,
};

/// An event that somebody wants to append.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its id.
    pub id: EventId,
    /// Whether the client chose the id, so that it may stand for an event already.
    pub id_is_given: bool,
    /// The aggregate that it happened to.
    pub aggregate_id: AggregateId,
    /// What that aggregate is.
    pub aggregate_type: AggregateType,
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Json,
    /// Facts about the event itself.
    pub metadata: Json,
    /// The version that the aggregate must have.
    pub expected_version: ExpectedVersion,
}

impl NewEvent {
    /// How much memory and database it takes, in bytes, roughly: what queues are bounded by.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + self.metadata.as_str().len() + 200
    }
}

/// A fact that happened to one aggregate; it never changes.
#[derive(Clone, Debug)]
pub struct Event {
    /// The partition of its aggregate.
    pub partition: Partition,
    /// Its place in the partition's log.
    pub position: Position,
    /// Its id.
    pub id: EventId,
    /// The aggregate that it happened to.
    pub aggregate_id: AggregateId,
    /// What that aggregate is.
    pub aggregate_type: AggregateType,
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Json,
    /// Facts about the event itself.
    pub metadata: Json,
    /// Its place in its aggregate.
    pub version: Version,
    /// When it was appended.
    pub created_at: Timestamp,
}

impl Event {
    /// How much memory it takes, in bytes, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + self.metadata.as_str().len() + 300
    }
}
