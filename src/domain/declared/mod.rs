//! Deciders that are declared in a file and not written in Rust. Floor 0.

mod document;
mod file;
mod names;
mod schemas;
mod template;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

pub use document::{Problem, WrongDeclaration};
pub use file::parse;
pub use names::{API_ROOT_FIELDS, API_TYPES};
pub use template::{Template, TemplateError};

use super::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DecidedEvent, Decider, Decision,
    EventType, FoldFault, PastEvent, Rejection, State, StreamName,
};

/// The file of the built-in domain: the users of the guide.
pub const GUIDE: &str = include_str!("guide.toml");

/// The rules of one type of aggregate.
#[derive(Clone, Debug)]
pub struct DeclaredAggregate {
    /// The type.
    pub aggregate_type: AggregateType,
    /// The stream in which its events become entries as well.
    pub publish_to: Option<StreamName>,
    /// Its commands.
    pub commands: IndexMap<CommandType, DeclaredCommand>,
    /// How its events change the state; those that are not here are merged.
    pub events: IndexMap<EventType, StateChange>,
}

/// One command.
#[derive(Clone, Debug)]
pub struct DeclaredCommand {
    /// Its name.
    pub name: CommandType,
    /// The event that it causes.
    pub event: EventType,
    /// Whether the aggregate must be there.
    pub requires: Requires,
    /// The JSON Schema of its data, which is an object always.
    pub schema: Value,
    /// How the event's data is made, as it was written and as it is used; without it, it is the command's.
    pub data: Option<(Value, Template)>,
}

/// Whether an aggregate must be there for a command: whether it has a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requires {
    /// It must not.
    Absent,
    /// It must.
    Present,
    /// It may or may not.
    #[default]
    Any,
}

impl Requires {
    const ALL: [(&'static str, Self); 3] = [
        ("absent", Self::Absent),
        ("present", Self::Present),
        ("any", Self::Any),
    ];

    /// The word in a domain file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        word(self, &Self::ALL)
    }
}

/// How an event changes the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateChange {
    /// The event's data becomes the state.
    Replace,
    /// The event's data is merged into the state.
    #[default]
    Merge,
    /// The state is gone.
    Delete,
}

impl StateChange {
    const ALL: [(&'static str, Self); 3] = [
        ("replace", Self::Replace),
        ("merge", Self::Merge),
        ("delete", Self::Delete),
    ];

    /// The word in a domain file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        word(self, &Self::ALL)
    }
}

fn word<T: PartialEq>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words
        .iter()
        .find(|(_, of)| *of == value)
        .map_or("", |(word, _)| word)
}

impl Decider for DeclaredAggregate {
    fn aggregate_type(&self) -> AggregateType {
        self.aggregate_type.clone()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        let describe = |command: &DeclaredCommand| CommandDescription {
            name: command.name.clone(),
            event_types: vec![command.event.clone()],
            data_schema: Some(command.schema.clone()),
            creates: command.requires == Requires::Absent,
        };
        self.commands.values().map(describe).collect()
    }

    fn publish_to(&self) -> Option<StreamName> {
        self.publish_to.clone()
    }

    fn decide(&self, state: &State, command: &CommandInHand<'_>) -> Decision {
        let kind = &self.aggregate_type;
        let Some(declared) = self.commands.get(command.command_type) else {
            let name = command.command_type;
            return Err(Rejection(format!("a {kind} has no command {name}")));
        };
        match (declared.requires, state.is_null()) {
            (Requires::Absent, false) => {
                return Err(Rejection(format!("the {kind} is there already")));
            }
            (Requires::Present, true) => {
                return Err(Rejection(format!("there is no {kind} of this id")));
            }
            _ => {}
        }
        let data = match &declared.data {
            Some((_, template)) => template.fill(command.data).unwrap_or_default(),
            None => command.data.clone(),
        };
        Ok(vec![DecidedEvent {
            event_type: declared.event.clone(),
            data,
        }])
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        let change = self.events.get(event.event_type).copied();
        match change.unwrap_or_default() {
            StateChange::Replace => event.into_state(),
            StateChange::Merge => event.merge_into(state),
            StateChange::Delete => Ok(State::Null),
        }
    }

    fn declaration(&self) -> Option<Value> {
        let mut commands = Map::new();
        for command in self.commands.values() {
            let mut declared = json!({
                "event": command.event.as_str(),
                "requires": command.requires.as_str(),
                "schema": command.schema,
            });
            if let Some((data, _)) = &command.data {
                declared["data"] = data.clone();
            }
            commands.insert(command.name.to_string(), declared);
        }
        let mut events = Map::new();
        for (event, change) in &self.events {
            events.insert(event.to_string(), json!({ "state": change.as_str() }));
        }
        for command in self.commands.values() {
            let merged = || json!({ "state": StateChange::default().as_str() });
            let event = command.event.to_string();
            events.entry(event).or_insert_with(merged);
        }
        Some(json!({ "commands": commands, "events": events }))
    }
}
