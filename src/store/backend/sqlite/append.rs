//! The statements that write the logs on SQLite, inside the one writer's transaction. Floor 2.

pub(super) mod commands;
pub(super) mod entries;
pub(super) mod events;
pub(super) mod statements;

use sea_orm::sqlx::{self, SqliteConnection};

use super::while_running;
use crate::{
    domain::{Aggregate, AggregateId, AggregateType, Partition, Timestamp},
    store::StoreError,
};

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
