//! Given these events, when this command, then those events, or a rejection.

use serde_json::Value;
use tidings::domain::{
    AggregateId, AggregateType, CommandId, CommandInHand, CommandType, DecideError, DecidedEvent,
    Domain, EventType, FoldFault, PastEvent, State, Timestamp, Version,
};
use uuid::Uuid;

/// The events of one aggregate so far.
pub struct Given<'d> {
    domain: &'d Domain,
    aggregate_type: AggregateType,
    version: Version,
    pub state: Result<State, FoldFault>,
}

/// An aggregate to which these events have happened.
pub fn given<'d>(domain: &'d Domain, aggregate_type: &str, events: &[(&str, Value)]) -> Given<'d> {
    let aggregate_type = AggregateType::new(aggregate_type).unwrap();
    let mut given = Given {
        domain,
        state: Ok(domain.initial(&aggregate_type)),
        aggregate_type,
        version: Version::NONE,
    };
    for (event_type, data) in events {
        given = given.happens(event_type, data.clone());
    }
    given
}

/// What a command came to.
#[derive(Debug, PartialEq)]
pub enum Then {
    Events(Vec<(String, Value)>),
    Rejected(String),
    Faulted(String),
    /// The data is not what the schema says.
    Wrong(Vec<String>),
    Unknown,
}

impl Given<'_> {
    /// The same after another event.
    pub fn happens(self, event_type: &str, data: Value) -> Self {
        let version = self.version.next();
        let event_type = EventType::new(event_type).unwrap();
        let past = PastEvent {
            event_type: &event_type,
            data,
            version,
            created_at: Timestamp::from_micros(0),
        };
        let state = self
            .state
            .and_then(|state| self.domain.evolve(state, &self.aggregate_type, past));
        Self {
            state,
            version,
            ..self
        }
    }

    /// What a command comes to.
    pub fn when(&self, command_type: &str, data: Value) -> Then {
        let command_type = CommandType::new(command_type).unwrap();
        let Some(kind) = self.domain.command(&command_type) else {
            return Then::Unknown;
        };
        assert_eq!(kind.aggregate_type, self.aggregate_type);
        if let Err(violations) = kind.check(&data) {
            return Then::Wrong(violations.iter().map(ToString::to_string).collect());
        }
        let command = CommandInHand {
            id: CommandId(Uuid::nil()),
            command_type: &command_type,
            aggregate_id: AggregateId(Uuid::nil()),
            version: self.version,
            data: &data,
            metadata: &Value::Null,
        };
        let state = self.state.as_ref().unwrap();
        let named = |event: DecidedEvent| (event.event_type.to_string(), event.data);
        match self.domain.decide(kind, state, &command) {
            Ok(events) => Then::Events(events.into_iter().map(named).collect()),
            Err(DecideError::Rejected(rejection)) => Then::Rejected(rejection.0),
            Err(DecideError::Faulted(text)) => Then::Faulted(text),
        }
    }
}

/// One event.
pub fn event(event_type: &str, data: Value) -> Then {
    Then::Events(vec![(event_type.to_owned(), data)])
}

pub fn rejected(reason: &str) -> Then {
    Then::Rejected(reason.to_owned())
}
