//! The statements of event handlers on PostgreSQL: what dispatchers write is one call of one function. Floor 2.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{
    self, AssertSqlSafe, Connection, Executor, PgConnection, Row, postgres::PgRow,
};
use uuid::Uuid;

use super::{append::unknown_outcome, not_begun, while_running};
use crate::{
    domain::{
        DeliveryWrite, Event, FencingToken, HandlerStep, LastError, Partition, Position, SavedStep,
        SqlCall, SqlFunctionName, SqlRun, SqlRunOutcome, StepOutcome,
        append::{AppendedEntry, Outcome, Refusal},
    },
    store::{StoreError, handlers::SqlFunctions},
};

const SAVE_STEPS: &str = "SELECT saved, next_due_ms, entry_outcome, entry_stream_position, entry_entry_position, \
     entry_created_at FROM tidings_save_handler_steps($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
     $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)";

const RUN_SQL: &str = "SELECT reached, next_due_ms, errors \
     FROM tidings_run_sql_handler($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";

/// The functions of the right signature; those of a name come first, then others that may have been meant.
const FUNCTIONS: &str = "SELECT n.nspname, p.proname, p.proname = $1 AND CASE WHEN $2::text IS NULL \
     THEN pg_catalog.pg_function_is_visible(p.oid) ELSE n.nspname = $2 END AS is_it \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     WHERE p.prokind = 'f' AND p.proargtypes = '2950 2950 3802'::oidvector \
     ORDER BY is_it DESC, n.nspname, p.proname LIMIT 6";

/// How long calls may take at most, whatever the option says: a connection that is silent for longer is given up.
const LONGEST_CALL: Duration = Duration::from_secs(12);

/// Takes away what a function has left in its session, but for prepared statements, which are this server's. What was asked for
/// when the session began is what settings go back to.
/// Source: PostgreSQL's documentation of DISCARD.
const RESET: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; \
     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";

/// Stores what handlers have come to.
pub(super) async fn save_steps(
    connection: &mut PgConnection,
    partition: Partition,
    token: FencingToken,
    steps: &[HandlerStep],
) -> Result<Vec<StepOutcome>, StoreError> {
    let numbered = || (1_i32..).zip(steps);
    let deliveries: Vec<(i32, &DeliveryWrite)> = numbered()
        .flat_map(|(no, step)| step.deliveries.iter().map(move |delivery| (no, delivery)))
        .collect();
    let entries: Vec<_> = numbered()
        .flat_map(|(no, step)| step.entries.iter().map(move |entry| (no, entry)))
        .collect();
    let handlers: Vec<Uuid> = steps.iter().map(|step| step.handler_id.0).collect();
    let from: Vec<i64> = steps.iter().map(|step| step.step.from.0).collect();
    let to: Vec<i64> = steps.iter().map(|step| step.step.to.0).collect();
    let refused = LastError::entry_refused();
    let row = sqlx::query(SAVE_STEPS)
        .bind(partition.number())
        .bind(token.0)
        .bind(handlers)
        .bind(from)
        .bind(to)
        .bind(each(&deliveries, |(no, _)| *no))
        .bind(each(&deliveries, |(_, delivery)| delivery.id.0))
        .bind(each(&deliveries, |(_, delivery)| delivery.is_new))
        .bind(each(&deliveries, |(_, delivery)| delivery.position.0))
        .bind(each(&deliveries, |(_, delivery)| delivery.aggregate_id.0))
        .bind(each(&deliveries, |(_, delivery)| delivery.status.as_str()))
        .bind(each(&deliveries, |(_, delivery)| delivery.attempts))
        .bind(each(&deliveries, |(_, delivery)| {
            delivery.last_error.as_ref().map(LastError::as_str)
        }))
        .bind(each(&deliveries, |(_, delivery)| {
            delivery.delay.map(milliseconds)
        }))
        .bind(each(&entries, |(no, _)| *no))
        .bind(each(&entries, |(_, entry)| entry.0.number()))
        .bind(each(&entries, |(_, entry)| entry.1.stream_name.as_str()))
        .bind(each(&entries, |(_, entry)| entry.1.event_id.0))
        .bind(each(&entries, |(_, entry)| entry.1.event_type.as_str()))
        .bind(each(&entries, |(_, entry)| entry.1.data.as_str()))
        .bind(each(&entries, |(_, entry)| entry.2.id.0))
        .bind(each(&entries, |(_, entry)| entry.2.is_new))
        .bind(each(&entries, |(_, entry)| entry.2.position.0))
        .bind(each(&entries, |(_, entry)| entry.2.aggregate_id.0))
        .bind(each(&entries, |(_, entry)| entry.2.attempts))
        .bind(each(&entries, |_| refused.as_str()))
        .fetch_one(connection)
        .await
        .map_err(while_running)?;
    read_saved(&row, steps).map_err(while_running)
}

