//! The statements that write the logs on SQLite, inside the one writer's transaction. Floor 2.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{
    self, AssertSqlSafe, Row, Sqlite, SqliteConnection, query::Query, sqlite::SqliteArguments,
    sqlite::SqliteRow,
};
use uuid::Uuid;

use super::while_running;
use crate::{
    domain::{
        Aggregate, AggregateId, AggregateType, EventId, EventType, Json, NewEntry, NewEvent,
        Partition, Position, StreamName, Timestamp, Version,
        append::{AppendedEntry, AppendedEvent, Outcome, Refusal},
        judge::{Facts, KnownEvent, Verdict},
    },
    store::StoreError,
};

/// Statements with many rows come in these sizes, so that few texts are ever prepared.
const ROWS_A_STATEMENT: [usize; 4] = [64, 16, 4, 1];

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Appends a batch of requests, each judged after the ones before it.
pub(super) async fn events(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&[NewEvent]],
    now: Timestamp,
) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
    let (head, created_at) = head(
        connection,
        "SELECT position, created_at FROM events WHERE partition_no = $1 ORDER BY position DESC LIMIT 1",
        partition,
        now,
    )
    .await?;
    let mut facts = Facts {
        events: known_events(connection, partition, requests).await?,
        aggregates: known_aggregates(connection, partition, requests).await?,
    };
    let there_before: HashSet<AggregateId> = facts.aggregates.keys().copied().collect();

    let mut new = Vec::new();
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        outcomes.push(match facts.judge(request) {
            Verdict::Append(versions) => {
                let places = versions.into_iter().zip(*request).map(|(version, event)| {
                    let position = Position(head.0 + 1 + new.len() as i64);
                    new.push((position, version, event));
                    AppendedEvent {
                        position,
                        version,
                        created_at,
                    }
                });
                Outcome::Appended(places.collect())
            }
            Verdict::Duplicate => Outcome::Duplicate,
            Verdict::Refuse(refusal) => Outcome::Refused(refusal),
        });
    }
    if new.is_empty() {
        return Ok(outcomes);
    }

    let touched: HashMap<AggregateId, &NewEvent> = new
        .iter()
        .map(|(_, _, event)| (event.aggregate_id, *event))
        .collect();
    let (old, fresh): (Vec<_>, Vec<_>) = touched
        .into_values()
        .partition(|event| there_before.contains(&event.aggregate_id));
    let version = |event: &NewEvent| {
        facts
            .aggregates
            .get(&event.aggregate_id)
            .map_or(0, |(_, version)| version.0)
    };
    insert_rows(
        connection,
        "INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) VALUES",
        6,
        &fresh,
        |query, event| {
            query
                .bind(partition.number())
                .bind(event.aggregate_id.0)
                .bind(event.aggregate_type.as_str())
                .bind(version(event))
                .bind(created_at.to_utc())
                .bind(created_at.to_utc())
        },
    )
    .await?;
    for event in old {
        sqlx::query("UPDATE aggregates SET current_version = $1, updated_at = $2 WHERE partition_no = $3 AND id = $4")
            .bind(version(event))
            .bind(created_at.to_utc())
            .bind(partition.number())
            .bind(event.aggregate_id.0)
            .execute(&mut *connection)
            .await
            .map_err(while_running)?;
    }
    insert_rows(
        connection,
        "INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, \
         event_metadata, version, created_at) VALUES",
        10,
        &new,
        |query, (position, version, event)| {
            query
                .bind(partition.number())
                .bind(position.0)
                .bind(event.id.0)
                .bind(event.aggregate_id.0)
                .bind(event.aggregate_type.as_str())
                .bind(event.event_type.as_str())
                .bind(event.data.as_str())
                .bind(event.metadata.as_str())
                .bind(version.0)
                .bind(created_at.to_utc())
        },
    )
    .await?;
    Ok(outcomes)
}

