//! Deciders: the rules of a domain. Floor 0.
//!
//! Source: the decider pattern (Jérémie Chassaing).

use serde_json::Value;

use super::{
    AggregateId, AggregateType, CommandId, CommandType, EventType, StreamName, Timestamp, Version,
    json::kind_of, merge::merge_patch,
};

/// The state of an aggregate: a JSON object, or `null` where there is none, before the first event and after a deletion.
pub type State = Value;

/// What becomes of a command: the events that it causes, of which there may be none, or why it is rejected.
pub type Decision = Result<Vec<DecidedEvent>, Rejection>;

/// The rules for one type of aggregate. All methods are pure: no clock, no I/O, the same answer every time.
pub trait Decider: Send + Sync + 'static {
    /// The type of the aggregates that it decides for.
    fn aggregate_type(&self) -> AggregateType;

    /// The commands that it decides on. Their names are unique over all deciders.
    fn commands(&self) -> Vec<CommandDescription>;

    /// The stream in which the aggregates' events become entries as well.
    fn publish_to(&self) -> Option<StreamName> {
        None
    }

    /// The state before the first event.
    fn initial(&self) -> State {
        State::Null
    }

    /// Decides on a command.
    ///
    /// # Errors
    /// When a rule rejects it. That is an answer, not a fault.
    fn decide(&self, state: &State, command: &CommandInHand<'_>) -> Decision;

    /// The state after an event. It gets every event of its aggregates, also of types that nobody has heard of, because
    /// anybody may append: [`PastEvent::merge_into`] does with those what is done where there is no decider.
    ///
    /// # Errors
    /// When the event cannot be folded.
    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault>;

    /// Its commands and events as data, where all of its rules are data: what others than this program can follow.
    fn declaration(&self) -> Option<Value> {
        None
    }
}

/// A type of command.
#[derive(Clone, Debug)]
pub struct CommandDescription {
    /// Its name.
    pub name: CommandType,
    /// The events that it can cause.
    pub event_types: Vec<EventType>,
    /// The JSON Schema that its data must meet.
    pub data_schema: Option<Value>,
    /// Whether it is mostly sent to aggregates that are not there yet: then these are decided on without looking first.
    pub creates: bool,
}

impl CommandDescription {
    /// A type of command that can cause these events, with any data.
    ///
    /// # Panics
    /// When one of the names is none.
    #[must_use]
    pub fn new(name: &str, event_types: &[&str]) -> Self {
        let event_type = |name: &&str| EventType::new(name).expect(NAMES);
        Self {
            name: CommandType::new(name).expect(NAMES),
            event_types: event_types.iter().map(event_type).collect(),
            data_schema: None,
            creates: false,
        }
    }

    /// The same with a JSON Schema that its data must meet.
    #[must_use]
    pub fn with_schema(mut self, schema: Value) -> Self {
        self.data_schema = Some(schema);
        self
    }

    /// The same as one that makes aggregates: see [`Self::creates`].
    #[must_use]
    pub fn creating(mut self) -> Self {
        self.creates = true;
        self
    }
}

/// Deciders name things by literals, so a wrong name shows at their first use.
const NAMES: &str = "a name has 1 to 100 characters, without control characters";

/// A command that is being decided on.
#[derive(Clone, Copy, Debug)]
pub struct CommandInHand<'a> {
    /// Its id.
    pub id: CommandId,
    /// What is asked for.
    pub command_type: &'a CommandType,
    /// The aggregate that is to change.
    pub aggregate_id: AggregateId,
    /// The version that the aggregate has.
    pub version: Version,
    /// What is to be known about it.
    pub data: &'a Value,
    /// Facts about the command itself.
    pub metadata: &'a Value,
}

/// What happened by a decision: an event that is not appended yet.
#[derive(Clone, Debug, PartialEq)]
pub struct DecidedEvent {
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Value,
}

impl DecidedEvent {
    /// An event of this type.
    ///
    /// # Panics
    /// When that is no name.
    #[must_use]
    pub fn new(event_type: &str, data: Value) -> Self {
        Self {
            event_type: EventType::new(event_type).expect(NAMES),
            data,
        }
    }
}

/// An event as it is folded into a state.
#[derive(Clone, Debug)]
pub struct PastEvent<'a> {
    /// What happened.
    pub event_type: &'a EventType,
    /// What is to be known about it.
    pub data: Value,
    /// Its place in its aggregate.
    pub version: Version,
    /// When it was appended.
    pub created_at: Timestamp,
}

impl PastEvent<'_> {
    /// Merges the event's data into a state, as it is done with events that no domain declares.
    ///
    /// Source: RFC 7396.
    ///
    /// # Errors
    /// When the data is no object: it would take the place of the whole state.
    pub fn merge_into(self, mut state: State) -> Result<State, FoldFault> {
        if !self.data.is_object() {
            return Err(self.not_an_object("merged into a"));
        }
        merge_patch(&mut state, self.data);
        Ok(state)
    }

    /// Makes the event's data the state.
    ///
    /// # Errors
    /// When the data is no object.
    pub fn into_state(self) -> Result<State, FoldFault> {
        if self.data.is_object() {
            Ok(self.data)
        } else {
            Err(self.not_an_object("the new"))
        }
    }

    fn not_an_object(&self, use_of_it: &str) -> FoldFault {
        FoldFault(format!(
            "the data of {} is {}, and only an object can be {use_of_it} state",
            self.event_type,
            kind_of(&self.data)
        ))
    }
}

/// Why a command is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);

impl Rejection {
    /// A rejection for a reason, which clients read.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Why an event cannot be folded into a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FoldFault(pub String);

impl FoldFault {
    /// A fault with its reason, which clients read.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
