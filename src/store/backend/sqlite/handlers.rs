//! The statements of event handlers on SQLite, inside the one writer's transaction. The steps are those of PostgreSQL's
//! function. Floor 2.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, Row, SqliteConnection};

use super::{
    append::{entries, statements::OverRows},
    while_running,
};
use crate::{
    domain::{
        AggregateId, DeliveryStatus, DeliveryWrite, FencingToken, HandlerId, HandlerStep,
        LastError, NewEntry, Partition, SavedStep, StepOutcome, Timestamp,
        append::{AppendedEntry, Outcome, Refusal},
    },
    store::StoreError,
};

const MOVE: OverRows<'_> = OverRows {
    sql: "UPDATE checkpoints SET position = r.column4 FROM {rows} r \
          WHERE checkpoints.partition_no = r.column1 AND checkpoints.name = r.column2 \
          AND checkpoints.position = r.column3 AND checkpoints.fence = r.column5 RETURNING checkpoints.name",
    columns: 5,
};

/// Those that are stored are changed only where they are as they were when they were tried.
const DELETE: OverRows<'_> = OverRows {
    sql: "DELETE FROM deliveries WHERE (partition_no, id, attempts) IN (SELECT * FROM {rows}) AND status = 'RETRYING'",
    columns: 3,
};

const UPDATE: OverRows<'_> = OverRows {
    sql: "UPDATE deliveries SET status = r.column3, attempts = r.column4, last_error = r.column5, \
          next_attempt_at = r.column6, updated_at = r.column7 FROM {rows} r \
          WHERE deliveries.partition_no = r.column1 AND deliveries.id = r.column2 \
          AND deliveries.status = 'RETRYING' AND deliveries.attempts = r.column4 - 1",
    columns: 7,
};

const INSERT: OverRows<'_> = OverRows {
    sql: "INSERT INTO deliveries (partition_no, id, handler_id, event_position, aggregate_id, status, attempts, last_error, \
          next_attempt_at, updated_at) SELECT * FROM {rows} WHERE column1 IS NOT NULL",
    columns: 10,
};

/// The oldest that waits, of each handler and aggregate without one that is under way.
const PROMOTE: OverRows<'_> = OverRows {
    sql: "UPDATE deliveries SET status = 'RETRYING', next_attempt_at = n.at, updated_at = n.at FROM ( \
          SELECT r.column1 AS no, r.column4 AS at, (SELECT w.id FROM deliveries w \
          WHERE w.partition_no = r.column1 AND w.handler_id = r.column2 AND w.aggregate_id = r.column3 \
          AND w.status = 'WAITING' ORDER BY w.event_position LIMIT 1) AS id FROM {rows} r \
          WHERE NOT EXISTS (SELECT 1 FROM deliveries u WHERE u.partition_no = r.column1 AND u.handler_id = r.column2 \
          AND u.aggregate_id = r.column3 AND u.status = 'RETRYING')) n \
          WHERE deliveries.partition_no = n.no AND deliveries.id = n.id",
    columns: 4,
};

/// Stores what handlers have come to.
pub(super) async fn save_steps(
    connection: &mut SqliteConnection,
    partition: Partition,
    token: FencingToken,
    steps: &[HandlerStep],
    now: Timestamp,
) -> Result<Vec<StepOutcome>, StoreError> {
    let moved = move_checkpoints(connection, partition, token, steps).await?;
    let is_saved = |step: &HandlerStep| moved.contains(&step.handler_id.checkpoint_name());
    let saved: Vec<bool> = steps.iter().map(is_saved).collect();
    let mut outcomes = append_entries(connection, partition, steps, &saved, now).await?;

    let mut writes: Vec<(HandlerId, DeliveryWrite)> = Vec::new();
    for (index, step) in steps.iter().enumerate().filter(|(index, _)| saved[*index]) {
        let deliveries = step.deliveries.iter().cloned();
        writes.extend(deliveries.map(|delivery| (step.handler_id, delivery)));
        for ((_, _, delivery), outcome) in step.entries.iter().zip(&outcomes[index]) {
            let mut delivery = delivery.clone();
            if let Outcome::Refused(Refusal::IdReused { .. }) = outcome {
                delivery.status = DeliveryStatus::Dead;
                delivery.attempts += 1;
                delivery.last_error = Some(LastError::entry_refused());
            } else if delivery.is_new {
                continue;
            } else {
                delivery.status = DeliveryStatus::Delivered;
            }
            writes.push((step.handler_id, delivery));
        }
    }
    write_deliveries(connection, partition, &writes, now).await?;

    let touched: HashSet<HandlerId> = writes.iter().map(|(handler, _)| *handler).collect();
    let mut answers = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        if !saved[index] {
            answers.push(StepOutcome::Lost);
            continue;
        }
        let next_due = match touched.contains(&step.handler_id) {
            true => next_due(connection, partition, step.handler_id, now).await?,
            false => None,
        };
        answers.push(StepOutcome::Saved(SavedStep {
            next_due,
            entries: std::mem::take(&mut outcomes[index]),
        }));
    }
    Ok(answers)
}

