//! Taking over events and entries on SQLite, inside the one writer's transaction. Floor 2.

use std::collections::HashMap;

use sea_orm::sqlx::{Row, SqliteConnection};

use super::append::{
    entries::{INSERT_ENTRIES, INSERT_STREAMS, POSITIONS},
    events::{INSERT_EVENTS, KNOWN_AGGREGATES, SAVE_AGGREGATES},
    statements::head_position,
};
use crate::{
    domain::{AggregateId, Entry, Event, Partition},
    store::{
        ImportOutcome, StoreError,
        imports::{Run, entry_runs, event_runs},
    },
};

const EVENTS_HEAD: &str = "SELECT COALESCE(MAX(position), 0) FROM events WHERE partition_no = $1";

const ENTRIES_HEAD: &str =
    "SELECT COALESCE(MAX(entry_position), 0) FROM event_streams WHERE partition_no = $1";

/// Takes over events that follow one another.
pub(super) async fn events(
    connection: &mut SqliteConnection,
    partition: Partition,
    events: &[Event],
) -> Result<ImportOutcome, StoreError> {
    let Some(first) = events.first() else {
        return Ok(ImportOutcome::Stored);
    };
    let Some(runs) = event_runs(events) else {
        return Ok(ImportOutcome::Gap);
    };
    let head = head_position(connection, EVENTS_HEAD, partition).await?;
    if head.next() != first.position {
        return Ok(ImportOutcome::OtherHead(head));
    }
    let known = KNOWN_AGGREGATES.fetch(
        connection,
        &runs,
        |query, run| query.bind(partition.number()).bind(run.key.0.0),
        |row| {
            let known: (String, i32) = (row.try_get(1)?, row.try_get(2)?);
            Ok((AggregateId(row.try_get(0)?), known))
        },
    );
    let known: HashMap<AggregateId, (String, i32)> = known.await?.into_iter().collect();
    let follows = |run: &Run<(AggregateId, &str), i32>| match known.get(&run.key.0) {
        Some((aggregate_type, version)) => aggregate_type == run.key.1 && version + 1 == run.first,
        None => run.first == 1,
    };
    if !runs.iter().all(follows) {
        return Ok(ImportOutcome::Gap);
    }
    let save = SAVE_AGGREGATES.execute(connection, &runs, |query, run| {
        query
            .bind(partition.number())
            .bind(run.key.0.0)
            .bind(run.key.1)
            .bind(run.last)
            .bind(run.began_at.to_utc())
            .bind(run.ended_at.to_utc())
    });
    save.await?;
    let insert = INSERT_EVENTS.execute(connection, events, |query, event| {
        query
            .bind(partition.number())
            .bind(event.position.0)
            .bind(event.id.0)
            .bind(event.aggregate_id.0)
            .bind(event.aggregate_type.as_str())
            .bind(event.event_type.as_str())
            .bind(event.data.as_str())
            .bind(event.metadata.as_str())
            .bind(event.version.0)
            .bind(event.created_at.to_utc())
    });
    insert.await?;
    Ok(ImportOutcome::Stored)
}

/// Takes over entries that follow one another.
pub(super) async fn entries(
    connection: &mut SqliteConnection,
    partition: Partition,
    entries: &[(Entry, Option<Partition>)],
) -> Result<ImportOutcome, StoreError> {
    let Some((first, _)) = entries.first() else {
        return Ok(ImportOutcome::Stored);
    };
    let Some(runs) = entry_runs(entries) else {
        return Ok(ImportOutcome::Gap);
    };
    let head = head_position(connection, ENTRIES_HEAD, partition).await?;
    if head.next() != first.entry_position {
        return Ok(ImportOutcome::OtherHead(head));
    }
    let known = POSITIONS.fetch(
        connection,
        &runs,
        |query, run| query.bind(partition.number()).bind(run.key),
        |row| Ok((row.try_get::<String, _>(0)?, row.try_get::<i64, _>(1)?)),
    );
    let known: HashMap<String, i64> = known.await?.into_iter().collect();
    if !runs
        .iter()
        .all(|run| known.get(run.key).is_some_and(|last| last + 1 == run.first))
    {
        return Ok(ImportOutcome::Gap);
    }
    let begun: Vec<&Run<&str, i64>> = runs.iter().filter(|run| run.first == 1).collect();
    let begin = INSERT_STREAMS.execute(connection, &begun, |query, run| {
        query
            .bind(partition.number())
            .bind(run.key)
            .bind(run.began_at.to_utc())
    });
    begin.await?;
    let insert = INSERT_ENTRIES.execute(connection, entries, |query, (entry, shown)| {
        query
            .bind(partition.number())
            .bind(entry.stream_name.as_str())
            .bind(entry.position.0)
            .bind(entry.entry_position.0)
            .bind(entry.event_id.0)
            .bind(entry.event_type.as_str())
            .bind(entry.data.as_str())
            .bind(shown.map(Partition::number))
            .bind(entry.created_at.to_utc())
    });
    insert.await?;
    Ok(ImportOutcome::Stored)
}
