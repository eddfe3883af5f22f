//! Deciders that are declared, not written. Floor 0.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    AggregateType, CommandDescription, CommandInHand, CommandType, DecidedEvent, Decider,
    EventType, FoldFault, PastEvent, Rejection, State, StreamName,
};

/// The rules of one type of aggregate.
#[derive(Clone, Debug)]
pub struct DeclaredAggregate {
    /// The type.
    pub aggregate_type: AggregateType,
    /// The stream in which its events become entries as well.
    pub publish_to: Option<StreamName>,
    /// Its commands.
    pub commands: Vec<DeclaredCommand>,
    /// How its events change the state; those that are not here are merged.
    pub events: HashMap<EventType, StateChange>,
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
    /// The JSON Schema of its data.
    pub schema: Option<Value>,
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

impl Decider for DeclaredAggregate {
    fn aggregate_type(&self) -> AggregateType {
        self.aggregate_type.clone()
    }

    fn commands(&self) -> Vec<CommandDescription> {
        let describe = |command: &DeclaredCommand| CommandDescription {
            name: command.name.clone(),
            event_types: vec![command.event.clone()],
            data_schema: command.schema.clone(),
            creates: command.requires == Requires::Absent,
        };
        self.commands.iter().map(describe).collect()
    }

    fn publish_to(&self) -> Option<StreamName> {
        self.publish_to.clone()
    }

    fn decide(
        &self,
        state: &State,
        command: &CommandInHand<'_>,
    ) -> Result<Vec<DecidedEvent>, Rejection> {
        let declared = self
            .commands
            .iter()
            .find(|declared| declared.name == *command.command_type)
            .ok_or_else(|| {
                Rejection(format!(
                    "{} is not a command of {}",
                    command.command_type, self.aggregate_type
                ))
            })?;
        match (declared.requires, state.is_null()) {
            (Requires::Absent, false) => Err(Rejection(format!(
                "the {} is there already",
                self.aggregate_type
            ))),
            (Requires::Present, true) => Err(Rejection(format!(
                "there is no {} of this id",
                self.aggregate_type
            ))),
            _ => Ok(vec![DecidedEvent {
                event_type: declared.event.clone(),
                data: command.data.clone(),
            }]),
        }
    }

    fn evolve(&self, state: State, event: PastEvent<'_>) -> Result<State, FoldFault> {
        let change = self.events.get(event.event_type).copied();
        match change.unwrap_or_default() {
            StateChange::Replace => event.into_state(),
            StateChange::Merge => event.merge_into(state),
            StateChange::Delete => Ok(State::Null),
        }
    }
}

/// The users of the guide.
pub(super) fn guide() -> DeclaredAggregate {
    let command = |name: &str, event: &str, requires, schema| DeclaredCommand {
        name: CommandType::new(name).expect("a name"),
        event: EventType::new(event).expect("a name"),
        requires,
        schema: Some(schema),
    };
    let properties = serde_json::json!({
        "username": { "type": "string", "minLength": 1 },
        "email": { "type": "string" },
    });
    let change = |event: &str, change| (EventType::new(event).expect("a name"), change);
    DeclaredAggregate {
        aggregate_type: AggregateType::new("user").expect("a name"),
        publish_to: StreamName::new("user_events").ok(),
        commands: vec![
            command(
                "create_user",
                "user_created",
                Requires::Absent,
                serde_json::json!({ "type": "object", "required": ["username"], "properties": properties }),
            ),
            command(
                "update_user",
                "user_updated",
                Requires::Present,
                serde_json::json!({ "type": "object", "properties": properties }),
            ),
            command(
                "delete_user",
                "user_deleted",
                Requires::Present,
                serde_json::json!({ "type": "object" }),
            ),
        ],
        events: HashMap::from([
            change("user_created", StateChange::Replace),
            change("user_updated", StateChange::Merge),
            change("user_deleted", StateChange::Delete),
        ]),
    }
}
