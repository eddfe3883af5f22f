//! Errors as clients see them: a message for people and a code for programs. Nothing of a driver's text. Floor 6.

use std::{error::Error as StdError, sync::Arc};

use async_graphql::{Error, ErrorExtensionValues, ErrorExtensions, ServerError, Value};

use super::scalars::what_would_be_right;
use crate::{
    appender::AppendError,
    commands::CommandError,
    domain::{Caller, Cursor, DatabaseId, PartitionCount, Place, Role, Version, append::Refusal},
    projections::WaitError,
    states::StateError,
    store::StoreError,
    tail::{FollowError, Head},
};

/// The most errors in one answer: a document can have as many mistakes as it has words.
pub(super) const MAX_ERRORS: usize = 50;
/// When to repeat what could not be read.
const RETRY_AFTER_MS: u64 = 500;

/// Why an operation failed.
#[derive(Clone, Debug)]
pub(super) enum ApiError {
    /// An argument is wrong: its path, and what would be right.
    BadUserInput { field: String, message: String },
    /// A cursor above the newest place.
    PlaceNotReached { head: String },
    /// A position above the newest one of the stream.
    PositionNotReached { head: i64 },
    /// A version above the newest one of the aggregate.
    VersionNotReached { head: i32 },
    /// A state that cannot be had: an event cannot be folded, or there are too many.
    State(StateError),
    /// The aggregate is of another type.
    TypeMismatch {
        field: String,
        expected: String,
        actual: String,
    },
    /// The caller's role does not allow it.
    Forbidden { needed: Role },
    /// The append failed; `input` is the path of the list or object that it came in.
    Append {
        error: AppendError,
        input: AppendInput,
    },
    /// The command came to nothing.
    Command(CommandError),
    /// What a mutation names is not there.
    NotFound { field: String, message: String },
    /// Somebody else does it already; nothing was done.
    Busy { message: String },
    /// A read model has not come to the version that was asked for.
    ReadModelBehind { version: Version, message: String },
    /// A read model will not come to the version that was asked for by itself.
    ReadModelFaulted { version: Version, message: String },
    /// The database failed while it was read.
    Store(Arc<StoreError>),
    /// The database failed while it was written to.
    Write(Arc<StoreError>),
    /// The server has failed.
    Failed(Arc<dyn StdError + Send + Sync>),
}

/// How the events of an append were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppendInput {
    /// One, as `input`.
    One,
    /// A list, as `input.events`.
    List,
}

/// A fault of the server: its cause goes to the log, where the error leaves the server.
#[derive(Debug)]
pub(super) struct Fault(pub Arc<dyn StdError + Send + Sync>);

impl ApiError {
    pub(super) fn bad_input(field: impl Into<String>, message: impl ToString) -> Self {
        Self::BadUserInput {
            field: field.into(),
            message: message.to_string(),
        }
    }

    pub(super) fn not_found(field: impl Into<String>, message: impl ToString) -> Self {
        Self::NotFound {
            field: field.into(),
            message: message.to_string(),
        }
    }

    /// A fault of the database in a write that may be repeated as it is.
    pub(super) fn of_write(error: StoreError) -> Self {
        Self::Write(Arc::new(error))
    }

    pub(super) fn not_reached(
        place: Place,
        database: DatabaseId,
        partitions: PartitionCount,
    ) -> Self {
        Self::PlaceNotReached {
            head: Cursor::Events(place).encode(database, partitions),
        }
    }

    pub(super) fn of_follow(
        error: FollowError,
        database: DatabaseId,
        partitions: PartitionCount,
    ) -> Self {
        match error {
            FollowError::NotReached {
                head: Head::Log(place),
            } => Self::not_reached(place, database, partitions),
            FollowError::NotReached {
                head: Head::Changes(heads),
            } => Self::PlaceNotReached {
                head: Cursor::Changes(heads).encode(database, partitions),
            },
            FollowError::NotReached {
                head: Head::Stream(position),
            } => Self::PositionNotReached { head: position.0 },
            FollowError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Append(error) => Self::Append {
                error,
                input: AppendInput::One,
            },
            error => Self::Command(error),
        }
    }
}

