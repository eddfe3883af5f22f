//! Judges requests to append one after another: which are accepted, and at which versions. Floor 0.
//!
//! PostgreSQL does the same inside its function, so that SQL clients and the server cannot disagree.

use std::collections::HashMap;

use super::{
    AggregateId, AggregateType, CommandId, CommandStatus, CommandStep, EventId, EventType,
    ExpectedVersion, Json, NewEvent, Version,
    append::{AppendRequest, Refusal},
};

/// An event that is stored already, as far as a repeat is compared with it.
#[derive(Clone, Debug)]
pub struct KnownEvent {
    /// The aggregate that it happened to.
    pub aggregate_id: AggregateId,
    /// What that aggregate is.
    pub aggregate_type: AggregateType,
    /// What happened.
    pub event_type: EventType,
    /// What is to be known about it.
    pub data: Json,
}

impl KnownEvent {
    fn is_the_same_as(&self, event: &NewEvent) -> bool {
        self.aggregate_id == event.aggregate_id
            && self.aggregate_type == event.aggregate_type
            && self.event_type == event.event_type
            && self.data.same_value(&event.data)
    }
}

/// What the judge needs to know, and keeps up to date while it accepts requests.
#[derive(Debug, Default)]
pub struct Facts {
    /// The events of the batch's ids that are stored already.
    pub events: HashMap<EventId, KnownEvent>,
    /// The aggregates of the batch that are there, with their versions.
    pub aggregates: HashMap<AggregateId, (AggregateType, Version)>,
    /// The commands of the batch that are there. None of them is in the batch twice.
    pub commands: HashMap<CommandId, CommandStatus>,
}

/// What is to become of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append its events, at these versions.
    Append(Vec<Version>),
    /// All of it is there already.
    Duplicate,
    /// Refuse it.
    Refuse(Refusal),
}

impl Facts {
    /// Judges the next request: its ids first, then for each event the aggregate's type and version, which count after
    /// the events before it. What is accepted counts for the requests that follow.
    pub fn judge(&mut self, request: &AppendRequest) -> Verdict {
        if let Some(verdict) = self.judge_ids(&request.events) {
            return verdict;
        }
        let is_alone = request.events.is_empty();
        if let Err(refusal) = self.judge_command(request.command.as_ref(), is_alone) {
            return Verdict::Refuse(refusal);
        }
        let mut accepted: HashMap<AggregateId, (AggregateType, Version)> = HashMap::new();
        let mut versions = Vec::with_capacity(request.events.len());
        for (index, event) in request.events.iter().enumerate() {
            let present = accepted
                .get(&event.aggregate_id)
                .or_else(|| self.aggregates.get(&event.aggregate_id));
            let version = judge_aggregate(
                present,
                index,
                Some(&event.aggregate_type),
                event.expected_version,
            );
            let version = match version {
                Ok(version) => version.next(),
                Err(refusal) => return Verdict::Refuse(refusal),
            };
            versions.push(version);
            accepted.insert(event.aggregate_id, (event.aggregate_type.clone(), version));
        }
        self.aggregates.extend(accepted);
        Verdict::Append(versions)
    }

    /// Judges the command of a request, and its aggregate where no event of the request does.
    fn judge_command(&self, step: Option<&CommandStep>, is_alone: bool) -> Result<(), Refusal> {
        let Some(step) = step else { return Ok(()) };
        match (&step.record, self.commands.get(&step.id)) {
            (Some(_), Some(_)) => return Err(Refusal::CommandKnown { id: step.id }),
            (Some(_), None) | (None, Some(CommandStatus::Pending)) => {}
            (None, _) => return Err(Refusal::CommandSettled { id: step.id }),
        }
        if is_alone {
            let present = self.aggregates.get(&step.aggregate_id);
            let expected_type = step.aggregate_type.as_ref();
            judge_aggregate(present, 0, expected_type, step.expected_version)?;
        }
        Ok(())
    }

    fn judge_ids(&self, request: &[NewEvent]) -> Option<Verdict> {
        if self.events.is_empty() || request.is_empty() {
            return None;
        }
        let known = |event: &NewEvent| self.events.get(&event.id);
        if request
            .iter()
            .all(|event| known(event).is_some_and(|known| known.is_the_same_as(event)))
        {
            return Some(Verdict::Duplicate);
        }
        let index = request.iter().position(|event| known(event).is_some())?;
        // Of several known ids the one that stands for something else says more.
        let index = request
            .iter()
            .position(|event| known(event).is_some_and(|known| !known.is_the_same_as(event)))
            .unwrap_or(index);
        Some(Verdict::Refuse(Refusal::IdReused {
            index,
            id: request[index].id,
        }))
    }
}

