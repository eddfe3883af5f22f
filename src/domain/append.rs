//! What is appended together, and what it comes to: where it went, or why it was refused. Floor 0.

use std::{sync::Arc, time::Duration};

use super::{
    AggregateType, CommandId, CommandStatus, CommandStep, Entry, Event, EventId, NewEvent,
    Partition, Position, ReadModel, Timestamp, Version,
};

/// Events, and what their append does to a command: all of it is stored, or nothing.
#[derive(Clone, Debug, Default)]
pub struct AppendRequest {
    /// The events. Where there is a command, they are all of its aggregate.
    pub events: Vec<NewEvent>,
    /// The command that is recorded or settled with them.
    pub command: Option<CommandStep>,
}

impl AppendRequest {
    /// A request of events alone.
    #[must_use]
    pub fn of_events(events: Vec<NewEvent>) -> Self {
        Self {
            events,
            command: None,
        }
    }

    /// How much memory and database it takes, in bytes, roughly: what queues are bounded by.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let events: usize = self.events.iter().map(NewEvent::size_bytes).sum();
        events + self.command.as_ref().map_or(0, CommandStep::size_bytes)
    }
}

/// Where an event went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedEvent {
    /// Its place in the partition's log.
    pub position: Position,
    /// Its place in its aggregate.
    pub version: Version,
    /// When it was appended.
    pub created_at: Timestamp,
}

/// Where an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedEntry {
    /// Its place in the partition's log of entries.
    pub entry_position: Position,
    /// Its place in the stream.
    pub position: Position,
    /// When it was appended.
    pub created_at: Timestamp,
}

/// What became of one request to append; `T` says where one of its events or entries went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// All of it was appended.
    Appended {
        /// When.
        at: Timestamp,
        /// Where each of its events or entries went.
        places: Vec<T>,
    },
    /// All of its ids are there already and stand for the same: nothing was appended.
    Duplicate,
    /// It was refused; nothing was appended.
    Refused(Refusal),
}

/// What was committed to one log, in its order.
#[derive(Clone, Debug)]
pub enum Committed {
    /// Events of a partition.
    Events(Partition, Vec<Arc<Event>>),
    /// Stream entries of a partition.
    Entries(Partition, Vec<Arc<Entry>>),
    /// Commands of a partition that were recorded or settled.
    Commands(Partition, Vec<CommandChange>),
    /// Read models of a partition as they are now, each at the position of its change.
    Changes(Partition, Vec<Arc<ReadModel>>),
}

/// One of the logs that are appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogName {
    /// The log of events.
    Events,
    /// The log of stream entries.
    Entries,
}

impl LogName {
    /// The name as metrics have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Entries => "entries",
        }
    }
}

/// A batch that was committed, or was not, for those who measure: what no one else has to know.
#[derive(Clone, Copy, Debug)]
pub struct BatchReport<'a> {
    /// The log.
    pub log: LogName,
    /// How long the database took.
    pub took: Duration,
    /// Whether it was committed.
    pub is_committed: bool,
    /// How much was in it: events, entries and commands, also those that came to nothing.
    pub size: usize,
    /// The requests that were appended: how long it took from taking each to its commit, and how much it has in the log.
    pub requests: &'a [(Duration, usize)],
    /// The events of those requests, in their order; none for entries.
    pub events: &'a [Arc<Event>],
}

/// A command that has a new status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandChange {
    /// The command.
    pub id: CommandId,
    /// What it has become.
    pub status: CommandStatus,
}

/// Why an append was refused. `index` is the event in the request, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The aggregate has another version than the expected one.
    #[error("the aggregate is at version {actual}, not {expected}")]
    VersionConflict {
        /// The event in the request.
        index: usize,
        /// The version that the request expected.
        expected: Version,
        /// The version that the aggregate has.
        actual: Version,
    },
    /// The stream is at another position than the expected one.
    #[error("the stream is at position {actual}, not {expected}")]
    PositionConflict {
        /// The position that the request expected.
        expected: Position,
        /// The position that the stream is at.
        actual: Position,
    },
    /// The aggregate is of another type.
    #[error("the aggregate is a {actual}, not a {expected}")]
    TypeMismatch {
        /// The event in the request.
        index: usize,
        /// The type in the request.
        expected: AggregateType,
        /// The type that the aggregate has.
        actual: AggregateType,
    },
    /// The id stands for something else already.
    #[error("the id {id} stands for something else already")]
    IdReused {
        /// The event in the request.
        index: usize,
        /// The id.
        id: EventId,
    },
    /// The command was to be recorded, and its id is known already.
    #[error("the command {id} is there already")]
    CommandKnown {
        /// The command.
        id: CommandId,
    },
    /// The command was to be settled, and is not pending any more.
    #[error("the command {id} is not pending any more")]
    CommandSettled {
        /// The command.
        id: CommandId,
    },
    /// The database refuses a value of the request.
    #[error("the database refuses a value of this request")]
    ValueRefused,
}

impl Refusal {
    /// The event in the request that it is about, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Self::VersionConflict { index, .. }
            | Self::TypeMismatch { index, .. }
            | Self::IdReused { index, .. } => *index,
            Self::PositionConflict { .. }
            | Self::CommandKnown { .. }
            | Self::CommandSettled { .. }
            | Self::ValueRefused => 0,
        }
    }

    /// The same refusal with the event's place in another list.
    #[must_use]
    pub fn at(mut self, place: impl Fn(usize) -> usize) -> Self {
        match &mut self {
            Self::VersionConflict { index, .. }
            | Self::TypeMismatch { index, .. }
            | Self::IdReused { index, .. } => {
                *index = place(*index);
            }
            Self::PositionConflict { .. }
            | Self::CommandKnown { .. }
            | Self::CommandSettled { .. }
            | Self::ValueRefused => {}
        }
        self
    }
}