impl From<WaitError> for ApiError {
    fn from(error: WaitError) -> Self {
        let message = error.to_string();
        match error {
            WaitError::Behind { version } => Self::ReadModelBehind { version, message },
            WaitError::Faulted { version, .. } => Self::ReadModelFaulted { version, message },
            WaitError::Store(error) => error.into(),
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::BadUserInput { field, message } => bad_user_input(&field, &message),
            ApiError::PlaceNotReached { head } => coded(
                "the cursor lies above the newest place of the log",
                "PLACE_NOT_REACHED",
                |extensions| {
                    extensions.set("head", head.as_str());
                },
            ),
            ApiError::PositionNotReached { head } => {
                let message =
                    format!("the position lies above the stream's newest one, which is {head}");
                coded(message, "PLACE_NOT_REACHED", |extensions| {
                    extensions.set("head", head)
                })
            }
            ApiError::VersionNotReached { head } => {
                let message =
                    format!("the version lies above the aggregate's newest one, which is {head}");
                coded(message, "PLACE_NOT_REACHED", |extensions| {
                    extensions.set("head", head)
                })
            }
            ApiError::State(error) => no_state(&error),
            ApiError::TypeMismatch {
                field,
                expected,
                actual,
            } => type_mismatch(&field, &expected, &actual),
            ApiError::Forbidden { needed } => {
                let message = format!("this needs a token with the role {needed} or above");
                coded(message, "FORBIDDEN", |_| {})
            }
            ApiError::Append {
                error: AppendError::Refused(refusal),
                input,
            } => refused(refusal, input),
            ApiError::Append { error, .. } => not_appended(error),
            ApiError::Command(error) => of_command(error),
            ApiError::NotFound { field, message } => coded(message, "NOT_FOUND", |extensions| {
                extensions.set("field", field);
            }),
            ApiError::Busy { message } => unavailable(message, "NOT_DONE"),
            ApiError::ReadModelBehind { version, message } => {
                coded(message, "READ_MODEL_BEHIND", |extensions| {
                    extensions.set("version", version.0);
                })
            }
            ApiError::ReadModelFaulted { version, message } => {
                coded(message, "READ_MODEL_FAULTED", |extensions| {
                    extensions.set("version", version.0);
                })
            }
            ApiError::Store(error) => not_read(error),
            ApiError::Write(error) => not_written(error),
            ApiError::Failed(error) => internal(error),
        }
    }
}

fn coded(
    message: impl Into<String>,
    code: &str,
    set: impl FnOnce(&mut ErrorExtensionValues),
) -> Error {
    Error::new(message).extend_with(|_, extensions| {
        extensions.set("code", code);
        set(extensions);
    })
}

fn bad_user_input(field: &str, message: &str) -> Error {
    coded(
        format!("{field} {message}"),
        "BAD_USER_INPUT",
        |extensions| extensions.set("field", field),
    )
}

fn type_mismatch(field: &str, expected: &str, actual: &str) -> Error {
    let message = format!("the aggregate is of the type {actual}, not {expected}");
    coded(message, "AGGREGATE_TYPE_MISMATCH", |extensions| {
        extensions.set("expected", expected);
        extensions.set("actual", actual);
        extensions.set("field", field);
    })
}

fn refused(refusal: Refusal, input: AppendInput) -> Error {
    let of = |index: usize, field: &str| match input {
        AppendInput::One => format!("input.{field}"),
        AppendInput::List => format!("input.events[{index}].{field}"),
    };
    let message = refusal.to_string();
    match refusal {
        Refusal::VersionConflict {
            index,
            expected,
            actual,
        } => coded(message, "VERSION_CONFLICT", |extensions| {
            extensions.set("expected", expected.0);
            extensions.set("actual", actual.0);
            extensions.set("field", of(index, "expectedVersion"));
        }),
        Refusal::PositionConflict { expected, actual } => {
            coded(message, "VERSION_CONFLICT", |extensions| {
                extensions.set("expected", expected.0);
                extensions.set("actual", actual.0);
                extensions.set("field", "input.expectedPosition");
            })
        }
        Refusal::TypeMismatch {
            index,
            expected,
            actual,
        } => type_mismatch(
            &of(index, "aggregateType"),
            expected.as_str(),
            actual.as_str(),
        ),
        Refusal::IdReused { index, .. } => coded(message, "ID_REUSED", |extensions| {
            extensions.set("field", of(index, "id"));
        }),
        Refusal::CommandKnown { .. } | Refusal::CommandSettled { .. } => {
            coded(message, "ID_REUSED", |extensions| {
                extensions.set("field", "input.id");
            })
        }
        Refusal::ValueRefused => {
            let field = match input {
                AppendInput::One => "input.data",
                AppendInput::List => "input.events",
            };
            bad_user_input(field, "holds a value that the database cannot store")
        }
    }
}