fn read_saved(row: &PgRow, steps: &[HandlerStep]) -> Result<Vec<StepOutcome>, sqlx::Error> {
    let saved: Vec<Option<bool>> = row.try_get(0)?;
    let next_due: Vec<Option<i64>> = row.try_get(1)?;
    let outcomes: Vec<Option<String>> = row.try_get(2)?;
    let positions: Vec<Option<i64>> = row.try_get(3)?;
    let entry_positions: Vec<Option<i64>> = row.try_get(4)?;
    let times: Vec<Option<DateTime<Utc>>> = row.try_get(5)?;
    let mut at = 0;
    let mut read = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let mut entries = Vec::with_capacity(step.entries.len());
        for (_, entry, _) in &step.entries {
            let part = |list: &[Option<i64>]| list.get(at).copied().flatten();
            let place = (
                part(&positions),
                part(&entry_positions),
                times.get(at).copied().flatten(),
            );
            let outcome = outcomes.get(at).cloned().flatten();
            at += 1;
            entries.push(match (outcome.as_deref(), place) {
                (Some("appended"), (Some(position), Some(entry_position), Some(created_at))) => {
                    let created_at = created_at.into();
                    Outcome::Appended {
                        at: created_at,
                        places: vec![AppendedEntry {
                            entry_position: Position(entry_position),
                            position: Position(position),
                            created_at,
                        }],
                    }
                }
                (Some("id_reused"), _) => Outcome::Refused(Refusal::IdReused {
                    index: 0,
                    id: entry.event_id,
                }),
                // Nothing was made of one whose handler's part was not stored.
                (Some("duplicate") | None, _) => Outcome::Duplicate,
                (Some(other), _) => return Err(unknown_outcome(other)),
            });
        }
        read.push(match saved.get(index) {
            Some(Some(true)) => StepOutcome::Saved(SavedStep {
                next_due: next_due.get(index).copied().flatten().map(duration),
                entries,
            }),
            Some(None) => StepOutcome::Busy,
            Some(Some(false)) | None => StepOutcome::Lost,
        });
    }
    Ok(read)
}

/// Calls a handler's function for events, in the transaction that moves its checkpoint.
pub(super) async fn run_sql(
    connection: &mut PgConnection,
    partition: Partition,
    run: &SqlRun<'_>,
) -> Result<Option<SqlRunOutcome>, StoreError> {
    let mut transaction = connection.begin().await.map_err(not_begun)?;
    let time_out = run.time_out.min(LONGEST_CALL);
    limit_statements(&mut transaction, time_out).await?;
    let most_failures = i32::try_from(run.most_failures).unwrap_or(i32::MAX);
    let row = sqlx::query(RUN_SQL)
        .bind(partition.number())
        .bind(run.token.0)
        .bind(run.handler_id.0)
        .bind(run.from.0)
        .bind(run.to.0)
        .bind(run.function.schema.as_deref())
        .bind(run.function.name.as_str())
        .bind(each(run.tries, |call| call.id.0))
        .bind(each(run.tries, |call| call.is_new))
        .bind(each(run.tries, |call| call.position.0))
        .bind(each(run.tries, |call| call.attempts))
        .bind(each(run.delays, |delay| milliseconds(*delay)))
        .bind(most_failures)
        .bind(milliseconds(run.most_work.min(time_out / 2)))
        .fetch_one(&mut *transaction)
        .await
        .map_err(while_running)?;
    transaction.commit().await.map_err(while_running)?;
    let read = |row: &PgRow| -> Result<Option<SqlRunOutcome>, sqlx::Error> {
        let Some(reached) = row.try_get::<Option<i64>, _>(0)? else {
            return Ok(None);
        };
        let calls: Vec<Option<String>> = row.try_get(2)?;
        let calls = calls.into_iter().map(|error| match error.as_deref() {
            None => SqlCall::Done,
            Some("") => SqlCall::HeldBack,
            Some(error) => SqlCall::Failed(LastError::new(error)),
        });
        Ok(Some(SqlRunOutcome {
            reached: Position(reached),
            next_due: row.try_get::<Option<i64>, _>(1)?.map(duration),
            calls: calls.collect(),
        }))
    };
    read(&row).map_err(while_running)
}

