//! The statements that write read models, checkpoints and what is published on SQLite, inside the one writer's transaction.
//! The steps are those of PostgreSQL's functions. Floor 2.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sea_orm::{
    sea_query::{Expr, ExprTrait, SimpleExpr},
    sqlx::{self, Row, SqliteConnection, sqlite::SqliteRow},
};

use super::{
    append::{
        entries,
        statements::{OverRows, head_position},
    },
    while_running,
};
use crate::{
    domain::{
        AggregateId, AggregateType, Checkpoint, CheckpointStep, ExternalModel, FencingToken,
        Folded, Json, NewEntry, Partition, Position, Projected, ReadModelSource, RebuildOutcome,
        SaveOutcome, Timestamp, Version,
        append::{AppendedEntry, Outcome},
    },
    store::{StoreError, read_models::ExternalWrite},
};

const HEAD: &str =
    "SELECT COALESCE(MAX(change_position), 0) FROM read_models WHERE partition_no = $1";

const STORED: OverRows<'_> = OverRows {
    sql: "SELECT m.aggregate_id, m.change_position, m.aggregate_type, m.version, m.source, m.fault, m.deleted_at, m.created_at, \
          m.updated_at FROM {rows} r CROSS JOIN read_models m \
          ON m.partition_no = r.column1 AND m.aggregate_id = r.column2",
    columns: 2,
};

const STORED_DATA: OverRows<'_> = OverRows {
    sql: "SELECT m.aggregate_id, m.model_data FROM {rows} r CROSS JOIN read_models m \
          ON m.partition_no = r.column1 AND m.aggregate_id = r.column2",
    columns: 2,
};

/// Of each aggregate (column2) whether the event of a version (column3) lies at or below a position (column4).
const PASSED: OverRows<'_> = OverRows {
    sql: "SELECT e.aggregate_id FROM {rows} r CROSS JOIN events e \
          ON e.partition_no = r.column1 AND e.aggregate_id = r.column2 AND e.version = r.column3 AND e.position <= r.column4",
    columns: 4,
};

const SAVE: OverRows<'_> = OverRows {
    sql: "INSERT INTO read_models (partition_no, aggregate_id, aggregate_type, model_data, version, source, fault, deleted_at, \
          change_position, created_at, updated_at) SELECT * FROM {rows} WHERE column1 IS NOT NULL \
          ON CONFLICT (partition_no, aggregate_id) DO UPDATE SET aggregate_type = excluded.aggregate_type, \
          model_data = excluded.model_data, version = excluded.version, source = excluded.source, fault = excluded.fault, \
          deleted_at = excluded.deleted_at, change_position = excluded.change_position, created_at = excluded.created_at, \
          updated_at = excluded.updated_at",
    columns: 11,
};

/// A row as it is, without its data.
struct Stored {
    change_position: Position,
    aggregate_type: AggregateType,
    version: Version,
    source: String,
    fault: Option<String>,
    is_deleted: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Stored {
    fn read(row: &SqliteRow) -> Result<(AggregateId, Self), sqlx::Error> {
        let stored = Self {
            change_position: Position(row.try_get(1)?),
            aggregate_type: AggregateType::stored(row.try_get::<&str, _>(2)?),
            version: Version(row.try_get(3)?),
            source: row.try_get(4)?,
            fault: row.try_get(5)?,
            is_deleted: row.try_get::<Option<DateTime<Utc>>, _>(6)?.is_some(),
            created_at: row.try_get::<DateTime<Utc>, _>(7)?.into(),
            updated_at: row.try_get::<DateTime<Utc>, _>(8)?.into(),
        };
        Ok((AggregateId(row.try_get(0)?), stored))
    }

    fn is_external(&self) -> bool {
        self.source == ReadModelSource::External.as_str()
    }

    fn is_left_alone(&self) -> bool {
        self.is_external() || self.fault.is_some()
    }

    /// Whether all but the data is as it would become.
    fn is_like(&self, folded: &Folded) -> bool {
        self.aggregate_type == folded.aggregate_type
            && self.version == folded.version
            && !self.is_external()
            && self.fault == folded.fault
            && self.is_deleted == folded.data.is_none()
            && self.created_at == folded.created_at
            && self.updated_at == folded.updated_at
    }
}

/// A read model to write, with the position of its change.
type Placed<'m> = (Position, AggregateId, &'m Folded);