fn not_found(what: &str) -> Error {
    coded(format!("there is no {what}"), "NOT_FOUND", |_| {})
}

fn of_command(error: CommandError) -> Error {
    let message = error.to_string();
    match error {
        CommandError::UnknownType { known, .. } => {
            let known: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
            let message = format!("{message}: the types are {}", known.join(", "));
            coded(message, "UNKNOWN_COMMAND_TYPE", |extensions| {
                extensions.set("known", known);
                extensions.set("field", "input.type");
            })
        }
        CommandError::WrongData { name, violations } => {
            let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
            let message = format!("is not what {name} takes: {}", violations.join("; "));
            bad_user_input("input.data", &message)
        }
        CommandError::NotBeforeAhead => bad_user_input(
            "input.notBefore",
            "lies ahead, and executeCommand processes at once: leave it out, or use createCommand",
        ),
        CommandError::IdReused { .. } => coded(message, "ID_REUSED", |extensions| {
            extensions.set("field", "input.id");
        }),
        CommandError::TypeMismatch { expected, actual } => {
            type_mismatch("input.aggregateId", expected.as_str(), actual.as_str())
        }
        CommandError::NotThere { id } => not_found(&format!("command {id}")),
        CommandError::Faulted { .. } => internal(Arc::new(error)),
        CommandError::Append(error) => not_appended(error),
    }
}

fn not_appended(error: AppendError) -> Error {
    match error {
        AppendError::Unavailable {
            reason,
            retry_after,
            unknown,
            source,
        } => {
            if let Some(source) = source {
                tracing::warn!(
                    error = source.as_ref() as &dyn StdError,
                    "an append could not be taken: {reason}"
                );
            }
            let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            let message = if unknown.is_empty() {
                format!("{reason}: nothing was done, try again")
            } else {
                format!(
                    "{reason}: whether it was done is unknown, and repeating it with the same ids is safe"
                )
            };
            coded(message, "UNAVAILABLE", |extensions| {
                extensions.set("retryAfterMs", retry_after_ms);
                if unknown.is_empty() {
                    extensions.set("outcome", "NOT_DONE");
                } else {
                    extensions.set("outcome", "UNKNOWN");
                    extensions.set(
                        "ids",
                        unknown.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    );
                }
            })
        }
        AppendError::Failed(error) => internal(error),
        AppendError::Refused(refusal) => refused(refusal, AppendInput::One),
    }
}

fn no_state(error: &StateError) -> Error {
    match error {
        StateError::Faulted { version, .. } => {
            coded(error.to_string(), "READ_MODEL_FAULTED", |extensions| {
                extensions.set("version", version.0);
            })
        }
        StateError::TooMuch { .. } => {
            let message = format!(
                "{error} (the option --max-folded-events): ask for fewer states, or at lower versions"
            );
            bad_user_input("state", &message)
        }
    }
}

fn not_read(error: Arc<StoreError>) -> Error {
    if !error.is_passing() {
        return internal(error);
    }
    tracing::warn!(
        error = error.as_ref() as &dyn StdError,
        "the database could not be read"
    );
    unavailable("the database cannot be reached: try again", "NOT_DONE")
}

fn not_written(error: Arc<StoreError>) -> Error {
    if !error.is_passing() {
        return internal(error);
    }
    tracing::warn!(
        error = error.as_ref() as &dyn StdError,
        "the database could not be written to"
    );
    if error.is_outcome_unknown() {
        let message = "the connection to the database was lost: whether it was done is unknown, and repeating it is safe";
        return unavailable(message, "UNKNOWN");
    }
    unavailable(
        "the database cannot take it now: nothing was done, try again",
        "NOT_DONE",
    )
}

