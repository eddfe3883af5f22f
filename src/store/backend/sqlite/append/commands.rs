//! Recording and settling commands on SQLite, in the transaction of their events. Floor 2.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, Row, SqliteConnection};
use uuid::Uuid;

use super::{super::while_running, statements::OverRows};
use crate::{
    domain::{
        Command, CommandId, CommandStatus, CommandStep, NewCommand, Partition, Timestamp, Version,
        append::AppendRequest,
    },
    store::{StoreError, rows},
};

const KNOWN_COMMANDS: OverRows<'_> = OverRows {
    sql: "SELECT c.id, c.status FROM {rows} r CROSS JOIN commands c ON c.partition_no = r.column1 AND c.id = r.column2",
    columns: 2,
};

const RECORD_COMMANDS: OverRows<'_> = OverRows {
    sql: "INSERT INTO commands (partition_no, id, aggregate_id, command_type, command_data, command_metadata, status, \
          reason, attempts, not_before, first_version, last_version, created_at, processed_at) \
          SELECT * FROM {rows} WHERE column1 IS NOT NULL",
    columns: 14,
};

const SETTLE_COMMANDS: OverRows<'_> = OverRows {
    sql: "UPDATE commands SET status = r.column3, reason = r.column4, attempts = attempts + 1, \
          first_version = r.column5, last_version = r.column6, processed_at = r.column7 \
          FROM {rows} r WHERE commands.partition_no = r.column1 AND commands.id = r.column2",
    columns: 7,
};

/// A command whose step was accepted, with the versions of its first and last event.
pub(super) struct Done<'r> {
    step: &'r CommandStep,
    first: Option<Version>,
    last: Option<Version>,
}

impl<'r> Done<'r> {
    /// The command of a request whose events got these versions.
    pub(super) fn of(request: &'r AppendRequest, versions: &[Version]) -> Option<Self> {
        Some(Self {
            step: request.command.as_ref()?,
            first: versions.first().copied(),
            last: versions.last().copied(),
        })
    }
}

/// The commands of a batch that may be there already, and are.
pub(super) async fn known(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&AppendRequest],
) -> Result<HashMap<CommandId, CommandStatus>, StoreError> {
    let may_be_known = |step: &&CommandStep| {
        let record = step.record.as_ref();
        record.is_none_or(|command| command.id_is_given)
    };
    let ids: Vec<Uuid> = requests
        .iter()
        .filter_map(|request| request.command.as_ref())
        .filter(may_be_known)
        .map(|step| step.id.0)
        .collect();
    let known = KNOWN_COMMANDS
        .fetch(
            connection,
            &ids,
            |query, id| query.bind(partition.number()).bind(id),
            |row| Ok((CommandId(row.try_get(0)?), row.try_get::<String, _>(1)?)),
        )
        .await?;
    known
        .into_iter()
        .map(|(id, status)| Ok((id, rows::command_status(&status)?)))
        .collect()
}

/// The instant of a batch: where it leaves commands pending, after the newest one that is. They are processed in the order of
/// their creation, also where the clock was set back.
pub(super) async fn after_pending(
    connection: &mut SqliteConnection,
    partition: Partition,
    requests: &[&AppendRequest],
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    let leaves_pending = requests
        .iter()
        .filter_map(|request| request.command.as_ref())
        .any(|step| step.status == CommandStatus::Pending);
    if !leaves_pending {
        return Ok(now);
    }
    let sql = "SELECT created_at FROM commands WHERE partition_no = $1 AND status = 'PENDING' \
               ORDER BY created_at DESC, id DESC LIMIT 1";
    let newest = sqlx::query_scalar::<_, DateTime<Utc>>(sql)
        .bind(partition.number())
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let next = |newest: DateTime<Utc>| Timestamp::from(newest).after(Duration::from_micros(1));
    Ok(newest.map_or(now, |newest| now.max(next(newest))))
}

/// Writes what has become of commands.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    partition: Partition,
    done: &[Done<'_>],
    at: Timestamp,
) -> Result<(), StoreError> {
    let recorded: Vec<(&Done<'_>, &NewCommand)> = done
        .iter()
        .filter_map(|done| Some((done, done.step.record.as_deref()?)))
        .collect();
    let settled: Vec<&Done<'_>> = done
        .iter()
        .filter(|done| done.step.record.is_none())
        .collect();
    RECORD_COMMANDS
        .execute(connection, &recorded, |query, (done, command)| {
            let is_pending = done.step.status == CommandStatus::Pending;
            query
                .bind(partition.number())
                .bind(command.id.0)
                .bind(command.aggregate_id.0)
                .bind(command.command_type.as_str())
                .bind(command.data.as_str())
                .bind(command.metadata.as_str())
                .bind(done.step.status.as_str())
                .bind(done.step.reason.as_deref())
                .bind(i32::from(!is_pending))
                .bind(command.not_before.map(Timestamp::to_utc))
                .bind(done.first.map(|version| version.0))
                .bind(done.last.map(|version| version.0))
                .bind(at.to_utc())
                .bind((!is_pending).then(|| at.to_utc()))
        })
        .await?;
    SETTLE_COMMANDS
        .execute(connection, &settled, |query, done| {
            query
                .bind(partition.number())
                .bind(done.step.id.0)
                .bind(done.step.status.as_str())
                .bind(done.step.reason.as_deref())
                .bind(done.first.map(|version| version.0))
                .bind(done.last.map(|version| version.0))
                .bind(at.to_utc())
        })
        .await
}

/// Puts a command off that could not be decided, if nobody has tried or settled it meanwhile.
pub(crate) async fn postpone(
    connection: &mut SqliteConnection,
    command: &Command,
    reason: &str,
    not_before: Timestamp,
) -> Result<bool, StoreError> {
    let sql = "UPDATE commands SET attempts = attempts + 1, reason = $4, not_before = $5 \
               WHERE partition_no = $1 AND id = $2 AND status = 'PENDING' AND attempts = $3";
    sqlx::query(sql)
        .bind(command.partition.number())
        .bind(command.id.0)
        .bind(command.attempts)
        .bind(reason)
        .bind(not_before.to_utc())
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(while_running)
}
