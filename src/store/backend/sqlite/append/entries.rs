//! Appending to the log of stream entries on SQLite. Floor 2.

use std::collections::{HashMap, HashSet};

use sea_orm::sqlx::{Row, SqliteConnection};

use super::statements::{OverRows, head};
use crate::{
    domain::{
        EventId, EventType, ExpectedPosition, Json, NewEntry, Partition, Position, StreamName,
        Timestamp,
        append::{AppendedEntry, Outcome, Refusal},
    },
    store::StoreError,
};

const HEAD: &str = "SELECT entry_position, created_at FROM event_streams WHERE partition_no = $1 ORDER BY entry_position DESC LIMIT 1";

pub(in super::super) const POSITIONS: OverRows<'_> = OverRows {
    sql: "SELECT r.column2, (SELECT COALESCE(MAX(s.position), 0) FROM event_streams s \
          WHERE s.partition_no = r.column1 AND s.stream_name = r.column2) FROM {rows} r WHERE r.column1 IS NOT NULL",
    columns: 2,
};

const KNOWN_ENTRIES: OverRows<'_> = OverRows {
    sql: "SELECT s.stream_name, s.event_id, s.event_type, s.event_data FROM {rows} r CROSS JOIN event_streams s \
          ON s.partition_no = r.column1 AND s.stream_name = r.column2 AND s.event_id = r.column3",
    columns: 3,
};

pub(in super::super) const INSERT_STREAMS: OverRows<'_> = OverRows {
    sql: "INSERT INTO streams (partition_no, name, created_at) SELECT * FROM {rows} WHERE column1 IS NOT NULL \
          ON CONFLICT DO NOTHING",
    columns: 3,
};

pub(in super::super) const INSERT_ENTRIES: OverRows<'_> = OverRows {
    sql: "INSERT INTO event_streams (partition_no, stream_name, position, entry_position, event_id, event_type, \
          event_data, event_partition_no, created_at) SELECT * FROM {rows} WHERE column1 IS NOT NULL",
    columns: 9,
};

/// An entry that was accepted, with its places in the stream and in the partition.
type Placed<'r> = (Position, Position, &'r NewEntry);

/// The entries that are stored already: what happened, and the data.
type Known = HashMap<(StreamName, EventId), (EventType, Json)>;

/// Appends a batch of entries, each judged after the ones before it.
pub(crate) async fn append(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[&NewEntry],
    now: Timestamp,
) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
    append_of(connection, partition, entries, None, now).await
}

/// The same with entries that show events of a partition of ours.
pub(crate) async fn append_of(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[&NewEntry],
    events_in: Option<Partition>,
    now: Timestamp,
) -> Result<Vec<Outcome<AppendedEntry>>, StoreError> {
    let (head, created_at) = head(connection, HEAD, partition, now).await?;
    let known = known_entries(connection, partition, entries).await?;
    let mut positions = positions(connection, partition, entries).await?;
    let mut new: Vec<Placed<'_>> = Vec::new();
    let mut outcomes = Vec::with_capacity(entries.len());
    for &entry in entries {
        let last = positions.entry(entry.stream_name.clone()).or_default();
        outcomes.push(match judge(entry, &known, *last) {
            Some(outcome) => outcome,
            None => {
                *last = last.next();
                let entry_position = Position(head.0 + 1 + new.len() as i64);
                new.push((*last, entry_position, entry));
                let place = AppendedEntry {
                    entry_position,
                    position: *last,
                    created_at,
                };
                Outcome::Appended {
                    at: created_at,
                    places: vec![place],
                }
            }
        });
    }
    insert(connection, partition, &new, events_in, created_at).await?;
    Ok(outcomes)
}

/// What becomes of an entry that is not appended; none for one that is. Its id comes first.
fn judge(entry: &NewEntry, known: &Known, last: Position) -> Option<Outcome<AppendedEntry>> {
    if let Some((event_type, data)) = known.get(&(entry.stream_name.clone(), entry.event_id)) {
        let same = *event_type == entry.event_type && data.same_value(&entry.data);
        return Some(if same {
            Outcome::Duplicate
        } else {
            Outcome::Refused(Refusal::IdReused {
                index: 0,
                id: entry.event_id,
            })
        });
    }
    match entry.expected_position {
        ExpectedPosition::Exactly(expected) if expected != last => {
            Some(Outcome::Refused(Refusal::PositionConflict {
                expected,
                actual: last,
            }))
        }
        _ => None,
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    partition: Partition,
    new: &[Placed<'_>],
    events_in: Option<Partition>,
    created_at: Timestamp,
) -> Result<(), StoreError> {
    let begun: Vec<&NewEntry> = new
        .iter()
        .filter(|(position, _, _)| position.0 == 1)
        .map(|(_, _, entry)| *entry)
        .collect();
    INSERT_STREAMS
        .execute(connection, &begun, |query, entry| {
            query
                .bind(partition.number())
                .bind(entry.stream_name.as_str())
                .bind(created_at.to_utc())
        })
        .await?;
    INSERT_ENTRIES
        .execute(
            connection,
            new,
            |query, (position, entry_position, entry)| {
                query
                    .bind(partition.number())
                    .bind(entry.stream_name.as_str())
                    .bind(position.0)
                    .bind(entry_position.0)
                    .bind(entry.event_id.0)
                    .bind(entry.event_type.as_str())
                    .bind(entry.data.as_str())
                    .bind(events_in.map(Partition::number))
                    .bind(created_at.to_utc())
            },
        )
        .await
}

async fn positions(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[&NewEntry],
) -> Result<HashMap<StreamName, Position>, StoreError> {
    let names: HashSet<&StreamName> = entries.iter().map(|entry| &entry.stream_name).collect();
    let names: Vec<&StreamName> = names.into_iter().collect();
    let positions = POSITIONS
        .fetch(
            connection,
            &names,
            |query, name| query.bind(partition.number()).bind(name.as_str()),
            |row| {
                Ok((
                    StreamName::stored(row.try_get::<&str, _>(0)?),
                    Position(row.try_get(1)?),
                ))
            },
        )
        .await?;
    Ok(positions.into_iter().collect())
}

async fn known_entries(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[&NewEntry],
) -> Result<Known, StoreError> {
    let known = KNOWN_ENTRIES
        .fetch(
            connection,
            entries,
            |query, entry| {
                query
                    .bind(partition.number())
                    .bind(entry.stream_name.as_str())
                    .bind(entry.event_id.0)
            },
            |row| {
                let key = (
                    StreamName::stored(row.try_get::<&str, _>(0)?),
                    EventId(row.try_get(1)?),
                );
                Ok((
                    key,
                    (
                        EventType::stored(row.try_get::<&str, _>(2)?),
                        Json::stored(row.try_get::<&str, _>(3)?),
                    ),
                ))
            },
        )
        .await?;
    Ok(known.into_iter().collect())
}