/// Appends a batch of entries, each judged after the ones before it.
pub(super) async fn entries(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[&NewEntry],
    now: Timestamp,
) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
    let (head, created_at) = head(
        connection,
        "SELECT entry_position, created_at FROM event_streams WHERE partition_no = $1 ORDER BY entry_position DESC LIMIT 1",
        partition,
        now,
    )
    .await?;
    let mut positions: HashMap<&StreamName, Position> = HashMap::new();
    let mut new = Vec::new();
    let mut outcomes = Vec::with_capacity(entries.len());
    for &entry in entries {
        let present = match positions.get(&entry.stream_name) {
            Some(position) => *position,
            None => stream_position(connection, partition, &entry.stream_name).await?,
        };
        positions.insert(&entry.stream_name, present);
        if let Some(known) = known_entry(connection, partition, entry).await? {
            outcomes.push(known);
        } else if !entry.expected_position.is_met_by(present) {
            let crate::domain::ExpectedPosition::Exactly(expected) = entry.expected_position else {
                continue;
            };
            outcomes.push(Outcome::Refused(Refusal::PositionConflict {
                expected,
                actual: present,
            }));
        } else {
            if present == Position::START {
                insert_stream(connection, partition, &entry.stream_name, created_at).await?;
            }
            let position = present.next();
            let entry_position = Position(head.0 + 1 + new.len() as i64);
            positions.insert(&entry.stream_name, position);
            new.push((position, entry_position, entry));
            outcomes.push(Outcome::Appended(vec![AppendedEntry {
                entry_position,
                position,
                created_at,
            }]));
        }
    }
    insert_rows(
        connection,
        "INSERT INTO event_streams (partition_no, stream_name, position, entry_position, event_id, event_type, \
         event_data, created_at) VALUES",
        8,
        &new,
        |query, (position, entry_position, entry)| {
            query
                .bind(partition.number())
                .bind(entry.stream_name.as_str())
                .bind(position.0)
                .bind(entry_position.0)
                .bind(entry.event_id.0)
                .bind(entry.event_type.as_str())
                .bind(entry.data.as_str())
                .bind(created_at.to_utc())
        },
    )
    .await?;
    Ok(outcomes)
}

/// Makes an aggregate unless it is there. Answers it, and whether it was made.
pub(super) async fn create_aggregate(
    connection: &mut SqliteConnection,
    partition: Partition,
    id: AggregateId,
    aggregate_type: &AggregateType,
    now: Timestamp,
) -> Result<(Aggregate, bool), StoreError> {
    let made = sqlx::query(
        "INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) \
         VALUES ($1, $2, $3, 0, $4, $4) ON CONFLICT DO NOTHING",
    )
    .bind(partition.number())
    .bind(id.0)
    .bind(aggregate_type.as_str())
    .bind(now.to_utc())
    .execute(&mut *connection)
    .await
    .map_err(while_running)?;
    let row = sqlx::query(
        "SELECT id, aggregate_type, current_version, created_at, updated_at \
         FROM aggregates WHERE partition_no = $1 AND id = $2",
    )
    .bind(partition.number())
    .bind(id.0)
    .fetch_one(connection)
    .await
    .map_err(while_running)?;
    Ok((
        crate::store::rows::aggregate(&row.into())?,
        made.rows_affected() > 0,
    ))
}

/// The newest position of a log, and the time for what comes next: never before the newest one's.
async fn head(
    connection: &mut SqliteConnection,
    sql: &'static str,
    partition: Partition,
    now: Timestamp,
) -> Result<(Position, Timestamp), StoreError> {
    let row = sqlx::query(sql)
        .bind(partition.number())
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let Some(row) = row else {
        return Ok((Position::START, now));
    };
    let position = Position(row.try_get(0).map_err(while_running)?);
    let newest = Timestamp::from(row.try_get::<DateTime<Utc>, _>(1).map_err(while_running)?);
    Ok((position, now.max(newest)))
}

async fn known_events(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&[NewEvent]],
) -> Result<HashMap<EventId, KnownEvent>, StoreError> {
    let given: Vec<Uuid> = requests
        .iter()
        .flat_map(|request| request.iter())
        .filter(|event| event.id_is_given)
        .map(|event| event.id.0)
        .collect();
    let sql = "SELECT id, aggregate_id, aggregate_type, event_type, event_data FROM events \
               WHERE partition_no = $1 AND id IN";
    select_ids(connection, sql, partition, &given, |row| {
        let known = KnownEvent {
            aggregate_id: AggregateId(row.try_get(1)?),
            aggregate_type: AggregateType::stored(row.try_get(2)?),
            event_type: EventType::stored(row.try_get(3)?),
            data: Json::stored(row.try_get(4)?),
        };
        Ok((EventId(row.try_get(0)?), known))
    })
    .await
}

