//! Appending to the log of events on PostgreSQL, by one call of the function that SQL clients use too. Floor 2.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, PgConnection, Postgres, Row, postgres::PgArguments, postgres::PgRow};
use uuid::Uuid;

use super::{super::while_running, unknown_outcome};
use crate::{
    domain::{
        AggregateType, CommandStep, ExpectedVersion, NewEvent, Partition, Position, Timestamp,
        Version,
        append::{AppendRequest, AppendedEvent, Outcome, Refusal},
    },
    store::StoreError,
};

const APPEND: &str = "SELECT outcome, position, version, created_at, actual_version, actual_type \
     FROM tidings_append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

const APPEND_WITH_COMMANDS: &str = "SELECT outcome, position, version, created_at, actual_version, actual_type \
     FROM tidings_append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
     $20, $21)";

type Bound<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// Appends a batch of requests, each judged after the ones before it.
pub(crate) async fn append(
    connection: &mut PgConnection,
    partition: Partition,
    requests: &[&AppendRequest],
) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
    let commands = Commands::of(requests);
    let sql = if commands.steps.is_empty() {
        APPEND
    } else {
        APPEND_WITH_COMMANDS
    };
    let mut query = bind_events(sqlx::query(sql).bind(partition.number()), requests);
    if !commands.steps.is_empty() {
        query = commands.bind(query);
    }
    let row = query.fetch_one(connection).await.map_err(while_running)?;
    let answer = Answer::read(&row).map_err(while_running)?;
    let mut at = 0;
    requests
        .iter()
        .map(|request| {
            let outcome = answer.outcome(request, at);
            at += elements_of(request).count();
            outcome.map_err(while_running)
        })
        .collect()
}

/// One element of the arrays of events.
#[derive(Clone, Copy)]
enum Element<'r> {
    Event(&'r NewEvent),
    /// What stands for a command without events: its aggregate is judged, and nothing is appended.
    Command(&'r CommandStep),
}

fn elements_of(request: &AppendRequest) -> impl Iterator<Item = Element<'_>> {
    let alone = request
        .command
        .as_ref()
        .filter(|_| request.events.is_empty());
    let events = request.events.iter().map(Element::Event);
    events.chain(alone.map(Element::Command))
}

impl<'r> Element<'r> {
    fn event(self) -> Option<&'r NewEvent> {
        match self {
            Self::Event(event) => Some(event),
            Self::Command(_) => None,
        }
    }

    fn aggregate_id(self) -> Uuid {
        match self {
            Self::Event(event) => event.aggregate_id.0,
            Self::Command(step) => step.aggregate_id.0,
        }
    }

    fn aggregate_type(self) -> Option<&'r str> {
        match self {
            Self::Event(event) => Some(event.aggregate_type.as_str()),
            Self::Command(step) => step.aggregate_type.as_ref().map(AggregateType::as_str),
        }
    }

    fn expected_version(self) -> Option<Version> {
        let expected = match self {
            Self::Event(event) => event.expected_version,
            Self::Command(step) => step.expected_version,
        };
        match expected {
            ExpectedVersion::Any => None,
            ExpectedVersion::Exactly(version) => Some(version),
        }
    }
}

