//! The statements that write read models, checkpoints and what is published on PostgreSQL: each a call of one function. Floor 2.

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    append::{entry_outcome, unknown_outcome},
    while_running,
};
use crate::{
    domain::{
        AggregateType, Checkpoint, CheckpointStep, ExternalModel, FencingToken, Folded, NewEntry,
        Partition, Position, Projected, RebuildOutcome, SaveOutcome, Version,
        append::{AppendedEntry, Outcome},
    },
    store::{StoreError, read_models::ExternalWrite},
};

const SAVE_READ_MODELS: &str = "SELECT outcome, change_position, changed \
     FROM tidings_save_read_models($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

const WRITE_READ_MODEL: &str = "SELECT outcome, actual_version, actual_type, change_position, created_at, updated_at \
     FROM tidings_write_read_model($1, $2, $3, $4, $5)";

const PUBLISH_ENTRIES: &str = "SELECT outcome, position, entry_position, created_at, NULL::bigint \
     FROM tidings_publish_entries($1, $2, $3, $4, $5, $6, $7, $8, $9) ORDER BY ord";

/// Saves read models behind a checkpoint.
pub(super) async fn save(
    connection: &mut PgConnection,
    partition: Partition,
    step: CheckpointStep,
    models: &[Projected],
) -> Result<SaveOutcome, StoreError> {
    let row = call_save(connection, partition, Some(step), models).await?;
    let outcome: Option<&str> = row.try_get(0).map_err(while_running)?;
    Ok(match outcome {
        None => SaveOutcome::Saved(positions(&row)?),
        Some("changed") => SaveOutcome::Changed,
        Some("lost") => SaveOutcome::FencedOff,
        Some(other) => return Err(while_running(unknown_outcome(other))),
    })
}

/// Saves read models that were folded anew.
pub(super) async fn save_rebuilt(
    connection: &mut PgConnection,
    partition: Partition,
    models: &[Projected],
) -> Result<Vec<RebuildOutcome>, StoreError> {
    let row = call_save(connection, partition, None, models).await?;
    let changed: Vec<bool> = row.try_get(2).map_err(while_running)?;
    let outcome = |(position, changed): (Option<Position>, bool)| match (position, changed) {
        (Some(position), _) => RebuildOutcome::Written(position),
        (None, true) => RebuildOutcome::Changed,
        (None, false) => RebuildOutcome::Same,
    };
    Ok(positions(&row)?
        .into_iter()
        .zip(changed)
        .map(outcome)
        .collect())
}

fn positions(row: &PgRow) -> Result<Vec<Option<Position>>, StoreError> {
    let positions: Vec<Option<i64>> = row.try_get(1).map_err(while_running)?;
    Ok(positions
        .into_iter()
        .map(|position| position.map(Position))
        .collect())
}

async fn call_save(
    connection: &mut PgConnection,
    partition: Partition,
    step: Option<CheckpointStep>,
    models: &[Projected],
) -> Result<PgRow, StoreError> {
    let folded = || models.iter().map(|model| model.folded.as_ref());
    let ids: Vec<Uuid> = models.iter().map(|model| model.aggregate_id.0).collect();
    let based_on: Vec<Option<i64>> = models
        .iter()
        .map(|model| model.based_on.map(|position| position.0))
        .collect();
    let types: Vec<Option<&str>> = folded()
        .map(|folded| folded.map(|folded| folded.aggregate_type.as_str()))
        .collect();
    let versions: Vec<Option<i32>> = folded()
        .map(|folded| folded.map(|folded| folded.version.0))
        .collect();
    let data: Vec<Option<&str>> = folded()
        .map(|folded| folded?.data.as_ref().map(|data| data.as_str()))
        .collect();
    let faults: Vec<Option<&str>> = folded().map(|folded| folded?.fault.as_deref()).collect();
    let time = |of: fn(&Folded) -> DateTime<Utc>| -> Vec<Option<DateTime<Utc>>> {
        folded().map(|folded| folded.map(of)).collect()
    };
    sqlx::query(SAVE_READ_MODELS)
        .bind(partition.number())
        .bind(step.map(|step| step.from.0))
        .bind(step.map(|step| step.to.0))
        .bind(step.map(|step| step.token.0))
        .bind(ids)
        .bind(based_on)
        .bind(types)
        .bind(versions)
        .bind(data)
        .bind(faults)
        .bind(time(|folded| folded.created_at.to_utc()))
        .bind(time(|folded| folded.updated_at.to_utc()))
        .fetch_one(connection)
        .await
        .map_err(while_running)
}