/// Saves read models behind a checkpoint.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    partition: Partition,
    step: CheckpointStep,
    models: &[Projected],
) -> Result<SaveOutcome, StoreError> {
    let stored = stored(connection, partition, models).await?;
    let has_changed = |model: &Projected| {
        let stored = stored.get(&model.aggregate_id);
        stored.map(|stored| stored.change_position) != model.based_on
    };
    if models.iter().any(has_changed) {
        return Ok(SaveOutcome::Changed);
    }
    if !move_checkpoint(connection, partition, Checkpoint::ReadModels, step).await? {
        return Ok(SaveOutcome::FencedOff);
    }
    let mut next = head_position(connection, HEAD, partition).await?.next();
    let mut placed: Vec<Placed<'_>> = Vec::with_capacity(models.len());
    let mut positions = Vec::with_capacity(models.len());
    for model in models {
        positions.push(model.folded.as_ref().map(|folded| {
            let position = next;
            next = next.next();
            placed.push((position, model.aggregate_id, folded));
            position
        }));
    }
    write(connection, partition, &placed).await?;
    Ok(SaveOutcome::Saved(positions))
}

/// Saves read models that were folded anew.
pub(super) async fn save_rebuilt(
    connection: &mut SqliteConnection,
    partition: Partition,
    models: &[Projected],
) -> Result<Vec<RebuildOutcome>, StoreError> {
    let stored = stored(connection, partition, models).await?;
    let stale = stale_for_the_passed(connection, partition, models, &stored).await?;
    let same = same_as_stored(connection, partition, models, &stored).await?;
    let mut next = head_position(connection, HEAD, partition).await?.next();
    let mut placed: Vec<Placed<'_>> = Vec::with_capacity(models.len());
    let mut outcomes = Vec::with_capacity(models.len());
    for model in models {
        let id = model.aggregate_id;
        let change = stored.get(&id).map(|stored| stored.change_position);
        outcomes.push(match &model.folded {
            _ if change != model.based_on || stale.contains(&id) => RebuildOutcome::Changed,
            Some(folded) if !same.contains(&id) => {
                let position = next;
                next = next.next();
                placed.push((position, id, folded));
                RebuildOutcome::Written(position)
            }
            _ => RebuildOutcome::Same,
        });
    }
    write(connection, partition, &placed).await?;
    Ok(outcomes)
}

