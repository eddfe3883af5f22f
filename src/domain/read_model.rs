//! Read models. Floor 0.

use super::{AggregateId, AggregateType, Json, Partition, Position, Timestamp, Version};

/// Who writes a read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadModelSource {
    /// The projector, from events.
    Projected,
    /// A client.
    External,
}

impl ReadModelSource {
    /// The source as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Projected => "PROJECTED",
            Self::External => "EXTERNAL",
        }
    }

    /// Reads a stored source.
    #[must_use]
    pub fn stored(text: &str) -> Option<Self> {
        [Self::Projected, Self::External]
            .into_iter()
            .find(|source| source.as_str() == text)
    }
}

/// The queryable state of one aggregate.
#[derive(Clone, Debug)]
pub struct ReadModel {
    /// The partition of its aggregate.
    pub partition: Partition,
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// What that aggregate is.
    pub aggregate_type: AggregateType,
    /// The state; `null` in a tombstone, and where the first event could not be folded.
    pub data: Json,
    /// The version of the last event in it.
    pub version: Version,
    /// Who writes it.
    pub source: ReadModelSource,
    /// Why an event could not be folded into it.
    pub fault: Option<String>,
    /// Since when it is a tombstone.
    pub deleted_at: Option<Timestamp>,
    /// Its place in the partition's log of changes: that of its newest change.
    pub change_position: Position,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

impl ReadModel {
    /// How much memory it takes, in bytes, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + self.fault.as_ref().map_or(0, String::len) + 300
    }
}