fn bind_events<'q>(query: Bound<'q>, requests: &[&'q AppendRequest]) -> Bound<'q> {
    let elements = || requests.iter().flat_map(|request| elements_of(request));
    let events = || elements().map(Element::event);
    let numbers: Vec<i32> = (1_i32..)
        .zip(requests)
        .flat_map(|(number, request)| elements_of(request).map(move |_| number))
        .collect();
    let aggregate_ids: Vec<Uuid> = elements().map(Element::aggregate_id).collect();
    let ids: Vec<Option<Uuid>> = events().map(|event| Some(event?.id.0)).collect();
    let check_ids: Vec<bool> = events()
        .map(|event| event.is_some_and(|event| event.id_is_given))
        .collect();
    let aggregate_types: Vec<Option<&str>> = elements().map(Element::aggregate_type).collect();
    let event_types: Vec<Option<&str>> = events()
        .map(|event| Some(event?.event_type.as_str()))
        .collect();
    let data: Vec<Option<&str>> = events().map(|event| Some(event?.data.as_str())).collect();
    let metadata: Vec<Option<&str>> = events()
        .map(|event| Some(event?.metadata.as_str()))
        .collect();
    let expected: Vec<Option<i32>> = elements()
        .map(|element| element.expected_version().map(|version| version.0))
        .collect();
    query
        .bind(numbers)
        .bind(slots(&aggregate_ids))
        .bind(ids)
        .bind(check_ids)
        .bind(aggregate_ids)
        .bind(aggregate_types)
        .bind(event_types)
        .bind(data)
        .bind(metadata)
        .bind(expected)
}

/// For each element the place in the batch, from 1, of the first one of the same aggregate.
fn slots(aggregate_ids: &[Uuid]) -> Vec<i32> {
    let mut first: HashMap<Uuid, i32> = HashMap::with_capacity(aggregate_ids.len());
    (1..)
        .zip(aggregate_ids)
        .map(|(place, id)| *first.entry(*id).or_insert(place))
        .collect()
}

/// The commands of a batch.
struct Commands<'r> {
    /// Each with the place of the first element of its request, from 1, and the events that it causes.
    steps: Vec<(i32, &'r [NewEvent], &'r CommandStep)>,
}