async fn move_checkpoints(
    connection: &mut SqliteConnection,
    partition: Partition,
    token: FencingToken,
    steps: &[HandlerStep],
) -> Result<HashSet<String>, StoreError> {
    let moved = MOVE
        .fetch(
            connection,
            steps,
            |query, step| {
                query
                    .bind(partition.number())
                    .bind(step.handler_id.checkpoint_name())
                    .bind(step.step.from.0)
                    .bind(step.step.to.0)
                    .bind(token.0)
            },
            |row| row.try_get(0),
        )
        .await?;
    Ok(moved.into_iter().collect())
}

/// Makes the entries of all steps, those of one partition of streams together. Answers for each step what became of its own.
async fn append_entries(
    connection: &mut SqliteConnection,
    partition: Partition,
    steps: &[HandlerStep],
    saved: &[bool],
    now: Timestamp,
) -> Result<Vec<Vec<Outcome<AppendedEntry>>>, StoreError> {
    let mut of_streams: BTreeMap<Partition, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate().filter(|(index, _)| saved[*index]) {
        for (place, (stream, _, _)) in step.entries.iter().enumerate() {
            of_streams.entry(*stream).or_default().push((index, place));
        }
    }
    let made = |step: &HandlerStep| vec![Outcome::Duplicate; step.entries.len()];
    let mut outcomes: Vec<Vec<Outcome<AppendedEntry>>> = steps.iter().map(made).collect();
    for (stream, places) in of_streams {
        let part: Vec<&NewEntry> = places
            .iter()
            .map(|(index, place)| &steps[*index].entries[*place].1)
            .collect();
        let appended = entries::append_of(connection, stream, &part, Some(partition), now).await?;
        for ((index, place), outcome) in places.into_iter().zip(appended) {
            outcomes[index][place] = outcome;
        }
    }
    Ok(outcomes)
}

async fn write_deliveries(
    connection: &mut SqliteConnection,
    partition: Partition,
    writes: &[(HandlerId, DeliveryWrite)],
    now: Timestamp,
) -> Result<(), StoreError> {
    if writes.is_empty() {
        return Ok(());
    }
    let at = |write: &DeliveryWrite| write.delay.map(|delay| now.after(delay).to_utc());
    let error = |write: &DeliveryWrite| write.last_error.as_ref().map(ToString::to_string);
    let is_done = |write: &DeliveryWrite| write.status == DeliveryStatus::Delivered;
    let (new, known): (Vec<_>, Vec<_>) = writes.iter().partition(|(_, write)| write.is_new);
    let (done, changed): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|(_, write)| is_done(write));
    DELETE
        .execute(connection, &done, |query, (_, write)| {
            query
                .bind(partition.number())
                .bind(write.id.0)
                .bind(write.attempts)
        })
        .await?;
    UPDATE
        .execute(connection, &changed, |query, (_, write)| {
            query
                .bind(partition.number())
                .bind(write.id.0)
                .bind(write.status.as_str())
                .bind(write.attempts)
                .bind(error(write))
                .bind(at(write))
                .bind(now.to_utc())
        })
        .await?;
    let new: Vec<_> = new
        .into_iter()
        .filter(|(_, write)| !is_done(write))
        .collect();
    INSERT
        .execute(connection, &new, |query, (handler, write)| {
            query
                .bind(partition.number())
                .bind(write.id.0)
                .bind(handler.0)
                .bind(write.position.0)
                .bind(write.aggregate_id.0)
                .bind(write.status.as_str())
                .bind(write.attempts)
                .bind(error(write))
                .bind(at(write))
                .bind(now.to_utc())
        })
        .await?;
    let touched: HashMap<(HandlerId, AggregateId), ()> = writes
        .iter()
        .map(|(handler, write)| ((*handler, write.aggregate_id), ()))
        .collect();
    let touched: Vec<(HandlerId, AggregateId)> = touched.into_keys().collect();
    PROMOTE
        .execute(connection, &touched, |query, (handler, aggregate)| {
            query
                .bind(partition.number())
                .bind(handler.0)
                .bind(aggregate.0)
                .bind(now.to_utc())
        })
        .await
}

async fn next_due(
    connection: &mut SqliteConnection,
    partition: Partition,
    handler: HandlerId,
    now: Timestamp,
) -> Result<Option<Duration>, StoreError> {
    let sql = "SELECT next_attempt_at FROM deliveries WHERE partition_no = $1 AND handler_id = $2 AND status = 'RETRYING' \
               ORDER BY next_attempt_at LIMIT 1";
    let row = sqlx::query(sql)
        .bind(partition.number())
        .bind(handler.0)
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let at: Option<DateTime<Utc>> = match row {
        Some(row) => row.try_get(0).map_err(while_running)?,
        None => None,
    };
    Ok(at.map(|at| Timestamp::from(at).since(now)))
}
