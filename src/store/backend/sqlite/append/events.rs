//! Appending to the log of events on SQLite. Floor 2.

use std::collections::{HashMap, HashSet};

use sea_orm::sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::{
    commands::{self, Done},
    statements::{OverRows, head},
};
use crate::{
    domain::{
        AggregateId, AggregateType, EventId, EventType, Json, NewEvent, Partition, Position,
        Timestamp, Version,
        append::{AppendRequest, AppendedEvent, Outcome},
        judge::{Facts, KnownEvent, Verdict},
    },
    store::StoreError,
};

const HEAD: &str = "SELECT position, created_at FROM events WHERE partition_no = $1 ORDER BY position DESC LIMIT 1";

const KNOWN_EVENTS: OverRows<'_> = OverRows {
    sql: "SELECT e.id, e.aggregate_id, e.aggregate_type, e.event_type, e.event_data \
          FROM {rows} r CROSS JOIN events e ON e.partition_no = r.column1 AND e.id = r.column2",
    columns: 2,
};

pub(in super::super) const KNOWN_AGGREGATES: OverRows<'_> = OverRows {
    sql: "SELECT a.id, a.aggregate_type, a.current_version \
          FROM {rows} r CROSS JOIN aggregates a ON a.partition_no = r.column1 AND a.id = r.column2",
    columns: 2,
};

pub(in super::super) const SAVE_AGGREGATES: OverRows<'_> = OverRows {
    sql: "INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) \
          SELECT * FROM {rows} WHERE column1 IS NOT NULL \
          ON CONFLICT (partition_no, id) DO UPDATE \
          SET current_version = excluded.current_version, updated_at = excluded.updated_at",
    columns: 6,
};

pub(in super::super) const INSERT_EVENTS: OverRows<'_> = OverRows {
    sql: "INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, \
          event_metadata, version, created_at) SELECT * FROM {rows} WHERE column1 IS NOT NULL",
    columns: 10,
};

/// An event that was accepted, with its place.
type Placed<'r> = (Position, Version, &'r NewEvent);

/// Appends a batch of requests, each judged after the ones before it.
pub(crate) async fn append(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&AppendRequest],
    now: Timestamp,
) -> Result<Vec<Outcome<AppendedEvent>>, StoreError> {
    let (head, created_at) = head(connection, HEAD, partition, now).await?;
    let created_at = commands::after_pending(connection, partition, requests, created_at).await?;
    let mut facts = Facts {
        events: known_events(connection, partition, requests).await?,
        aggregates: known_aggregates(connection, partition, requests).await?,
        commands: commands::known(connection, partition, requests).await?,
    };
    let mut new: Vec<Placed<'_>> = Vec::new();
    let mut done: Vec<Done<'_>> = Vec::new();
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        outcomes.push(match facts.judge(request) {
            Verdict::Append(versions) => {
                done.extend(Done::of(request, &versions));
                let events = versions.into_iter().zip(&request.events);
                let places = events.map(|(version, event)| {
                    let position = Position(head.0 + 1 + new.len() as i64);
                    new.push((position, version, event));
                    AppendedEvent {
                        position,
                        version,
                        created_at,
                    }
                });
                Outcome::Appended {
                    at: created_at,
                    places: places.collect(),
                }
            }
            Verdict::Duplicate => Outcome::Duplicate,
            Verdict::Refuse(refusal) => Outcome::Refused(refusal),
        });
    }
    save_aggregates(connection, partition, &new, created_at).await?;
    insert_events(connection, partition, &new, created_at).await?;
    commands::save(connection, partition, &done, created_at).await?;
    Ok(outcomes)
}

async fn save_aggregates(
    connection: &mut SqliteConnection,
    partition: Partition,
    new: &[Placed<'_>],
    created_at: Timestamp,
) -> Result<(), StoreError> {
    // Of each aggregate its newest event.
    let newest: HashMap<AggregateId, &Placed<'_>> = new
        .iter()
        .map(|placed| (placed.2.aggregate_id, placed))
        .collect();
    let newest: Vec<&Placed<'_>> = newest.into_values().collect();
    SAVE_AGGREGATES
        .execute(connection, &newest, |query, (_, version, event)| {
            query
                .bind(partition.number())
                .bind(event.aggregate_id.0)
                .bind(event.aggregate_type.as_str())
                .bind(version.0)
                .bind(created_at.to_utc())
                .bind(created_at.to_utc())
        })
        .await
}

async fn insert_events(
    connection: &mut SqliteConnection,
    partition: Partition,
    new: &[Placed<'_>],
    created_at: Timestamp,
) -> Result<(), StoreError> {
    INSERT_EVENTS
        .execute(connection, new, |query, (position, version, event)| {
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
        })
        .await
}

async fn known_events(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&AppendRequest],
) -> Result<HashMap<EventId, KnownEvent>, StoreError> {
    let events = requests.iter().flat_map(|request| &request.events);
    let given: Vec<Uuid> = events
        .filter(|event| event.id_is_given)
        .map(|event| event.id.0)
        .collect();
    let known = KNOWN_EVENTS
        .fetch(
            connection,
            &given,
            |query, id| query.bind(partition.number()).bind(id),
            |row| {
                let known = KnownEvent {
                    aggregate_id: AggregateId(row.try_get(1)?),
                    aggregate_type: AggregateType::stored(row.try_get::<&str, _>(2)?),
                    event_type: EventType::stored(row.try_get::<&str, _>(3)?),
                    data: Json::stored(row.try_get::<&str, _>(4)?),
                };
                Ok((EventId(row.try_get(0)?), known))
            },
        )
        .await?;
    Ok(known.into_iter().collect())
}

async fn known_aggregates(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&AppendRequest],
) -> Result<HashMap<AggregateId, (AggregateType, Version)>, StoreError> {
    let events = requests.iter().flat_map(|request| &request.events);
    let commands = requests
        .iter()
        .filter_map(|request| request.command.as_ref());
    let ids: HashSet<Uuid> = events
        .map(|event| event.aggregate_id.0)
        .chain(commands.map(|step| step.aggregate_id.0))
        .collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let known = KNOWN_AGGREGATES
        .fetch(
            connection,
            &ids,
            |query, id| query.bind(partition.number()).bind(id),
            |row| {
                let present = (
                    AggregateType::stored(row.try_get::<&str, _>(1)?),
                    Version(row.try_get(2)?),
                );
                Ok((AggregateId(row.try_get(0)?), present))
            },
        )
        .await?;
    Ok(known.into_iter().collect())
}