impl<'r> Commands<'r> {
    fn of(requests: &[&'r AppendRequest]) -> Self {
        let mut steps = Vec::new();
        let mut place = 1;
        for request in requests {
            if let Some(step) = &request.command {
                steps.push((place, request.events.as_slice(), step));
            }
            place += i32::try_from(elements_of(request).count()).unwrap_or(i32::MAX);
        }
        Self { steps }
    }

    fn bind(&self, query: Bound<'r>) -> Bound<'r> {
        let steps = || self.steps.iter().map(|(_, _, step)| *step);
        let records = || steps().map(|step| step.record.as_ref());
        let places: Vec<i32> = self.steps.iter().map(|(place, ..)| *place).collect();
        let events: Vec<i32> = self
            .steps
            .iter()
            .map(|(_, events, _)| i32::try_from(events.len()).unwrap_or(i32::MAX))
            .collect();
        let ids: Vec<Uuid> = steps().map(|step| step.id.0).collect();
        let check_ids: Vec<bool> = records()
            .map(|record| record.is_none_or(|command| command.id_is_given))
            .collect();
        let types: Vec<Option<&str>> = records()
            .map(|record| Some(record?.command_type.as_str()))
            .collect();
        let data = self.steps.iter().map(|(_, events, step)| {
            let data = step.record.as_ref()?.data.as_str();
            // Most commands' data becomes their event's as it is.
            let is_sent = events
                .first()
                .is_some_and(|event| event.data.as_str() == data);
            (!is_sent).then_some(data)
        });
        let data: Vec<Option<&str>> = data.collect();
        let metadata: Vec<Option<&str>> = records()
            .map(|record| Some(record?.metadata.as_str()).filter(|metadata| *metadata != "{}"))
            .collect();
        let not_before: Vec<Option<DateTime<Utc>>> = records()
            .map(|record| record?.not_before.map(Timestamp::to_utc))
            .collect();
        let statuses: Vec<&str> = steps().map(|step| step.status.as_str()).collect();
        let reasons: Vec<Option<&str>> = steps().map(|step| step.reason.as_deref()).collect();
        query
            .bind(places)
            .bind(events)
            .bind(ids)
            .bind(if check_ids.contains(&true) {
                check_ids
            } else {
                Vec::new()
            })
            .bind(types)
            .bind(unless_all_none(data))
            .bind(unless_all_none(metadata))
            .bind(unless_all_none(not_before))
            .bind(statuses)
            .bind(unless_all_none(reasons))
    }
}

/// The function takes an array that is not there for one of NULLs.
fn unless_all_none<T>(array: Vec<Option<T>>) -> Vec<Option<T>> {
    if array.iter().all(Option::is_none) {
        return Vec::new();
    }
    array
}

/// The function's answer: an array for each column, with one element for each of the batch.
struct Answer {
    outcomes: Vec<Option<String>>,
    positions: Vec<Option<i64>>,
    versions: Vec<Option<i32>>,
    created_at: Timestamp,
    actual_versions: Vec<Option<i32>>,
    actual_types: Vec<Option<String>>,
}

impl Answer {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            outcomes: row.try_get(0)?,
            positions: row.try_get(1)?,
            versions: row.try_get(2)?,
            created_at: row.try_get::<DateTime<Utc>, _>(3)?.into(),
            actual_versions: row.try_get(4)?,
            actual_types: row.try_get(5)?,
        })
    }

    /// What became of a request whose first element is at place `start` of the batch.
    fn outcome(
        &self,
        request: &AppendRequest,
        start: usize,
    ) -> Result<Outcome<AppendedEvent>, sqlx::Error> {
        let mut places = Vec::with_capacity(request.events.len());
        let mut command_done = false;
        let mut duplicate = false;
        let mut refusal = None;
        for (index, element) in elements_of(request).enumerate() {
            let at = start + index;
            match (
                one_of(&self.outcomes, at).as_deref(),
                one_of(&self.positions, at),
            ) {
                (None, Some(position)) => places.push(AppendedEvent {
                    position: Position(position),
                    version: Version(
                        one_of(&self.versions, at).ok_or_else(|| unknown_outcome("no version"))?,
                    ),
                    created_at: self.created_at,
                }),
                (None, None) => {}
                (Some("command"), _) => command_done = true,
                (Some("duplicate"), _) => duplicate = true,
                (Some(reason), _) => {
                    let command = request.command.as_ref();
                    refusal = Some(self.refusal(reason, index, element, command, at)?);
                }
            }
        }
        let is_done = places.len() == request.events.len()
            && (command_done || !places.is_empty() || request.command.is_none());
        Ok(match refusal {
            Some(refusal) => Outcome::Refused(refusal),
            None if duplicate => Outcome::Duplicate,
            None if is_done => Outcome::Appended {
                at: self.created_at,
                places,
            },
            None => return Err(unknown_outcome("nothing")),
        })
    }

    fn refusal(
        &self,
        reason: &str,
        index: usize,
        element: Element<'_>,
        command: Option<&CommandStep>,
        at: usize,
    ) -> Result<Refusal, sqlx::Error> {
        let missing = || unknown_outcome(reason);
        let command_id = || command.map(|step| step.id).ok_or_else(missing);
        Ok(match reason {
            "id_reused" => Refusal::IdReused {
                index,
                id: element.event().ok_or_else(missing)?.id,
            },
            "type_mismatch" => Refusal::TypeMismatch {
                index,
                expected: AggregateType::stored(
                    element.aggregate_type().ok_or_else(missing)?.to_owned(),
                ),
                actual: AggregateType::stored(one_of(&self.actual_types, at).ok_or_else(missing)?),
            },
            "version_conflict" => Refusal::VersionConflict {
                index,
                expected: element.expected_version().ok_or_else(missing)?,
                actual: Version(one_of(&self.actual_versions, at).ok_or_else(missing)?),
            },
            "command_known" => Refusal::CommandKnown { id: command_id()? },
            "command_settled" => Refusal::CommandSettled { id: command_id()? },
            _ => return Err(missing()),
        })
    }
}

fn one_of<T: Clone>(array: &[Option<T>], at: usize) -> Option<T> {
    array.get(at).cloned().flatten()
}