/// Writes a read model from outside.
pub(super) async fn write_external(
    connection: &mut PgConnection,
    partition: Partition,
    model: &ExternalModel,
) -> Result<ExternalWrite, StoreError> {
    let row = sqlx::query(WRITE_READ_MODEL)
        .bind(partition.number())
        .bind(model.aggregate_id.0)
        .bind(model.aggregate_type.as_str())
        .bind(model.data.as_str())
        .bind(model.version.0)
        .fetch_one(connection)
        .await
        .map_err(while_running)?;
    external_write(&row).map_err(while_running)
}

fn external_write(row: &PgRow) -> Result<ExternalWrite, sqlx::Error> {
    Ok(match row.try_get::<&str, _>(0)? {
        "written" => ExternalWrite::Written {
            change_position: Position(row.try_get(3)?),
            created_at: row.try_get::<DateTime<Utc>, _>(4)?.into(),
            updated_at: row.try_get::<DateTime<Utc>, _>(5)?.into(),
        },
        "unchanged" => ExternalWrite::Unchanged,
        "version_ahead" => ExternalWrite::VersionAhead {
            actual: Version(row.try_get(1)?),
        },
        "type_mismatch" => ExternalWrite::TypeMismatch {
            actual: AggregateType::stored(row.try_get::<&str, _>(2)?),
        },
        other => return Err(unknown_outcome(other)),
    })
}

/// Makes entries of events behind a checkpoint.
pub(super) async fn publish(
    connection: &mut PgConnection,
    partition: Partition,
    step: CheckpointStep,
    entries: &[(Partition, NewEntry)],
) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError> {
    let of_streams: Vec<i16> = entries.iter().map(|(stream, _)| stream.number()).collect();
    let names: Vec<&str> = entries
        .iter()
        .map(|(_, entry)| entry.stream_name.as_str())
        .collect();
    let ids: Vec<Uuid> = entries.iter().map(|(_, entry)| entry.event_id.0).collect();
    let types: Vec<&str> = entries
        .iter()
        .map(|(_, entry)| entry.event_type.as_str())
        .collect();
    let data: Vec<&str> = entries
        .iter()
        .map(|(_, entry)| entry.data.as_str())
        .collect();
    let rows = sqlx::query(PUBLISH_ENTRIES)
        .bind(partition.number())
        .bind(step.from.0)
        .bind(step.to.0)
        .bind(step.token.0)
        .bind(of_streams)
        .bind(names)
        .bind(ids)
        .bind(types)
        .bind(data)
        .fetch_all(connection)
        .await
        .map_err(while_running)?;
    if let [row] = rows.as_slice()
        && row.try_get::<&str, _>(0).map_err(while_running)? == "lost"
    {
        return Ok(None);
    }
    if rows.len() != entries.len() {
        return Err(while_running(sqlx::Error::RowNotFound));
    }
    let outcomes = rows
        .iter()
        .zip(entries)
        .map(|(row, (_, entry))| entry_outcome(row, entry).map_err(while_running));
    outcomes.collect::<Result<_, _>>().map(Some)
}

/// Makes a checkpoint that of the runner with this token.
pub(super) async fn fence(
    connection: &mut PgConnection,
    partition: Partition,
    checkpoint: Checkpoint,
    token: FencingToken,
) -> Result<Option<Position>, StoreError> {
    let sql = "INSERT INTO checkpoints AS c (partition_no, name, position, fence) VALUES ($1, $2, 0, $3) \
               ON CONFLICT (partition_no, name) DO UPDATE SET fence = excluded.fence WHERE c.fence <= excluded.fence \
               RETURNING position";
    let row = sqlx::query(sql)
        .bind(partition.number())
        .bind(checkpoint.as_str())
        .bind(token.0)
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    row.map(|row| row.try_get(0).map(Position).map_err(while_running))
        .transpose()
}