/// Calls a function for one event, in a transaction of its own. Why it failed is an answer.
pub(super) async fn call_sql(
    connection: &mut PgConnection,
    function: &SqlFunctionName,
    event: &Event,
    time_out: Duration,
) -> Result<Result<(), LastError>, StoreError> {
    let mut transaction = connection.begin().await.map_err(not_begun)?;
    let rows = find(&mut transaction, function).await?;
    let name = rows.iter().find(|(_, is_it)| *is_it);
    let Some(((schema, name), _)) = name else {
        transaction.rollback().await.map_err(while_running)?;
        let message = format!("there is no function {function}(uuid, uuid, jsonb) any more");
        return Ok(Err(LastError::new(&message)));
    };
    limit_statements(&mut transaction, time_out.min(LONGEST_CALL)).await?;
    let sql = format!(
        "SELECT {}.{}($1, $2, $3::jsonb)",
        quoted(schema),
        quoted(name)
    );
    let called = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(event.id.0)
        .bind(event.aggregate_id.0)
        .bind(event.data.as_str())
        .execute(&mut *transaction)
        .await;
    let called = match called {
        // At the commit it would be a fault of the database.
        Ok(_) => {
            (&mut *transaction)
                .execute("SET CONSTRAINTS ALL IMMEDIATE")
                .await
        }
        Err(error) => Err(error),
    };
    match called {
        Ok(_) => {
            transaction.commit().await.map_err(while_running)?;
            Ok(Ok(()))
        }
        Err(sqlx::Error::Database(error)) => {
            transaction.rollback().await.map_err(while_running)?;
            Ok(Err(LastError::new(error.message())))
        }
        Err(error) => Err(while_running(error)),
    }
}

/// Makes a session that functions have been called in as it was before.
pub(super) async fn reset(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection
        .execute(RESET)
        .await
        .map(drop)
        .map_err(while_running)
}

/// Looks for a function of the right signature.
pub(super) async fn find_function(
    connection: &mut PgConnection,
    function: &SqlFunctionName,
) -> Result<SqlFunctions, StoreError> {
    let rows = find(connection, function).await?;
    if rows.iter().any(|(_, is_it)| *is_it) {
        return Ok(SqlFunctions::Found);
    }
    let others = rows
        .into_iter()
        .map(|((schema, name), _)| format!("{schema}.{name}"));
    Ok(SqlFunctions::Missing {
        others: others.collect(),
    })
}

type Named = ((String, String), bool);

async fn find(
    connection: &mut PgConnection,
    function: &SqlFunctionName,
) -> Result<Vec<Named>, StoreError> {
    let rows = sqlx::query(FUNCTIONS)
        .bind(function.name.as_str())
        .bind(function.schema.as_deref())
        .fetch_all(connection)
        .await
        .map_err(while_running)?;
    let read = |row: &PgRow| {
        let name = (row.try_get(0)?, row.try_get(1)?);
        Ok((name, row.try_get::<Option<bool>, _>(2)?.unwrap_or_default()))
    };
    rows.iter()
        .map(|row| read(row).map_err(while_running))
        .collect()
}

/// Ends the statements of a transaction that take too long: before the connection is given up, so that what they have come to
/// is known.
async fn limit_statements(
    connection: &mut PgConnection,
    time_out: Duration,
) -> Result<(), StoreError> {
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(milliseconds(time_out).to_string())
        .execute(connection)
        .await
        .map(drop)
        .map_err(while_running)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn each<'t, T, V>(rows: &'t [T], of: impl Fn(&'t T) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn duration(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default())
}
