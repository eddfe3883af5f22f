//! Streams and their entries. Floor 0.

use super::{
    EventId, EventType, ExpectedPosition, Json, Partition, Position, StreamName, Timestamp,
    append::AppendedEntry,
};

/// A named log of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its name.
    pub name: StreamName,
    /// The position of its newest entry; 0 while it is empty.
    pub last_position: Position,
}

/// An entry that somebody wants to append to a stream.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// The stream.
    pub stream_name: StreamName,
    /// The id of the event; a stream has each id once.
    pub event_id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Json,
    /// The position that the stream must be at.
    pub expected_position: ExpectedPosition,
}

impl NewEntry {
    /// How much memory and database it takes, in bytes, roughly: what queues are bounded by.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + 200
    }

    /// The entry as it is stored in its stream's partition.
    #[must_use]
    pub fn stored(self, partition: Partition, place: AppendedEntry) -> Entry {
        Entry {
            partition,
            entry_position: place.entry_position,
            stream_name: self.stream_name,
            position: place.position,
            event_id: self.event_id,
            event_type: self.event_type,
            data: self.data,
            created_at: place.created_at,
        }
    }
}

/// One entry of a stream; it never changes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The partition of its stream.
    pub partition: Partition,
    /// Its place in the partition's log of entries.
    pub entry_position: Position,
    /// The stream.
    pub stream_name: StreamName,
    /// Its place in the stream.
    pub position: Position,
    /// The id of the event.
    pub event_id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Json,
    /// When it was appended.
    pub created_at: Timestamp,
}

impl Entry {
    /// How much memory it takes, in bytes, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + 250
    }
}
