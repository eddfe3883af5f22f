//! The statements that write the logs on PostgreSQL. Each is constant, so that each is planned once a session. Floor 2.

mod across;
mod events;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::{
        AggregateId, AggregateType, Command, ExpectedPosition, NewEntry, Partition, Position,
        append::{AppendedEntry, Outcome, Refusal},
    },
    store::StoreError,
};

pub(super) use across::{append as events_across, begin_waiting};
pub(super) use events::append as events;

const APPEND_ENTRIES: &str = "SELECT outcome, position, entry_position, created_at, actual_position \
     FROM tidings_append_entries($1, $2, $3, $4, $5, $6, $7) ORDER BY ord";

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
        "appended" => {
            let created_at = row.try_get::<DateTime<Utc>, _>(3)?.into();
            let place = AppendedEntry {
                position: Position(row.try_get(1)?),
                entry_position: Position(row.try_get(2)?),
                created_at,
            };
            Outcome::Appended {
                at: created_at,
                places: vec![place],
            }
        }
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

/// Puts a command off that could not be decided, if nobody has tried or settled it meanwhile.
pub(super) async fn postpone_command(
    connection: &mut PgConnection,
    command: &Command,
    reason: &str,
    delay_ms: i64,
) -> Result<bool, StoreError> {
    let sql = "UPDATE commands SET attempts = attempts + 1, reason = $4, \
               not_before = statement_timestamp() + $5 * interval '1 millisecond' \
               WHERE partition_no = $1 AND id = $2 AND status = 'PENDING' AND attempts = $3";
    sqlx::query(sql)
        .bind(command.partition.number())
        .bind(command.id.0)
        .bind(command.attempts)
        .bind(reason)
        .bind(delay_ms)
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(while_running)
}

pub(super) fn unknown_outcome(outcome: &str) -> sqlx::Error {
    sqlx::Error::Decode(
        format!("a function of the database answers `{outcome}`, which this server does not know")
            .into(),
    )
}