async fn known_aggregates(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&[NewEvent]],
) -> Result<HashMap<AggregateId, (AggregateType, Version)>, StoreError> {
    let ids: HashSet<Uuid> = requests
        .iter()
        .flat_map(|request| request.iter())
        .map(|event| event.aggregate_id.0)
        .collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let sql = "SELECT id, aggregate_type, current_version FROM aggregates WHERE partition_no = $1 AND id IN";
    select_ids(connection, sql, partition, &ids, |row| {
        Ok((
            AggregateId(row.try_get(0)?),
            (
                AggregateType::stored(row.try_get(1)?),
                Version(row.try_get(2)?),
            ),
        ))
    })
    .await
}

async fn stream_position(
    connection: &mut SqliteConnection,
    partition: Partition,
    name: &StreamName,
) -> Result<Position, StoreError> {
    sqlx::query_scalar("SELECT COALESCE(MAX(position), 0) FROM event_streams WHERE partition_no = $1 AND stream_name = $2")
        .bind(partition.number())
        .bind(name.as_str())
        .fetch_one(connection)
        .await
        .map(Position)
        .map_err(while_running)
}

async fn known_entry(
    connection: &mut SqliteConnection,
    partition: Partition,
    entry: &NewEntry,
) -> Result<Option<Outcome<AppendedEntry>>, StoreError> {
    let sql = "SELECT event_type, event_data FROM event_streams \
               WHERE partition_no = $1 AND stream_name = $2 AND event_id = $3";
    let row = sqlx::query(sql)
        .bind(partition.number())
        .bind(entry.stream_name.as_str())
        .bind(entry.event_id.0)
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let Some(row) = row else { return Ok(None) };
    let event_type: String = row.try_get(0).map_err(while_running)?;
    let data = Json::stored(row.try_get(1).map_err(while_running)?);
    Ok(Some(
        if event_type == entry.event_type.as_str() && data.same_value(&entry.data) {
            Outcome::Duplicate
        } else {
            Outcome::Refused(Refusal::IdReused {
                index: 0,
                id: entry.event_id,
            })
        },
    ))
}

async fn insert_stream(
    connection: &mut SqliteConnection,
    partition: Partition,
    name: &StreamName,
    created_at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO streams (partition_no, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(partition.number())
        .bind(name.as_str())
        .bind(created_at.to_utc())
        .execute(connection)
        .await
        .map(drop)
        .map_err(while_running)
}

/// Looks ids up in chunks of the fixed sizes.
async fn select_ids<K: std::hash::Hash + Eq, V>(
    connection: &mut SqliteConnection,
    sql: &str,
    partition: Partition,
    ids: &[Uuid],
    read: impl Fn(&SqliteRow) -> Result<(K, V), sqlx::Error>,
) -> Result<HashMap<K, V>, StoreError> {
    let mut found = HashMap::with_capacity(ids.len());
    let mut rest = ids;
    for size in ROWS_A_STATEMENT {
        while rest.len() >= size {
            let (chunk, behind) = rest.split_at(size);
            rest = behind;
            let sql = format!("{sql} ({}?)", "?,".repeat(size - 1)).replace("$1", "?");
            let mut query = sqlx::query(AssertSqlSafe(sql)).bind(partition.number());
            for id in chunk {
                query = query.bind(id);
            }
            let rows = query
                .fetch_all(&mut *connection)
                .await
                .map_err(while_running)?;
            for row in &rows {
                let (key, value) = read(row).map_err(while_running)?;
                found.insert(key, value);
            }
        }
    }
    Ok(found)
}

/// Inserts rows in chunks of the fixed sizes.
async fn insert_rows<'r, T>(
    connection: &mut SqliteConnection,
    sql: &str,
    columns: usize,
    rows: &'r [T],
    bind: impl Fn(Bound<'r>, &'r T) -> Bound<'r>,
) -> Result<(), StoreError> {
    let row = format!("({}?)", "?,".repeat(columns - 1));
    let mut rest = rows;
    for size in ROWS_A_STATEMENT {
        while rest.len() >= size {
            let (chunk, behind) = rest.split_at(size);
            rest = behind;
            let sql = format!("{sql} {}{row}", format!("{row},").repeat(size - 1));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for row in chunk {
                query = bind(query, row);
            }
            query
                .execute(&mut *connection)
                .await
                .map_err(while_running)?;
        }
    }
    Ok(())
}
