//! Judges requests to append one after another: which are accepted, and at which versions. Floor 0.
//!
//! PostgreSQL does the same inside its function, so that SQL clients and the server cannot disagree.

use std::collections::HashMap;

use super::{
    AggregateId, AggregateType, EventId, EventType, ExpectedVersion, Json, NewEvent, Version,
    append::Refusal,
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
    pub fn judge(&mut self, request: &[NewEvent]) -> Verdict {
        if let Some(verdict) = self.judge_ids(request) {
            return verdict;
        }
        let mut accepted: HashMap<AggregateId, (AggregateType, Version)> = HashMap::new();
        let mut versions = Vec::with_capacity(request.len());
        for (index, event) in request.iter().enumerate() {
            let present = accepted
                .get(&event.aggregate_id)
                .or_else(|| self.aggregates.get(&event.aggregate_id));
            let version = present.map_or(Version::NONE, |(_, version)| *version);
            if let Some((actual, _)) = present.filter(|(actual, _)| *actual != event.aggregate_type)
            {
                let (expected, actual) = (event.aggregate_type.clone(), actual.clone());
                return Verdict::Refuse(Refusal::TypeMismatch {
                    index,
                    expected,
                    actual,
                });
            }
            if let ExpectedVersion::Exactly(expected) = event.expected_version
                && expected != version
            {
                return Verdict::Refuse(Refusal::VersionConflict {
                    index,
                    expected,
                    actual: version,
                });
            }
            versions.push(version.next());
            accepted.insert(
                event.aggregate_id,
                (event.aggregate_type.clone(), version.next()),
            );
        }
        self.aggregates.extend(accepted);
        Verdict::Append(versions)
    }

    fn judge_ids(&self, request: &[NewEvent]) -> Option<Verdict> {
        if self.events.is_empty() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

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
            facts.judge(&[event(1, 1, Some(0))]),
            Verdict::Append(vec![Version(1)])
        );
        let refusal = Refusal::VersionConflict {
            index: 0,
            expected: Version(0),
            actual: Version(1),
        };
        assert_eq!(
            facts.judge(&[event(2, 1, Some(0))]),
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
            Facts::default().judge(&request),
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
            facts.judge(&[event(1, 1, None), event(2, 1, Some(5))]),
            Verdict::Refuse(refusal)
        );
        assert_eq!(
            facts.judge(&[event(3, 1, Some(0))]),
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
        assert_eq!(facts.judge(&[first]), Verdict::Duplicate);
    }

    #[test]
    fn an_id_that_stands_for_something_else_and_a_partly_known_request_are_refused() {
        let first = event(1, 1, None);
        let mut facts = Facts::default();
        facts.events.insert(first.id, stored(&first));
        let mut other = first.clone();
        other.data = Json::stored("[]".to_owned());
        assert_eq!(
            facts.judge(&[other]),
            Verdict::Refuse(Refusal::IdReused {
                index: 0,
                id: first.id
            })
        );
        let partly = [event(2, 1, None), first.clone()];
        assert_eq!(
            facts.judge(&partly),
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
        facts.judge(std::slice::from_ref(&first));
        let mut other = event(2, 1, None);
        other.aggregate_type = AggregateType::new("order").expect("a name");
        let expected = other.aggregate_type.clone();
        assert_eq!(
            facts.judge(&[other]),
            Verdict::Refuse(Refusal::TypeMismatch {
                index: 0,
                expected,
                actual: first.aggregate_type
            })
        );
    }
}
