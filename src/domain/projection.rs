//! What a projection writes: read models as they were folded, and the place up to which the log was. Floor 0.

use super::{AggregateId, AggregateType, Json, Position, Timestamp, Version};

/// What makes a runner's writes void once another one has taken its place. Each taking of a lease gives a greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub i64);

/// Who keeps a checkpoint in each partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checkpoint {
    /// The projector.
    ReadModels,
    /// The publisher.
    Publish,
}

impl Checkpoint {
    /// The name as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadModels => "read_models",
            Self::Publish => "publish",
        }
    }
}

/// A checkpoint that moves on, in the transaction of what was read up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointStep {
    /// Where it must be.
    pub from: Position,
    /// Where it goes.
    pub to: Position,
    /// The token of the runner that moves it.
    pub token: FencingToken,
}

/// What a projection has come to for one aggregate.
#[derive(Clone, Debug)]
pub struct Projected {
    /// The aggregate.
    pub aggregate_id: AggregateId,
    /// The change that its read model had when the fold began, and must still have; none where there was no read model.
    pub based_on: Option<Position>,
    /// What it becomes; none where it is left as it is.
    pub folded: Option<Folded>,
}

/// A read model as it was folded from events.
#[derive(Clone, Debug)]
pub struct Folded {
    /// What the aggregate is.
    pub aggregate_type: AggregateType,
    /// The state; none after a deletion.
    pub data: Option<Json>,
    /// The version of the last event in it.
    pub version: Version,
    /// Why the next event could not be folded.
    pub fault: Option<String>,
    /// The time of the event that it began with.
    pub created_at: Timestamp,
    /// The time of the last event in it.
    pub updated_at: Timestamp,
}

/// What became of a batch that moves a checkpoint: all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveOutcome {
    /// It is stored: for each, in its order, the position of its change; none for what was left as it is.
    Saved(Vec<Option<Position>>),
    /// Some read models have changed meanwhile.
    Changed,
    /// The checkpoint is elsewhere, or belongs to another runner now.
    FencedOff,
}

/// What became of one read model that was folded anew from the first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuildOutcome {
    /// It is stored, as this change.
    Written(Position),
    /// It was like that already.
    Same,
    /// It has changed meanwhile: it has to be folded again.
    Changed,
}
