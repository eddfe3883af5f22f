//! Read models: what is stored of one, and which of them somebody wants. Floor 0.

use super::{
    AggregateId, AggregateType, Json, Partition, Position, Timestamp, Version, contains::contains,
};

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
    /// The state; `null` in a tombstone.
    pub data: Json,
    /// The version of the last event in it; 0 where even the first could not be folded.
    pub version: Version,
    /// Who writes it.
    pub source: ReadModelSource,
    /// Why an event could not be folded into it.
    pub fault: Option<String>,
    /// Since when it is a tombstone: its aggregate was deleted.
    pub deleted_at: Option<Timestamp>,
    /// Its place in the partition's log of changes: that of its newest change.
    pub change_position: Position,
    /// When its aggregate came to be: the time of the event. One from outside: when it was written first.
    pub created_at: Timestamp,
    /// The time of the last event in it. One from outside: when it was written last.
    pub updated_at: Timestamp,
}

impl ReadModel {
    /// Whether clients see it: a tombstone is kept only so that nothing older comes back.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.deleted_at.is_none()
    }

    /// Whether the projector leaves it alone until it is rebuilt.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        self.source == ReadModelSource::External || self.fault.is_some()
    }

    /// How much memory it takes, in bytes, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.data.as_str().len() + self.fault.as_ref().map_or(0, String::len) + 300
    }
}

/// A read model passes where it meets every part that is given; within the list any one type is enough.
#[derive(Clone, Debug, Default)]
pub struct ReadModelFilter {
    /// Those of this aggregate.
    pub aggregate_id: Option<AggregateId>,
    /// Those of aggregates of these types.
    pub aggregate_types: Option<Vec<AggregateType>>,
    /// Those whose data contains this.
    pub contains: Option<Json>,
}

impl ReadModelFilter {
    /// Whether the read model is one of those that are asked about, whatever its data.
    #[must_use]
    pub fn names(&self, model: &ReadModel) -> bool {
        self.aggregate_id.is_none_or(|id| id == model.aggregate_id)
            && self
                .aggregate_types
                .as_ref()
                .is_none_or(|types| types.contains(&model.aggregate_type))
    }

    /// Whether its data passes.
    #[must_use]
    pub fn matches_data(&self, model: &ReadModel) -> bool {
        let Some(contained) = &self.contains else {
            return true;
        };
        match (model.data.to_value(), contained.to_value()) {
            (Ok(data), Ok(contained)) => contains(&data, &contained),
            _ => false,
        }
    }
}

/// By what a list of read models is ordered. Those of the same instant are in the order of their aggregates' ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadModelTime {
    /// [`ReadModel::created_at`].
    Created,
    /// [`ReadModel::updated_at`].
    Updated,
}

impl ReadModelTime {
    /// The time of a read model.
    #[must_use]
    pub fn of(self, model: &ReadModel) -> Timestamp {
        match self {
            Self::Created => model.created_at,
            Self::Updated => model.updated_at,
        }
    }
}

/// A read model as a client writes it.
#[derive(Clone, Debug)]
pub struct ExternalModel {
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// What that aggregate is.
    pub aggregate_type: AggregateType,
    /// The state.
    pub data: Json,
    /// The version of the last event in it.
    pub version: Version,
}

/// What became of a write from outside.
#[derive(Clone, Debug)]
pub enum ExternalOutcome {
    /// It is stored, as this.
    Written(ReadModel),
    /// There is a newer one, or one from outside of the same version; this is it.
    Unchanged(ReadModel),
    /// The aggregate has not come to this version yet.
    VersionAhead {
        /// The version that it has.
        actual: Version,
    },
    /// The aggregate is of another type.
    TypeMismatch {
        /// The type that it has.
        actual: AggregateType,
    },
}
