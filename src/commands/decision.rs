//! From a decision of the domain to what is appended. Floor 4.

use serde_json::Value;

use super::{CommandError, states::Known};
use crate::domain::{
    AggregateId, Clock, CommandId, CommandInHand, CommandKind, CommandType, DecideError,
    DecidedEvent, Domain, EventId, ExpectedVersion, Json, JsonError, NewEvent, TraceParent,
    trace::TRACEPARENT,
};

/// The longest reason that is stored, in characters.
const MAX_REASON_CHARS: usize = 2000;

/// A command with its data and metadata as values.
pub(super) struct Subject<'a> {
    pub(super) id: CommandId,
    pub(super) command_type: &'a CommandType,
    pub(super) aggregate_id: AggregateId,
    pub(super) data: Value,
    /// The data as text.
    pub(super) text: &'a Json,
    pub(super) metadata: Value,
}

/// What the domain says to a command.
pub(super) enum Decision {
    /// It causes these events.
    Events(Vec<NewEvent>),
    /// A rule rejects it.
    Rejected(String),
}

/// What deciding needs.
pub(super) struct Decisions<'a> {
    pub(super) domain: &'a Domain,
    pub(super) clock: &'a dyn Clock,
    pub(super) max_event_bytes: usize,
    /// Where deciding is in its trace, if that is recorded.
    pub(super) place: Option<TraceParent>,
}

impl Decisions<'_> {
    /// Asks the domain.
    ///
    /// # Errors
    /// When the decider is at fault.
    pub(super) fn decide(
        &self,
        kind: &CommandKind,
        subject: &Subject<'_>,
        known: &Known,
    ) -> Result<Decision, CommandError> {
        let command = CommandInHand {
            id: subject.id,
            command_type: subject.command_type,
            aggregate_id: subject.aggregate_id,
            version: known.version,
            data: &subject.data,
            metadata: &subject.metadata,
        };
        let decided = match self.domain.decide(kind, &known.state, &command) {
            Ok(decided) => decided,
            Err(DecideError::Rejected(rejection)) => {
                return Ok(Decision::Rejected(reason_of(&rejection.0)));
            }
            Err(DecideError::Faulted(reason)) => return Err(faulted(&reason)),
        };
        let metadata = metadata_of(subject, self.place)
            .map_err(|error| faulted(&format!("the command's metadata {error}")))?;
        let mut events = Vec::with_capacity(decided.len());
        for (index, decided) in decided.into_iter().enumerate() {
            let data = self.data_of(&decided, subject)?;
            events.push(NewEvent {
                id: EventId(self.clock.new_id()),
                id_is_given: false,
                aggregate_id: subject.aggregate_id,
                aggregate_type: kind.aggregate_type.clone(),
                event_type: decided.event_type,
                data,
                metadata: metadata.clone(),
                // The others follow in the same transaction.
                expected_version: match index {
                    0 => ExpectedVersion::Exactly(known.version),
                    _ => ExpectedVersion::Any,
                },
            });
        }
        Ok(Decision::Events(events))
    }

    fn data_of(&self, event: &DecidedEvent, subject: &Subject<'_>) -> Result<Json, CommandError> {
        let limit = self.max_event_bytes;
        // Most commands' data becomes their event's as it is.
        let text = match event.data == subject.data {
            true => Ok(subject.text.clone()),
            false => Json::of_value(&event.data),
        };
        let data = text.and_then(|data| match data.as_str().len() {
            bytes if bytes > limit => Err(JsonError::TooLarge { bytes, limit }),
            _ => Ok(data),
        });
        data.map_err(|error| faulted(&format!("the data of {} {error}", event.event_type)))
    }
}

/// The metadata of the events that a command causes: its own, and how they hang together. The command's place in the trace that
/// deciding goes on with is left out: the events get the place of their own append.
fn metadata_of(subject: &Subject<'_>, place: Option<TraceParent>) -> Result<Json, JsonError> {
    let id = subject.id;
    let mut metadata = match &subject.metadata {
        Value::Object(entries) if !entries.is_empty() => entries.clone(),
        _ => {
            let text =
                format!(r#"{{"correlationId":"{id}","causationId":"{id}","commandId":"{id}"}}"#);
            return Ok(Json::stored(text));
        }
    };
    let of_command = metadata.get(TRACEPARENT).and_then(Value::as_str);
    let of_command = of_command.and_then(TraceParent::parse);
    if let (Some(of_command), Some(place)) = (of_command, place)
        && of_command.trace_id == place.trace_id
    {
        metadata.remove(TRACEPARENT);
    }
    let id = Value::from(id.to_string());
    let correlation = metadata.entry("correlationId").or_insert(Value::Null);
    if correlation.is_null() {
        *correlation = id.clone();
    }
    metadata.insert("causationId".to_owned(), id.clone());
    metadata.insert("commandId".to_owned(), id);
    Json::of_value(&Value::Object(metadata))
}

/// A fault of the domain.
pub(super) fn faulted(reason: &str) -> CommandError {
    CommandError::Faulted {
        reason: reason_of(reason),
    }
}

/// A text of a decider's as it can be stored.
pub(super) fn reason_of(text: &str) -> String {
    text.chars()
        .map(|char| if char == '\0' { '\u{fffd}' } else { char })
        .take(MAX_REASON_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn metadata(of_command: Value) -> Value {
        let subject = Subject {
            id: CommandId(Uuid::from_u128(7)),
            command_type: &CommandType::new("create_user").expect("a name"),
            aggregate_id: AggregateId(Uuid::from_u128(1)),
            data: json!({}),
            text: &Json::empty_object(),
            metadata: of_command,
        };
        let metadata = metadata_of(&subject, None).expect("it can be stored");
        metadata.to_value().expect("JSON")
    }

    #[test]
    fn events_say_which_command_caused_them() {
        let id = Uuid::from_u128(7).to_string();
        let of_command = json!({ "commandId": id, "causationId": id, "correlationId": id });
        assert_eq!(metadata(json!({})), of_command);
        assert_eq!(metadata(json!({ "correlationId": null })), of_command);
        assert_eq!(
            metadata(json!({ "correlationId": "a", "commandId": "b", "by": "me" })),
            json!({ "commandId": id, "causationId": id, "correlationId": "a", "by": "me" })
        );
    }

    #[test]
    fn a_reason_can_be_stored() {
        assert_eq!(reason_of("a\0b"), "a\u{fffd}b");
        assert_eq!(reason_of(&"ä".repeat(5000)).chars().count(), 2000);
    }
}
