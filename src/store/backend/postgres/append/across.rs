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
    let begin = format!("BEGIN; {}", wait_for_locks(at_first));
    let begun = connection.begin_with(AssertSqlSafe(begin)).await;
    let mut transaction = begun.map_err(not_begun)?;
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

/// A time-out of nothing would be none.
fn wait_for_locks(wait: Duration) -> String {
    let wait = wait.max(Duration::from_millis(1));
    format!("SET LOCAL lock_timeout = '{}'", milliseconds(wait))
}

async fn held(
    transaction: Transaction<'_, Postgres>,
    partition: Partition,
) -> Result<AppendedAcross, StoreError> {
    transaction.rollback().await.map_err(while_running)?;
    Ok(AppendedAcross::Held(partition))
}