/// The version of an aggregate, if it is what a request expects.
fn judge_aggregate(
    present: Option<&(AggregateType, Version)>,
    index: usize,
    expected_type: Option<&AggregateType>,
    expected_version: ExpectedVersion,
) -> Result<Version, Refusal> {
    let version = present.map_or(Version::NONE, |(_, version)| *version);
    if let (Some((actual, _)), Some(expected)) = (present, expected_type)
        && actual != expected
    {
        return Err(Refusal::TypeMismatch {
            index,
            expected: expected.clone(),
            actual: actual.clone(),
        });
    }
    match expected_version {
        ExpectedVersion::Exactly(expected) if expected != version => {
            Err(Refusal::VersionConflict {
                index,
                expected,
                actual: version,
            })
        }
        _ => Ok(version),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use uuid::Uuid;

    use crate::domain::{CommandType, NewCommand};

    fn event(id: u128, aggregate: u128, expected: Option<i32>) -> NewEvent {
        NewEvent {
            id: EventId(Uuid::from_u128(id)),
            id_is_given: true,
            aggregate_id: AggregateId(Uuid::from_u128(aggregate)),
            aggregate_type: AggregateType::new("user").expect("a name"),
            event_type: EventType::new("user_created").expect("a name"),
            data: Json::empty_object(),
            metadata: Json::empty_object(),
            expected_version: expected.map_or(ExpectedVersion::Any, |version| {
                ExpectedVersion::Exactly(Version(version))
            }),
        }
    }

    fn of(events: &[NewEvent]) -> AppendRequest {
        AppendRequest::of_events(events.to_vec())
    }

    /// A command of an aggregate, to be recorded or to be settled, on a version.
    fn step(id: u128, aggregate: u128, records: bool, expected: Option<i32>) -> CommandStep {
        let (id, aggregate_id) = (
            CommandId(Uuid::from_u128(id)),
            AggregateId(Uuid::from_u128(aggregate)),
        );
        CommandStep {
            id,
            aggregate_id,
            aggregate_type: AggregateType::new("user").ok(),
            expected_version: expected.map_or(ExpectedVersion::Any, |version| {
                ExpectedVersion::Exactly(Version(version))
            }),
            record: records.then(|| {
                Arc::new(NewCommand {
                    id,
                    id_is_given: true,
                    aggregate_id,
                    command_type: CommandType::new("create_user").expect("a name"),
                    data: Json::empty_object(),
                    metadata: Json::empty_object(),
                    not_before: None,
                })
            }),
            status: CommandStatus::Processed,
            reason: None,
        }
    }

    fn alone(step: CommandStep) -> AppendRequest {
        AppendRequest {
            events: Vec::new(),
            command: Some(step),
        }
    }

    fn stored(event: &NewEvent) -> KnownEvent {
        KnownEvent {
            aggregate_id: event.aggregate_id,
            aggregate_type: event.aggregate_type.clone(),
            event_type: event.event_type.clone(),
            data: event.data.clone(),
        }
    }

    #[test]
    fn of_two_requests_that_expect_version_0_the_first_wins() {
        let mut facts = Facts::default();
        assert_eq!(
            facts.judge(&of(&[event(1, 1, Some(0))])),
            Verdict::Append(vec![Version(1)])
        );
        let refusal = Refusal::VersionConflict {
            index: 0,
            expected: Version(0),
            actual: Version(1),
        };
        assert_eq!(
            facts.judge(&of(&[event(2, 1, Some(0))])),
            Verdict::Refuse(refusal)
        );
    }

    #[test]
    fn versions_count_after_the_earlier_events_of_the_request() {
        let request = [
            event(1, 1, Some(0)),
            event(2, 2, None),
            event(3, 1, Some(1)),
        ];
        assert_eq!(
            Facts::default().judge(&of(&request)),
            Verdict::Append(vec![Version(1), Version(1), Version(2)])
        );
    }

    #[test]
    fn a_refused_request_leaves_nothing_behind() {
        let mut facts = Facts::default();
        let refusal = Refusal::VersionConflict {
            index: 1,
            expected: Version(5),
            actual: Version(1),
        };
        assert_eq!(
            facts.judge(&of(&[event(1, 1, None), event(2, 1, Some(5))])),
            Verdict::Refuse(refusal)
        );
        assert_eq!(
            facts.judge(&of(&[event(3, 1, Some(0))])),
            Verdict::Append(vec![Version(1)])
        );
    }

    #[test]
    fn a_repeat_is_a_duplicate_whatever_version_it_expects() {
        let first = event(1, 1, Some(0));
        let mut facts = Facts::default();
        facts.events.insert(first.id, stored(&first));
        facts.aggregates.insert(
            first.aggregate_id,
            (first.aggregate_type.clone(), Version(9)),
        );
        assert_eq!(facts.judge(&of(&[first])), Verdict::Duplicate);
    }

    #[test]
    fn an_id_that_stands_for_something_else_and_a_partly_known_request_are_refused() {
        let first = event(1, 1, None);
        let mut facts = Facts::default();
        facts.events.insert(first.id, stored(&first));
        let mut other = first.clone();
        other.data = Json::stored("[]".to_owned());
        assert_eq!(
            facts.judge(&of(&[other])),
            Verdict::Refuse(Refusal::IdReused {
                index: 0,
                id: first.id
            })
        );
        let partly = [event(2, 1, None), first.clone()];
        assert_eq!(
            facts.judge(&of(&partly)),
            Verdict::Refuse(Refusal::IdReused {
                index: 1,
                id: first.id
            })
        );
    }

    #[test]
    fn another_type_is_refused() {
        let mut facts = Facts::default();
        let first = event(1, 1, None);
        facts.judge(&of(std::slice::from_ref(&first)));
        let mut other = event(2, 1, None);
        other.aggregate_type = AggregateType::new("order").expect("a name");
        let expected = other.aggregate_type.clone();
        assert_eq!(
            facts.judge(&of(&[other])),
            Verdict::Refuse(Refusal::TypeMismatch {
                index: 0,
                expected,
                actual: first.aggregate_type
            })
        );
    }

    #[test]
    fn a_command_is_recorded_once_and_settled_while_it_is_pending() {
        let mut facts = Facts::default();
        let known = |id| Verdict::Refuse(Refusal::CommandKnown { id });
        let settled = |id| Verdict::Refuse(Refusal::CommandSettled { id });
        let (record, settle) = (step(1, 1, true, None), step(1, 1, false, None));
        let id = record.id;
        assert_eq!(
            facts.judge(&alone(record.clone())),
            Verdict::Append(Vec::new())
        );
        assert_eq!(
            facts.judge(&alone(settle.clone())),
            settled(id),
            "it is not there"
        );
        facts.commands.insert(id, CommandStatus::Pending);
        assert_eq!(facts.judge(&alone(record.clone())), known(id));
        assert_eq!(
            facts.judge(&alone(settle.clone())),
            Verdict::Append(Vec::new())
        );
        facts.commands.insert(id, CommandStatus::Rejected);
        assert_eq!(facts.judge(&alone(record)), known(id));
        assert_eq!(facts.judge(&alone(settle)), settled(id));
    }

    #[test]
    fn a_command_without_events_is_judged_by_its_aggregate_too() {
        let mut facts = Facts::default();
        facts.judge(&of(&[event(1, 1, None)]));
        assert_eq!(
            facts.judge(&alone(step(1, 1, true, Some(1)))),
            Verdict::Append(Vec::new())
        );
        let refusal = Refusal::VersionConflict {
            index: 0,
            expected: Version(0),
            actual: Version(1),
        };
        assert_eq!(
            facts.judge(&alone(step(2, 1, true, Some(0)))),
            Verdict::Refuse(refusal)
        );
        let mut other = step(3, 1, true, None);
        other.aggregate_type = AggregateType::new("order").ok();
        assert!(matches!(
            facts.judge(&alone(other)),
            Verdict::Refuse(Refusal::TypeMismatch { index: 0, .. })
        ));
    }

    #[test]
    fn a_refused_command_refuses_its_events() {
        let mut facts = Facts::default();
        let request = AppendRequest {
            events: vec![event(1, 1, Some(0))],
            command: Some(step(1, 1, false, Some(0))),
        };
        assert!(matches!(
            facts.judge(&request),
            Verdict::Refuse(Refusal::CommandSettled { .. })
        ));
        assert_eq!(
            facts.judge(&of(&[event(2, 1, Some(0))])),
            Verdict::Append(vec![Version(1)])
        );
    }
}