/// Those of which the projector has passed an event by, for they were left alone, that is not in the fold.
async fn stale_for_the_passed(
    connection: &mut SqliteConnection,
    partition: Partition,
    models: &[Projected],
    stored: &HashMap<AggregateId, Stored>,
) -> Result<Vec<AggregateId>, StoreError> {
    let left_alone: Vec<(AggregateId, Version)> = models
        .iter()
        .filter(|model| {
            stored
                .get(&model.aggregate_id)
                .is_some_and(Stored::is_left_alone)
        })
        .filter_map(|model| {
            // One that stands still at a fault has come to its end, whatever was appended since.
            let folded = model
                .folded
                .as_ref()
                .filter(|folded| folded.fault.is_none())?;
            Some((model.aggregate_id, folded.version.next()))
        })
        .collect();
    if left_alone.is_empty() {
        return Ok(Vec::new());
    }
    let row = sqlx::query("SELECT position FROM checkpoints WHERE partition_no = $1 AND name = $2")
        .bind(partition.number())
        .bind(Checkpoint::ReadModels.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(while_running)?;
    let passed: i64 = match row {
        Some(row) => row.try_get(0).map_err(while_running)?,
        None => 0,
    };
    PASSED
        .fetch(
            connection,
            &left_alone,
            |query, (id, version)| {
                query
                    .bind(partition.number())
                    .bind(id.0)
                    .bind(version.0)
                    .bind(passed)
            },
            |row| row.try_get(0).map(AggregateId),
        )
        .await
}

/// Those that are already as they would become.
async fn same_as_stored(
    connection: &mut SqliteConnection,
    partition: Partition,
    models: &[Projected],
    stored: &HashMap<AggregateId, Stored>,
) -> Result<Vec<AggregateId>, StoreError> {
    let alike: HashMap<AggregateId, Option<&Json>> = models
        .iter()
        .filter_map(|model| {
            let folded = model.folded.as_ref()?;
            let stored = stored.get(&model.aggregate_id)?;
            stored
                .is_like(folded)
                .then_some((model.aggregate_id, folded.data.as_ref()))
        })
        .collect();
    let ids: Vec<AggregateId> = alike.keys().copied().collect();
    let data = STORED_DATA
        .fetch(
            connection,
            &ids,
            |query, id| query.bind(partition.number()).bind(id.0),
            |row| {
                Ok((
                    AggregateId(row.try_get(0)?),
                    Json::stored(row.try_get::<&str, _>(1)?),
                ))
            },
        )
        .await?;
    let is_same = |(id, data): &(AggregateId, Json)| match alike.get(id) {
        Some(Some(folded)) => data.same_value(folded),
        // The data of a tombstone is always null.
        Some(None) => true,
        None => false,
    };
    Ok(data
        .iter()
        .filter(|row| is_same(row))
        .map(|row| row.0)
        .collect())
}

async fn stored(
    connection: &mut SqliteConnection,
    partition: Partition,
    models: &[Projected],
) -> Result<HashMap<AggregateId, Stored>, StoreError> {
    let stored = STORED
        .fetch(
            connection,
            models,
            |query, model| query.bind(partition.number()).bind(model.aggregate_id.0),
            Stored::read,
        )
        .await?;
    Ok(stored.into_iter().collect())
}

async fn write(
    connection: &mut SqliteConnection,
    partition: Partition,
    placed: &[Placed<'_>],
) -> Result<(), StoreError> {
    SAVE.execute(connection, placed, |query, (position, id, folded)| {
        let deleted_at = folded.data.is_none().then(|| folded.updated_at.to_utc());
        query
            .bind(partition.number())
            .bind(id.0)
            .bind(folded.aggregate_type.as_str())
            .bind(folded.data.as_ref().map_or("null", Json::as_str))
            .bind(folded.version.0)
            .bind(ReadModelSource::Projected.as_str())
            .bind(folded.fault.as_deref())
            .bind(deleted_at)
            .bind(position.0)
            .bind(folded.created_at.to_utc())
            .bind(folded.updated_at.to_utc())
    })
    .await
}

/// Writes a read model from outside.
pub(super) async fn write_external(
    connection: &mut SqliteConnection,
    partition: Partition,
    model: &ExternalModel,
    now: Timestamp,
) -> Result<ExternalWrite, StoreError> {
    let aggregate = sqlx::query(
        "SELECT aggregate_type, current_version FROM aggregates WHERE partition_no = $1 AND id = $2",
    )
    .bind(partition.number())
    .bind(model.aggregate_id.0)
    .fetch_optional(&mut *connection)
    .await
    .map_err(while_running)?;
    let aggregate = aggregate
        .map(|row| {
            Ok((
                AggregateType::stored(row.try_get::<&str, _>(0)?),
                Version(row.try_get(1)?),
            ))
        })
        .transpose()
        .map_err(while_running)?;
    let key = [model.aggregate_id];
    let stored = STORED
        .fetch(
            connection,
            &key,
            |query, id| query.bind(partition.number()).bind(id.0),
            Stored::read,
        )
        .await?;
    let stored = stored.into_iter().next().map(|(_, stored)| stored);

    let of_type = aggregate.as_ref().map(|(of_type, _)| of_type);
    let of_type = of_type.or(stored.as_ref().map(|stored| &stored.aggregate_type));
    if let Some(actual) = of_type.filter(|of_type| **of_type != model.aggregate_type) {
        let actual = actual.clone();
        return Ok(ExternalWrite::TypeMismatch { actual });
    }
    if let Some((_, actual)) = aggregate
        && model.version > actual
    {
        return Ok(ExternalWrite::VersionAhead { actual });
    }
    if let Some(stored) = &stored
        && (stored.version > model.version
            || (stored.version == model.version && stored.is_external()))
    {
        return Ok(ExternalWrite::Unchanged);
    }
    let position = head_position(connection, HEAD, partition).await?.next();
    let updated_at = stored
        .as_ref()
        .map_or(now, |stored| now.max(stored.updated_at));
    let created_at = stored
        .filter(|stored| !stored.is_deleted)
        .map_or(updated_at, |stored| stored.created_at);
    let rows = [model];
    SAVE.execute(connection, &rows, |query, model| {
        query
            .bind(partition.number())
            .bind(model.aggregate_id.0)
            .bind(model.aggregate_type.as_str())
            .bind(model.data.as_str())
            .bind(model.version.0)
            .bind(ReadModelSource::External.as_str())
            .bind(None::<&str>)
            .bind(None::<DateTime<Utc>>)
            .bind(position.0)
            .bind(created_at.to_utc())
            .bind(updated_at.to_utc())
    })
    .await?;
    Ok(ExternalWrite::Written {
        change_position: position,
        created_at,
        updated_at,
    })
}

/// Makes entries of events behind a checkpoint.
pub(super) async fn publish(
    connection: &mut SqliteConnection,
    partition: Partition,
    step: CheckpointStep,
    published: &[(Partition, NewEntry)],
    now: Timestamp,
) -> Result<Option<Vec<Outcome<AppendedEntry>>>, StoreError> {
    if !move_checkpoint(connection, partition, Checkpoint::Publish, step).await? {
        return Ok(None);
    }
    let mut of_streams: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
    for (index, (stream, _)) in published.iter().enumerate() {
        of_streams.entry(*stream).or_default().push(index);
    }
    let mut outcomes: Vec<Option<Outcome<AppendedEntry>>> = vec![None; published.len()];
    for (stream, indices) in of_streams {
        let part: Vec<&NewEntry> = indices.iter().map(|&index| &published[index].1).collect();
        let appended = entries::append_of(connection, stream, &part, Some(partition), now).await?;
        for (index, outcome) in indices.into_iter().zip(appended) {
            outcomes[index] = Some(outcome);
        }
    }
    Ok(Some(outcomes.into_iter().flatten().collect()))
}

/// Moves a checkpoint on; false where it is elsewhere or another runner's.
async fn move_checkpoint(
    connection: &mut SqliteConnection,
    partition: Partition,
    checkpoint: Checkpoint,
    step: CheckpointStep,
) -> Result<bool, StoreError> {
    let sql = "UPDATE checkpoints SET position = $1 \
               WHERE partition_no = $2 AND name = $3 AND position = $4 AND fence = $5";
    let moved = sqlx::query(sql)
        .bind(step.to.0)
        .bind(partition.number())
        .bind(checkpoint.as_str())
        .bind(step.from.0)
        .bind(step.token.0)
        .execute(connection)
        .await
        .map_err(while_running)?;
    Ok(moved.rows_affected() > 0)
}

/// Makes a checkpoint that of the runner with this token.
pub(super) async fn fence(
    connection: &mut SqliteConnection,
    partition: Partition,
    checkpoint: Checkpoint,
    token: FencingToken,
) -> Result<Option<Position>, StoreError> {
    let sql = "INSERT INTO checkpoints (partition_no, name, position, fence) VALUES ($1, $2, 0, $3) \
               ON CONFLICT (partition_no, name) DO UPDATE SET fence = excluded.fence WHERE fence <= excluded.fence \
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

/// For each text that the top of an object is to hold: that the column's object holds it. The database reads JSON faster than
/// rows are handed over; all else of what is contained is left to the caller.
pub(super) fn contained_texts(column: &'static str, contained: &Json) -> Vec<SimpleExpr> {
    let Ok(serde_json::Value::Object(fields)) = contained.to_value() else {
        return Vec::new();
    };
    let is_plain = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    fields
        .iter()
        .filter(|(key, _)| is_plain(key))
        .filter_map(|(key, value)| {
            let text = value.as_str()?;
            let path = format!("$.\"{key}\"");
            let held =
                Expr::cust_with_exprs("json_extract(?, ?)", [Expr::col(column), Expr::val(path)]);
            Some(held.eq(text))
        })
        .collect()
}
