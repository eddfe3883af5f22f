//! Taking over events and entries on PostgreSQL: a few statements over arrays, in one transaction. Floor 2.

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, Connection, PgConnection, Postgres, postgres::PgArguments};
use uuid::Uuid;

use super::{not_begun, while_running};
use crate::{
    domain::{Entry, Event, Partition, Position},
    store::{
        ImportOutcome, StoreError,
        imports::{entry_runs, event_runs},
    },
};

const LOCK: &str = "SELECT 1 FROM partition_locks WHERE partition_no = $1 AND log = $2 FOR UPDATE";

const EVENTS_HEAD: &str =
    "SELECT coalesce((SELECT max(position) FROM events WHERE partition_no = $1), 0)";

const CONTINUE_AGGREGATES: &str = "UPDATE aggregates a SET current_version = u.last_version, updated_at = u.ended_at \
     FROM unnest($2::uuid[], $3::text[], $4::int[], $5::int[], $6::timestamptz[]) \
     AS u(id, aggregate_type, first_version, last_version, ended_at) \
     WHERE a.partition_no = $1 AND a.id = u.id AND a.aggregate_type = u.aggregate_type \
     AND a.current_version = u.first_version - 1";

const BEGIN_AGGREGATES: &str = "INSERT INTO aggregates (partition_no, id, aggregate_type, current_version, created_at, updated_at) \
     SELECT $1, u.id, u.aggregate_type, u.last_version, u.began_at, u.ended_at \
     FROM unnest($2::uuid[], $3::text[], $4::int[], $5::int[], $6::timestamptz[], $7::timestamptz[]) \
     AS u(id, aggregate_type, first_version, last_version, began_at, ended_at) \
     WHERE u.first_version = 1 ON CONFLICT DO NOTHING";

const INSERT_EVENTS: &str = "INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, \
     event_metadata, version, created_at) \
     SELECT $1, u.position, u.id, u.aggregate_id, u.aggregate_type, u.event_type, u.data::jsonb, u.metadata::jsonb, \
     u.version, u.created_at \
     FROM unnest($2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int[], \
     $10::timestamptz[]) \
     AS u(position, id, aggregate_id, aggregate_type, event_type, data, metadata, version, created_at)";

const ENTRIES_HEAD: &str =
    "SELECT coalesce((SELECT max(entry_position) FROM event_streams WHERE partition_no = $1), 0)";

const STREAMS_THAT_FOLLOW: &str = "SELECT count(*) FROM unnest($2::text[], $3::bigint[]) AS u(name, first_position) \
     WHERE u.first_position - 1 = coalesce((SELECT max(s.position) FROM event_streams s \
     WHERE s.partition_no = $1 AND s.stream_name = u.name), 0)";

const BEGIN_STREAMS: &str = "INSERT INTO streams (partition_no, name, created_at) \
     SELECT $1, u.name, u.began_at FROM unnest($2::text[], $3::bigint[], $4::timestamptz[]) \
     AS u(name, first_position, began_at) WHERE u.first_position = 1";

const INSERT_ENTRIES: &str = "INSERT INTO event_streams (partition_no, stream_name, position, entry_position, event_id, event_type, \
     event_data, event_partition_no, created_at) \
     SELECT $1, u.stream_name, u.position, u.entry_position, u.event_id, u.event_type, u.data::jsonb, \
     u.event_partition_no, u.created_at \
     FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::smallint[], \
     $9::timestamptz[]) \
     AS u(stream_name, position, entry_position, event_id, event_type, data, event_partition_no, created_at)";

