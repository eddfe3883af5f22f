//! Reading a whole database as of one instant. Floor 2.
//!
//! Whoever takes the rows may take its time, so no statement has a time limit here. What is waited for is looked after from
//! outside instead: by another connection that asks whether the database is at work for this one.

use std::pin::pin;

use futures_util::TryStreamExt;
use sea_orm::{
    QueryResult, Statement, Values,
    sqlx::{self, AssertSqlSafe, Connection, Executor, postgres::PgConnection},
};
use sea_query_sqlx::SqlxValues;
use tokio::{sync::mpsc, time::timeout};

use super::{super::kept::Gate, GRACE, Postgres, READ_TIMEOUT, not_begun, silent, while_running};
use crate::store::StoreError;

/// Whether a session works on a statement: one that waits for whoever takes its rows does not, nor does one that has sent them.
const IS_AT_WORK: &str = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active' \
     AND wait_event_type IS DISTINCT FROM 'Client')";
/// So many times in a row nothing has come and the database is not at work: then what it had to say is lost.
const LOOKS: u32 = 2;

/// How much was taken of a snapshot.
pub(super) enum Taken {
    Whole,
    /// Nobody has taken the rest.
    Part,
}

/// Runs statements one after another as of one instant, and hands over their rows as they come.
pub(super) async fn read(
    postgres: &Postgres,
    epoch: u64,
    connection: &mut PgConnection,
    statements: Vec<Statement>,
    rows: mpsc::Sender<(usize, QueryResult)>,
) -> Result<Taken, StoreError> {
    let limit = READ_TIMEOUT + GRACE;
    let begun = postgres.primary.while_primary(epoch, limit, async move {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        let mut transaction = connection.begin_with(begin).await.map_err(not_begun)?;
        let patient =
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
        (&mut *transaction)
            .execute(sqlx::raw_sql(patient))
            .await
            .map_err(while_running)?;
        let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut *transaction)
            .await
            .map_err(while_running)?;
        Ok::<_, StoreError>((transaction, session))
    });
    let (mut transaction, session) = begun.await.ok_or_else(silent)??;
    let watch = Watch {
        postgres,
        epoch,
        session,
    };
    for (number, statement) in statements.into_iter().enumerate() {
        let values = SqlxValues(statement.values.unwrap_or(Values(Vec::new())));
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values);
        let mut answer = query.fetch(&mut *transaction);
        while let Some(row) = watch.wait_for(answer.try_next()).await? {
            if rows.send((number, row.into())).await.is_err() {
                return Ok(Taken::Part);
            }
        }
    }
    watch.wait_for(transaction.commit()).await?;
    Ok(Taken::Whole)
}

/// Looks after a session that is waited for.
struct Watch<'p> {
    postgres: &'p Postgres,
    epoch: u64,
    session: i32,
}

impl Watch<'_> {
    /// Waits for as long as the database is at work, and is the primary.
    async fn wait_for<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let mut answer = pin!(answer);
        let mut lost = 0;
        while lost < LOOKS {
            let wait = self.postgres.acquire_timeout;
            let waiting = (self.postgres.primary).while_primary(self.epoch, wait, &mut answer);
            if let Some(answer) = waiting.await {
                return answer.map_err(while_running);
            }
            if self.postgres.primary.epoch() != self.epoch {
                break;
            }
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(while_running),
                is_at_work = self.is_at_work() => lost = if is_at_work { 0 } else { lost + 1 },
            }
        }
        Err(silent())
    }

    /// Whether the database works on what is waited for. Where it does not answer, it does not.
    async fn is_at_work(&self) -> bool {
        let look = async {
            let mut taken = self.postgres.leases.take().await.ok()?;
            let look = sqlx::query_scalar(IS_AT_WORK).bind(self.session);
            let is_at_work = look.fetch_one(taken.connection()).await.ok()?;
            taken.give_back();
            Some(is_at_work)
        };
        let looked = timeout(self.postgres.acquire_timeout, look).await;
        looked.ok().flatten().unwrap_or(false)
    }
}
