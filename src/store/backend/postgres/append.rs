//! The statements that write the logs on PostgreSQL. Each is constant, so that each is planned once a session. Floor 2.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::{
        AggregateId, AggregateType, ExpectedPosition, ExpectedVersion, NewEntry, NewEvent,
        Partition, Position, Timestamp, Version,
        append::{AppendedEntry, AppendedEvent, Outcome, Refusal},
    },
    store::StoreError,
};

const APPEND_EVENTS: &str = "SELECT outcome, position, version, created_at, actual_version, actual_type \
     FROM tidings_append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

const APPEND_ENTRIES: &str = "SELECT outcome, position, entry_position, created_at, actual_position \
     FROM tidings_append_entries($1, $2, $3, $4, $5, $6, $7) ORDER BY ord";

/// Appends a batch of requests by one call of the function that SQL clients use too.
pub(super) async fn events(
    connection: &mut PgConnection,
    partition: Partition,
    requests: &[&[NewEvent]],
) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
    let events = || requests.iter().flat_map(|request| request.iter());
    let numbers: Vec<i32> = (1_i32..)
        .zip(requests)
        .flat_map(|(number, request)| std::iter::repeat_n(number, request.len()))
        .collect();
    let ids: Vec<Uuid> = events().map(|event| event.id.0).collect();
    let check_ids: Vec<bool> = events().map(|event| event.id_is_given).collect();
    let aggregate_ids: Vec<Uuid> = events().map(|event| event.aggregate_id.0).collect();
    let aggregate_types: Vec<&str> = events()
        .map(|event| event.aggregate_type.as_str())
        .collect();
    let event_types: Vec<&str> = events().map(|event| event.event_type.as_str()).collect();
    let data: Vec<&str> = events().map(|event| event.data.as_str()).collect();
    let metadata: Vec<&str> = events().map(|event| event.metadata.as_str()).collect();
    let expected: Vec<Option<i32>> = events()
        .map(|event| match event.expected_version {
            ExpectedVersion::Any => None,
            ExpectedVersion::Exactly(version) => Some(version.0),
        })
        .collect();
    let row = sqlx::query(APPEND_EVENTS)
        .bind(partition.number())
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
        .fetch_one(connection)
        .await
        .map_err(while_running)?;
    let answer = EventsAnswer::read(&row).map_err(while_running)?;
    let mut at = 0;
    requests
        .iter()
        .map(|request| {
            let outcome = answer.outcome(request, at);
            at += request.len();
            outcome.map_err(while_running)
        })
        .collect()
}

/// For each event the place in the batch, from 1, of the first event of the same aggregate.
fn slots(aggregate_ids: &[Uuid]) -> Vec<i32> {
    let mut first: HashMap<Uuid, i32> = HashMap::with_capacity(aggregate_ids.len());
    (1..)
        .zip(aggregate_ids)
        .map(|(place, id)| *first.entry(*id).or_insert(place))
        .collect()
}

/// The function's answer: an array for each column, with an element for each event.
struct EventsAnswer {
    outcomes: Vec<Option<String>>,
    positions: Vec<Option<i64>>,
    versions: Vec<Option<i32>>,
    created_at: Timestamp,
    actual_versions: Vec<Option<i32>>,
    actual_types: Vec<Option<String>>,
}

impl EventsAnswer {
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

    /// What became of a request whose first event is at place `start` of the batch.
    fn outcome(
        &self,
        request: &[NewEvent],
        start: usize,
    ) -> Result<Outcome<AppendedEvent>, sqlx::Error> {
        let mut appended = Vec::with_capacity(request.len());
        let mut duplicate = false;
        let mut refusal = None;
        for (index, event) in request.iter().enumerate() {
            let at = start + index;
            match (
                element(&self.outcomes, at).as_deref(),
                element(&self.positions, at),
            ) {
                (None, Some(position)) => appended.push(AppendedEvent {
                    position: Position(position),
                    version: Version(
                        element(&self.versions, at).ok_or_else(|| unknown_outcome("no version"))?,
                    ),
                    created_at: self.created_at,
                }),
                (None, None) => {}
                (Some("duplicate"), _) => duplicate = true,
                (Some(reason), _) => refusal = Some(self.refusal(reason, index, event, at)?),
            }
        }
        Ok(match refusal {
            Some(refusal) => Outcome::Refused(refusal),
            None if duplicate => Outcome::Duplicate,
            None if appended.len() == request.len() => Outcome::Appended(appended),
            None => return Err(unknown_outcome("nothing")),
        })
    }

