//! Why a command came to nothing. Floor 4.

use crate::{
    appender::AppendError,
    domain::{AggregateType, CommandId, CommandType, SchemaViolation, append::Refusal},
    store::StoreError,
};

/// Why a command was not stored, or not processed. A rejection by the domain is none of this: it is an outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// No decider takes commands of this type.
    #[error("there is no command {name}")]
    UnknownType {
        /// The type.
        name: CommandType,
        /// The types that there are, sorted.
        known: Vec<CommandType>,
    },
    /// The data does not meet the schema.
    #[error("the data is not what {name} takes")]
    WrongData {
        /// The type of the command.
        name: CommandType,
        /// What is wrong with it.
        violations: Vec<SchemaViolation>,
    },
    /// It is not to be processed yet, and was to be executed at once.
    #[error("the command is not to be processed yet")]
    NotBeforeAhead,
    /// The id stands for another command already.
    #[error("the id {id} stands for something else already")]
    IdReused {
        /// The id.
        id: CommandId,
    },
    /// The aggregate is of another type than the command's.
    #[error("the aggregate is a {actual}, not a {expected}")]
    TypeMismatch {
        /// The type that the command is for.
        expected: AggregateType,
        /// The type that the aggregate has.
        actual: AggregateType,
    },
    /// There is no command of this id.
    #[error("there is no command {id}")]
    NotThere {
        /// The id.
        id: CommandId,
    },
    /// The domain is at fault: a decider that panics, or a state that cannot be folded. Nothing was stored.
    #[error("the command cannot be decided: {reason}")]
    Faulted {
        /// How.
        reason: String,
    },
    /// The append failed.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::Append(AppendError::while_reading(error))
    }
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TypeMismatch {
                expected, actual, ..
            } => Self::TypeMismatch { expected, actual },
            other => Self::Append(AppendError::Refused(other)),
        }
    }
}
