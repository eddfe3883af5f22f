//! Commands: before they are stored, and after. Floor 0.

use std::sync::Arc;

use super::{
    AggregateId, AggregateType, CommandId, CommandType, ExpectedVersion, Json, Partition,
    Timestamp, Version,
};

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandStatus {
    /// It is not decided yet.
    Pending,
    /// It was decided, and its events are appended.
    Processed,
    /// A rule of the domain rejected it.
    Rejected,
    /// Its last try failed.
    Failed,
}

impl CommandStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Processed, Self::Rejected, Self::Failed];

    /// The status as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Processed => "PROCESSED",
            Self::Rejected => "REJECTED",
            Self::Failed => "FAILED",
        }
    }

    /// Reads a stored status.
    #[must_use]
    pub fn stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// A command that somebody hands in.
#[derive(Clone, Debug)]
pub struct NewCommand {
    /// Its id.
    pub id: CommandId,
    /// Whether the client chose the id, so that it may stand for a command already.
    pub id_is_given: bool,
    /// The aggregate that is to change.
    pub aggregate_id: AggregateId,
    /// What is asked for.
    pub command_type: CommandType,
    /// What is to be known about it.
    pub data: Json,
    /// Facts about the command itself.
    pub metadata: Json,
    /// It is not processed before this instant.
    pub not_before: Option<Timestamp>,
}

/// What an append does to a command, in the transaction of its events.
#[derive(Clone, Debug)]
pub struct CommandStep {
    /// The command.
    pub id: CommandId,
    /// Its aggregate.
    pub aggregate_id: AggregateId,
    /// What the aggregate must be, if it is there; `None`: whatever it is.
    pub aggregate_type: Option<AggregateType>,
    /// The version that the aggregate must have, also where the command has no events: what was decided, a rejection too,
    /// was decided on that version.
    pub expected_version: ExpectedVersion,
    /// The command, where its row is to be made; it must not be there. Without it the row must be there and be PENDING.
    pub record: Option<Arc<NewCommand>>,
    /// What it becomes.
    pub status: CommandStatus,
    /// Why it was rejected or failed.
    pub reason: Option<String>,
}

impl CommandStep {
    /// How much memory and database it takes, in bytes, roughly.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let record = self.record.as_ref().map_or(0, |command| {
            command.data.as_str().len() + command.metadata.as_str().len()
        });
        record + self.reason.as_ref().map_or(0, String::len) + 200
    }
}

/// A command that is stored.
#[derive(Clone, Debug)]
pub struct Command {
    /// The partition of its aggregate.
    pub partition: Partition,
    /// Its id.
    pub id: CommandId,
    /// The aggregate that is to change.
    pub aggregate_id: AggregateId,
    /// What is asked for.
    pub command_type: CommandType,
    /// What is to be known about it.
    pub data: Json,
    /// Facts about the command itself.
    pub metadata: Json,
    /// How far it is.
    pub status: CommandStatus,
    /// Why it was rejected or failed, or why its last try did.
    pub reason: Option<String>,
    /// How often it was tried.
    pub attempts: i32,
    /// It is not processed before this instant.
    pub not_before: Option<Timestamp>,
    /// The versions of its first and last event.
    pub versions: Option<(Version, Version)>,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was processed, rejected or failed.
    pub processed_at: Option<Timestamp>,
}
