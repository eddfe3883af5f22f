//! The domain of a server: its deciders, found by command and by type of aggregate, and kept from doing harm. Floor 0.

mod content;

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use indexmap::IndexMap;
use serde_json::Value;

use super::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DataSchema, DecidedEvent,
    Decider, Event, EventType, FoldFault, Json, JsonError, PastEvent, Rejection, SchemaViolation,
    State, StreamName,
    declared::{self, WrongDeclaration},
    schema::SchemaError,
};

/// The most bytes that a state may have as JSON text.
pub const MAX_STATE_BYTES: usize = 16 << 20;

/// All that a server knows about its aggregates. It never changes.
pub struct Domain {
    aggregates: IndexMap<AggregateType, Registered>,
    commands: BTreeMap<CommandType, CommandKind>,
    content: Json,
    fingerprint: String,
}

struct Registered {
    decider: Arc<dyn Decider>,
    publish_to: Option<StreamName>,
}

/// A type of command that the server accepts.
#[derive(Debug)]
pub struct CommandKind {
    /// What it is.
    pub description: CommandDescription,
    /// The type of the aggregates that it changes.
    pub aggregate_type: AggregateType,
    schema: Option<DataSchema>,
}

/// Why deciders make no domain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Two deciders are for the same type.
    #[error("two deciders are for aggregates of type {aggregate_type}: there may be one only")]
    DuplicateType {
        /// The type.
        aggregate_type: AggregateType,
    },
    /// Two commands have the same name.
    #[error(
        "the command {name} is there twice, for {first} and for {second}: give them different names"
    )]
    DuplicateCommand {
        /// The name.
        name: CommandType,
        /// The type of aggregate that has it first.
        first: AggregateType,
        /// The type that has it again.
        second: AggregateType,
    },
    /// The schema of a command's data is none.
    #[error("the schema of the command {name} is no JSON Schema that can be used")]
    WrongSchema {
        /// The command.
        name: CommandType,
        /// What is wrong with it.
        #[source]
        problem: SchemaError,
    },
    /// A schema lies too deep to be stored.
    #[error("the domain as JSON cannot be stored")]
    NotStorable(#[source] JsonError),
}

/// Why a decision brings no events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// A rule of the domain rejects the command: an answer, not a fault.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The decider is at fault; the text says how.
    #[error("{0}")]
    Faulted(String),
}

impl Domain {
    /// The domain of these deciders.
    ///
    /// # Errors
    /// When two are for one type, two commands share a name, or a schema is wrong.
    pub fn new(deciders: Vec<Arc<dyn Decider>>) -> Result<Self, DomainError> {
        let mut domain = Self {
            aggregates: IndexMap::new(),
            commands: BTreeMap::new(),
            content: Json::empty_object(),
            fingerprint: String::new(),
        };
        for decider in deciders {
            domain.register(decider)?;
        }
        let content = content::describe(domain.aggregates.values().map(|one| &one.decider));
        domain.fingerprint = content::fingerprint(&content);
        domain.content = Json::of_value(&content).map_err(DomainError::NotStorable)?;
        Ok(domain)
    }

    /// The domain that a text in TOML declares.
    ///
    /// # Errors
    /// Everything that is wrong with it, with its lines.
    pub fn declared(text: &str) -> Result<Self, WrongDeclaration> {
        let mut deciders: Vec<Arc<dyn Decider>> = Vec::new();
        for aggregate in declared::parse(text)? {
            deciders.push(Arc::new(aggregate));
        }
        Self::new(deciders).map_err(|error| WrongDeclaration::of_whole(&error))
    }

    /// The built-in domain: the users of the guide.
    #[must_use]
    pub fn guide() -> Self {
        Self::declared(declared::GUIDE).expect("the built-in domain is well formed")
    }

    fn register(&mut self, decider: Arc<dyn Decider>) -> Result<(), DomainError> {
        let aggregate_type = decider.aggregate_type();
        for description in decider.commands() {
            let name = description.name.clone();
            if let Some(other) = self.commands.get(&name) {
                return Err(DomainError::DuplicateCommand {
                    name,
                    first: other.aggregate_type.clone(),
                    second: aggregate_type,
                });
            }
            let schema = description
                .data_schema
                .as_ref()
                .map(DataSchema::compile)
                .transpose()
                .map_err(|problem| DomainError::WrongSchema {
                    name: name.clone(),
                    problem,
                })?;
            let kind = CommandKind {
                description,
                aggregate_type: aggregate_type.clone(),
                schema,
            };
            self.commands.insert(name, kind);
        }
        let publish_to = decider.publish_to();
        let registered = Registered {
            decider,
            publish_to,
        };
        match self.aggregates.insert(aggregate_type.clone(), registered) {
            Some(_) => Err(DomainError::DuplicateType { aggregate_type }),
            None => Ok(()),
        }
    }