type Bound<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// Takes over events that follow one another.
pub(super) async fn events(
    connection: &mut PgConnection,
    partition: Partition,
    events: &[Event],
) -> Result<ImportOutcome, StoreError> {
    let Some(first) = events.first() else {
        return Ok(ImportOutcome::Stored);
    };
    let Some(runs) = event_runs(events) else {
        return Ok(ImportOutcome::Gap);
    };
    let mut transaction = connection.begin().await.map_err(not_begun)?;
    let head = lock(&mut transaction, partition, "events", EVENTS_HEAD).await?;
    if head.next() != first.position {
        return refuse(transaction, ImportOutcome::OtherHead(head)).await;
    }
    let ids: Vec<Uuid> = runs.iter().map(|run| run.key.0.0).collect();
    let types: Vec<&str> = runs.iter().map(|run| run.key.1).collect();
    let firsts: Vec<i32> = runs.iter().map(|run| run.first).collect();
    let lasts: Vec<i32> = runs.iter().map(|run| run.last).collect();
    let began: Vec<DateTime<Utc>> = runs.iter().map(|run| run.began_at.to_utc()).collect();
    let ended: Vec<DateTime<Utc>> = runs.iter().map(|run| run.ended_at.to_utc()).collect();
    let continued = sqlx::query(CONTINUE_AGGREGATES)
        .bind(partition.number())
        .bind(&ids)
        .bind(&types)
        .bind(&firsts)
        .bind(&lasts)
        .bind(&ended);
    let continued = run(&mut transaction, continued).await?;
    let begun = sqlx::query(BEGIN_AGGREGATES)
        .bind(partition.number())
        .bind(&ids)
        .bind(&types)
        .bind(&firsts)
        .bind(&lasts)
        .bind(&began)
        .bind(&ended);
    let begun = run(&mut transaction, begun).await?;
    if continued + begun != runs.len() as u64 {
        return refuse(transaction, ImportOutcome::Gap).await;
    }
    let rows = || events.iter();
    let insert = sqlx::query(INSERT_EVENTS)
        .bind(partition.number())
        .bind(rows().map(|event| event.position.0).collect::<Vec<_>>())
        .bind(rows().map(|event| event.id.0).collect::<Vec<_>>())
        .bind(rows().map(|event| event.aggregate_id.0).collect::<Vec<_>>())
        .bind(
            rows()
                .map(|event| event.aggregate_type.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            rows()
                .map(|event| event.event_type.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(rows().map(|event| event.data.as_str()).collect::<Vec<_>>())
        .bind(
            rows()
                .map(|event| event.metadata.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(rows().map(|event| event.version.0).collect::<Vec<_>>())
        .bind(
            rows()
                .map(|event| event.created_at.to_utc())
                .collect::<Vec<_>>(),
        );
    run(&mut transaction, insert).await?;
    transaction.commit().await.map_err(while_running)?;
    Ok(ImportOutcome::Stored)
}

/// Takes over entries that follow one another.
pub(super) async fn entries(
    connection: &mut PgConnection,
    partition: Partition,
    entries: &[(Entry, Option<Partition>)],
) -> Result<ImportOutcome, StoreError> {
    let Some((first, _)) = entries.first() else {
        return Ok(ImportOutcome::Stored);
    };
    let Some(runs) = entry_runs(entries) else {
        return Ok(ImportOutcome::Gap);
    };
    let mut transaction = connection.begin().await.map_err(not_begun)?;
    let head = lock(&mut transaction, partition, "entries", ENTRIES_HEAD).await?;
    if head.next() != first.entry_position {
        return refuse(transaction, ImportOutcome::OtherHead(head)).await;
    }
    let names: Vec<&str> = runs.iter().map(|run| run.key).collect();
    let firsts: Vec<i64> = runs.iter().map(|run| run.first).collect();
    let began: Vec<DateTime<Utc>> = runs.iter().map(|run| run.began_at.to_utc()).collect();
    let follow: i64 = sqlx::query_scalar(STREAMS_THAT_FOLLOW)
        .bind(partition.number())
        .bind(&names)
        .bind(&firsts)
        .fetch_one(&mut *transaction)
        .await
        .map_err(while_running)?;
    if follow != runs.len() as i64 {
        return refuse(transaction, ImportOutcome::Gap).await;
    }
    let begin = sqlx::query(BEGIN_STREAMS)
        .bind(partition.number())
        .bind(&names)
        .bind(&firsts)
        .bind(&began);
    run(&mut transaction, begin).await?;
    let rows = || entries.iter().map(|(entry, _)| entry);
    let shown = entries
        .iter()
        .map(|(_, shown)| shown.map(Partition::number));
    let insert = sqlx::query(INSERT_ENTRIES)
        .bind(partition.number())
        .bind(
            rows()
                .map(|entry| entry.stream_name.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(rows().map(|entry| entry.position.0).collect::<Vec<_>>())
        .bind(
            rows()
                .map(|entry| entry.entry_position.0)
                .collect::<Vec<_>>(),
        )
        .bind(rows().map(|entry| entry.event_id.0).collect::<Vec<_>>())
        .bind(
            rows()
                .map(|entry| entry.event_type.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(rows().map(|entry| entry.data.as_str()).collect::<Vec<_>>())
        .bind(shown.collect::<Vec<_>>())
        .bind(
            rows()
                .map(|entry| entry.created_at.to_utc())
                .collect::<Vec<_>>(),
        );
    run(&mut transaction, insert).await?;
    transaction.commit().await.map_err(while_running)?;
    Ok(ImportOutcome::Stored)
}

async fn refuse(
    transaction: sqlx::Transaction<'_, Postgres>,
    outcome: ImportOutcome,
) -> Result<ImportOutcome, StoreError> {
    transaction.rollback().await.map_err(while_running)?;
    Ok(outcome)
}

/// Takes a log's lock. Answers its newest position, by a statement of its own: it sees what was committed before the lock.
async fn lock(
    connection: &mut PgConnection,
    partition: Partition,
    log: &str,
    head: &'static str,
) -> Result<Position, StoreError> {
    let lock = sqlx::query(LOCK).bind(partition.number()).bind(log);
    lock.fetch_one(&mut *connection)
        .await
        .map_err(while_running)?;
    let head = sqlx::query_scalar(head).bind(partition.number());
    head.fetch_one(connection)
        .await
        .map(Position)
        .map_err(while_running)
}

async fn run(connection: &mut PgConnection, query: Bound<'_>) -> Result<u64, StoreError> {
    let done = query.execute(connection).await.map_err(while_running)?;
    Ok(done.rows_affected())
}