fn unavailable(message: impl Into<String>, outcome: &str) -> Error {
    coded(message, "UNAVAILABLE", |extensions| {
        extensions.set("retryAfterMs", RETRY_AFTER_MS);
        extensions.set("outcome", outcome);
        if outcome == "UNKNOWN" {
            // No id is needed to repeat it.
            extensions.set("ids", Vec::<String>::new());
        }
    })
}

fn internal(error: Arc<dyn StdError + Send + Sync>) -> Error {
    let mut internal = coded(
        "the server failed; its log says why, under this request id",
        "INTERNAL",
        |_| {},
    );
    internal.source = Some(Arc::new(Fault(error)));
    internal
}

/// Brings an error into the form that clients rely on: each has a code, and the server's own faults the request's id.
pub(super) fn finish(error: &mut ServerError, caller: Option<&Caller>) {
    if let Some(Fault(cause)) = error.source::<Fault>() {
        let request_id = caller
            .map(|caller| caller.request_id.to_string())
            .unwrap_or_default();
        tracing::error!(error = cause.as_ref() as &dyn StdError, "a request failed");
        error
            .extensions
            .get_or_insert_default()
            .set("requestId", request_id);
    }
    let extensions = error.extensions.get_or_insert_default();
    if extensions.get("code") == Some(&Value::from("UNAVAILABLE"))
        && let Some(caller) = caller
    {
        // Why the database could not be reached is in the log, too.
        extensions.set("requestId", caller.request_id.to_string());
    }
    if extensions.get("code").is_none() {
        // What the library itself refuses is a client's fault: syntax, unknown fields, wrong types, limits.
        extensions.set("code", "BAD_USER_INPUT");
        if let Some((field, hint)) = argument_of(&error.message) {
            extensions.set("field", field);
            if let Some(hint) = hint {
                error.message = format!("{}: {hint}", error.message);
            }
        }
        shorten(&mut error.message);
    }
}

/// The argument's path, which the library has only in the text of its error, and what would be right for a scalar.
fn argument_of(message: &str) -> Option<(String, Option<&'static str>)> {
    let (_, rest) = message.split_once("Invalid value for argument \"")?;
    let (path, rest) = rest.split_once('"')?;
    let mut field = String::with_capacity(path.len() + 1);
    for segment in path.split('.') {
        if segment.parse::<usize>().is_ok() {
            field.push_str(&format!("[{segment}]"));
        } else {
            let dot = if field.is_empty() { "" } else { "." };
            field.push_str(&format!("{dot}{segment}"));
        }
    }
    let scalar = rest
        .strip_prefix(", expected type \"")
        .and_then(|rest| rest.strip_suffix('"'));
    Some((field, scalar.and_then(what_would_be_right)))
}

/// Keeps both ends of a long message: the library repeats the line that it cannot read, however long that is.
fn shorten(message: &mut String) {
    const END_CHARS: usize = 300;
    let count = message.chars().count();
    if count > 2 * END_CHARS + 1 {
        let begin: String = message.chars().take(END_CHARS).collect();
        let end: String = message.chars().skip(count - END_CHARS).collect();
        *message = format!("{begin}…{end}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_and_what_would_be_right_are_read_from_the_message() {
        let message = r#"Invalid value for argument "input.events.1.id", expected type "UUID""#;
        let (field, hint) = argument_of(message).expect("an argument");
        assert_eq!(field, "input.events[1].id");
        assert!(hint.is_some_and(|hint| hint.contains("hyphenated")));
        let message = r#"Invalid value for argument "first", expected type "Int""#;
        assert_eq!(argument_of(message), Some(("first".to_owned(), None)));
        assert_eq!(argument_of("Unknown field"), None);
    }

    #[test]
    fn a_long_message_keeps_its_ends() {
        let mut message = format!("begin {} end", "ä".repeat(100_000));
        shorten(&mut message);
        assert!(message.starts_with("begin ") && message.ends_with(" end"));
        assert!(message.chars().count() < 1000);
        let mut short = "short".to_owned();
        shorten(&mut short);
        assert_eq!(short, "short");
    }
}