    /// The commands that there are, sorted by name.
    pub fn command_types(&self) -> impl Iterator<Item = &CommandKind> {
        self.commands.values()
    }

    /// The command of this name.
    #[must_use]
    pub fn command(&self, name: &CommandType) -> Option<&CommandKind> {
        self.commands.get(name)
    }

    /// Decides on a command, of which [`CommandKind::check`] has found the data right.
    ///
    /// # Errors
    /// When a rule rejects it; and when the decider panics, or decides on what cannot be appended.
    pub fn decide(
        &self,
        kind: &CommandKind,
        state: &State,
        command: &CommandInHand<'_>,
    ) -> Result<Vec<DecidedEvent>, DecideError> {
        let Some(Registered { decider, .. }) = self.aggregates.get(&kind.aggregate_type) else {
            let problem = format!("nothing decides on {}", kind.aggregate_type);
            return Err(DecideError::Faulted(problem));
        };
        let decided = catch_unwind(AssertUnwindSafe(|| decider.decide(state, command)));
        let events = decided.map_err(|panic| {
            DecideError::Faulted(format!("the decider panicked: {}", text_of(&*panic)))
        })??;
        for event in &events {
            if !kind.description.event_types.contains(&event.event_type) {
                return Err(DecideError::Faulted(format!(
                    "the decider decided on {}, which is not among the events that it says {} causes",
                    event.event_type, kind.description.name
                )));
            }
        }
        Ok(events)
    }

    /// The state of an aggregate before its first event.
    #[must_use]
    pub fn initial(&self, aggregate_type: &AggregateType) -> State {
        let Some(Registered { decider, .. }) = self.aggregates.get(aggregate_type) else {
            return State::Null;
        };
        catch_unwind(AssertUnwindSafe(|| decider.initial())).unwrap_or(State::Null)
    }

    /// The state after an event. Events that no decider is there for are merged into it.
    ///
    /// # Errors
    /// When the event cannot be folded; the state before it is gone then.
    pub fn fold(&self, state: State, event: &Event) -> Result<State, FoldFault> {
        let data = event
            .data
            .to_value()
            .map_err(|error| FoldFault(format!("the data of {} {error}", event.event_type)))?;
        let past = PastEvent {
            event_type: &event.event_type,
            data,
            version: event.version,
            created_at: event.created_at,
        };
        self.evolve(state, &event.aggregate_type, past)
    }

    /// The state after an event that is in hand already.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn evolve(
        &self,
        state: State,
        aggregate_type: &AggregateType,
        event: PastEvent<'_>,
    ) -> Result<State, FoldFault> {
        let Some(Registered { decider, .. }) = self.aggregates.get(aggregate_type) else {
            return event.merge_into(state);
        };
        let event_type = event.event_type;
        let state = catch_unwind(AssertUnwindSafe(|| decider.evolve(state, event))).map_err(
            |panic| {
                FoldFault(format!(
                    "the decider panicked at {event_type}: {}",
                    text_of(&*panic)
                ))
            },
        )??;
        match state {
            State::Null | State::Object(_) => Ok(state),
            other => Err(FoldFault(format!(
                "after {event_type} the decider's state is {}, and only an object or null can be one",
                super::json::kind_of(&other)
            ))),
        }
    }

    /// A state as it is stored and answered.
    ///
    /// # Errors
    /// When it is deeper or larger than a read model may be.
    pub fn state_to_json(state: &State) -> Result<Json, FoldFault> {
        let json = Json::of_value(state).and_then(|json| match json.as_str().len() {
            bytes if bytes > MAX_STATE_BYTES => Err(JsonError::TooLarge {
                bytes,
                limit: MAX_STATE_BYTES,
            }),
            _ => Ok(json),
        });
        json.map_err(|error| FoldFault(format!("the state {error}")))
    }

    /// The rules as JSON, as far as they are data.
    #[must_use]
    pub fn content(&self) -> &Json {
        &self.content
    }

    /// What tells this domain from others: the SHA-256 of its content, in hexadecimal digits. The order of keys does not
    /// count, nor does what deciders written in Rust do.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The types of aggregates that it has deciders for, in their order.
    pub fn aggregate_types(&self) -> impl Iterator<Item = &AggregateType> {
        self.aggregates.keys()
    }

    /// The stream in which the events of these aggregates become entries as well.
    #[must_use]
    pub fn publish_to(&self, aggregate_type: &AggregateType) -> Option<&StreamName> {
        self.aggregates.get(aggregate_type)?.publish_to.as_ref()
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain")
            .field("commands", &self.commands)
            .finish_non_exhaustive()
    }
}

impl CommandKind {
    /// Checks a command's data against its schema.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, data: &Value) -> Result<(), Vec<SchemaViolation>> {
        self.schema
            .as_ref()
            .map_or(Ok(()), |schema| schema.check(data))
    }

    /// The events that it can cause.
    #[must_use]
    pub fn event_types(&self) -> &[EventType] {
        &self.description.event_types
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text")
}