    fn refusal(
        &self,
        reason: &str,
        index: usize,
        event: &NewEvent,
        at: usize,
    ) -> Result<Refusal, sqlx::Error> {
        let missing = || unknown_outcome(reason);
        Ok(match (reason, event.expected_version) {
            ("id_reused", _) => Refusal::IdReused {
                index,
                id: event.id,
            },
            ("type_mismatch", _) => Refusal::TypeMismatch {
                index,
                expected: event.aggregate_type.clone(),
                actual: AggregateType::stored(element(&self.actual_types, at).ok_or_else(missing)?),
            },
            ("version_conflict", ExpectedVersion::Exactly(expected)) => Refusal::VersionConflict {
                index,
                expected,
                actual: Version(element(&self.actual_versions, at).ok_or_else(missing)?),
            },
            _ => return Err(missing()),
        })
    }
}

fn element<T: Clone>(array: &[Option<T>], at: usize) -> Option<T> {
    array.get(at).cloned().flatten()
}

/// Appends a batch of entries by one call of the function that SQL clients use too.
pub(super) async fn entries(
    connection: &mut PgConnection,
    partition: Partition,
    entries: &[&NewEntry],
) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
    let stream_names: Vec<&str> = entries
        .iter()
        .map(|entry| entry.stream_name.as_str())
        .collect();
    let event_ids: Vec<Uuid> = entries.iter().map(|entry| entry.event_id.0).collect();
    let event_types: Vec<&str> = entries
        .iter()
        .map(|entry| entry.event_type.as_str())
        .collect();
    let data: Vec<&str> = entries.iter().map(|entry| entry.data.as_str()).collect();
    let event_partitions: Vec<Option<i16>> = vec![None; entries.len()];
    let expected: Vec<Option<i64>> = entries
        .iter()
        .map(|entry| match entry.expected_position {
            ExpectedPosition::Any => None,
            ExpectedPosition::Exactly(position) => Some(position.0),
        })
        .collect();
    let rows = sqlx::query(APPEND_ENTRIES)
        .bind(partition.number())
        .bind(stream_names)
        .bind(event_ids)
        .bind(event_types)
        .bind(data)
        .bind(event_partitions)
        .bind(expected)
        .fetch_all(connection)
        .await
        .map_err(while_running)?;
    if rows.len() != entries.len() {
        return Err(while_running(sqlx::Error::RowNotFound));
    }
    rows.iter()
        .zip(entries)
        .map(|(row, entry)| entry_outcome(row, entry).map_err(while_running))
        .collect()
}

/// What became of one entry, from the columns that both functions answer.
pub(super) fn entry_outcome(
    row: &PgRow,
    entry: &NewEntry,
) -> Result<Outcome<AppendedEntry>, sqlx::Error> {
    Ok(match row.try_get::<&str, _>(0)? {
        "appended" => Outcome::Appended(vec![AppendedEntry {
            position: Position(row.try_get(1)?),
            entry_position: Position(row.try_get(2)?),
            created_at: row.try_get::<DateTime<Utc>, _>(3)?.into(),
        }]),
        "duplicate" => Outcome::Duplicate,
        "id_reused" => Outcome::Refused(Refusal::IdReused {
            index: 0,
            id: entry.event_id,
        }),
        "position_conflict" => {
            let ExpectedPosition::Exactly(expected) = entry.expected_position else {
                return Err(unknown_outcome("position_conflict"));
            };
            Outcome::Refused(Refusal::PositionConflict {
                expected,
                actual: Position(row.try_get(4)?),
            })
        }
        other => return Err(unknown_outcome(other)),
    })
}

/// Takes the partition's lock, as everybody does who writes to its log of events.
pub(super) async fn lock_events(
    connection: &mut PgConnection,
    partition: Partition,
) -> Result<(), StoreError> {
    sqlx::query(
        "SELECT 1 FROM partition_locks WHERE partition_no = $1 AND log = 'events' FOR UPDATE",
    )
    .bind(partition.number())
    .fetch_one(connection)
    .await
    .map(drop)
    .map_err(while_running)
}

/// Makes an aggregate; false where it is there already.
pub(super) async fn insert_aggregate(
    connection: &mut PgConnection,
    partition: Partition,
    id: AggregateId,
    aggregate_type: &AggregateType,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) \
               SELECT $1, $2, $3, 0, now, now FROM (SELECT clock_timestamp() AS now) AS clock ON CONFLICT DO NOTHING";
    sqlx::query(sql)
        .bind(partition.number())
        .bind(id.0)
        .bind(aggregate_type.as_str())
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(while_running)
}

/// The row of an aggregate that is there.
pub(super) async fn aggregate_row(
    connection: &mut PgConnection,
    partition: Partition,
    id: AggregateId,
) -> Result<PgRow, StoreError> {
    let sql = "SELECT id, aggregate_type, current_version, created_at, updated_at \
               FROM aggregates WHERE partition_no = $1 AND id = $2";
    sqlx::query(sql)
        .bind(partition.number())
        .bind(id.0)
        .fetch_one(connection)
        .await
        .map_err(while_running)
}

pub(super) fn unknown_outcome(outcome: &str) -> sqlx::Error {
    sqlx::Error::Decode(
        format!("a function of the database answers `{outcome}`, which this server does not know")
            .into(),
    )
}
