//! Appending over several partitions in one transaction, without holding up those who need only some of them. Floor 2.

use std::time::Duration;

use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection, Postgres, Transaction};

use super::super::{milliseconds, not_begun, while_running};
use crate::{
    domain::{
        Partition,
        append::{AppendRequest, Outcome},
    },
    store::{AppendedAcross, LockWaits, StoreError},
};

/// Appends all parts, or none.
pub(in super::super) async fn append(
    connection: &mut PgConnection,
    parts: &[(Partition, AppendRequest)],
    waits: LockWaits,
) -> Result<AppendedAcross, StoreError> {
    let at_first = waits.first.map_or(waits.others, |(_, wait)| wait);
    let mut transaction = begin_waiting(connection, at_first).await?;
    if let Some((partition, _)) = waits.first {
        match super::lock_events(&mut transaction, partition).await {
            Err(StoreError::LockTimeout(_)) => return held(transaction, partition).await,
            locked => locked?,
        }
        let wait = wait_for_locks(waits.others);
        let set = sqlx::raw_sql(AssertSqlSafe(wait));
        set.execute(&mut *transaction)
            .await
            .map_err(while_running)?;
    }
    let mut outcomes = Vec::with_capacity(parts.len());
    for (partition, part) in parts {
        match super::events(&mut transaction, *partition, &[part]).await {
            Err(StoreError::LockTimeout(_)) => return held(transaction, *partition).await,
            judged => outcomes.extend(judged?),
        }
    }
    let all_appended = outcomes
        .iter()
        .all(|outcome| matches!(outcome, Outcome::Appended { .. }));
    let ended = if all_appended {
        transaction.commit().await
    } else {
        transaction.rollback().await
    };
    ended.map_err(while_running)?;
    Ok(AppendedAcross::Judged(outcomes))
}

/// Begins a transaction that waits for so long for a lock. PostgreSQL counts it twice where others wait for the row too: until
/// it is the next one in their queue, and then for the row.
pub(in super::super) async fn begin_waiting(
    connection: &mut PgConnection,
    wait: Duration,
) -> Result<Transaction<'_, Postgres>, StoreError> {
    let begin = format!("BEGIN; {}", wait_for_locks(wait));
    let begun = connection.begin_with(AssertSqlSafe(begin)).await;
    begun.map_err(not_begun)
}

/// With one millisecond more, for what is cut off: it does not end early, and a time-out of nothing would be none.
fn wait_for_locks(wait: Duration) -> String {
    let wait = wait + Duration::from_millis(1);
    format!("SET LOCAL lock_timeout = '{}'", milliseconds(wait))
}

async fn held(
    transaction: Transaction<'_, Postgres>,
    partition: Partition,
) -> Result<AppendedAcross, StoreError> {
    transaction.rollback().await.map_err(while_running)?;
    Ok(AppendedAcross::Held(partition))
}
