//! Statements with many rows, of few sizes. Floor 2.

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{
    self, AssertSqlSafe, Row, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::super::while_running;
use crate::{
    domain::{Partition, Position, Timestamp},
    store::StoreError,
};

/// Statements with many rows come in these sizes, and what is missing to the next one is filled up with rows of NULL: so
/// few texts are ever prepared, and a batch takes few of them. Each costs two hand-overs between threads.
const ROWS_A_STATEMENT: [usize; 11] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256];

/// A statement whose values are being bound.
pub(in super::super) type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

/// A statement over a relation of rows that are handed in. Its text has `{rows}` where they go; their columns are `column1`
/// and so on, of which the first is never NULL.
pub(in super::super) struct OverRows<'s> {
    pub(in super::super) sql: &'s str,
    pub(in super::super) columns: usize,
}

impl OverRows<'_> {
    /// Runs it for its effect.
    pub(in super::super) async fn execute<'r, T>(
        &self,
        connection: &mut SqliteConnection,
        rows: &'r [T],
        bind: impl Fn(Bound<'r>, &'r T) -> Bound<'r>,
    ) -> Result<(), StoreError> {
        for (chunk, size) in sized(rows) {
            self.bound(chunk, size, &bind)
                .execute(&mut *connection)
                .await
                .map_err(while_running)?;
        }
        Ok(())
    }

    /// Runs it for its rows.
    pub(in super::super) async fn fetch<'r, T, V>(
        &self,
        connection: &mut SqliteConnection,
        rows: &'r [T],
        bind: impl Fn(Bound<'r>, &'r T) -> Bound<'r>,
        read: impl Fn(&SqliteRow) -> Result<V, sqlx::Error>,
    ) -> Result<Vec<V>, StoreError> {
        let mut found = Vec::new();
        for (chunk, size) in sized(rows) {
            let fetched = self
                .bound(chunk, size, &bind)
                .fetch_all(&mut *connection)
                .await;
            for row in &fetched.map_err(while_running)? {
                found.push(read(row).map_err(while_running)?);
            }
        }
        Ok(found)
    }

    fn bound<'r, T>(
        &self,
        chunk: &'r [T],
        size: usize,
        bind: &impl Fn(Bound<'r>, &'r T) -> Bound<'r>,
    ) -> Bound<'r> {
        let row = format!("({}?)", "?,".repeat(self.columns - 1));
        let values = format!("(VALUES {}{row})", format!("{row},").repeat(size - 1));
        let mut query = sqlx::query(AssertSqlSafe(self.sql.replace("{rows}", &values)));
        for row in chunk {
            query = bind(query, row);
        }
        for _ in 0..(size - chunk.len()) * self.columns {
            query = query.bind(None::<i64>);
        }
        query
    }
}

/// The rows of one statement, and the size of the statement that takes them.
fn sized<T>(rows: &[T]) -> impl Iterator<Item = (&[T], usize)> {
    let largest = ROWS_A_STATEMENT[ROWS_A_STATEMENT.len() - 1];
    rows.chunks(largest).map(move |chunk| {
        let fits = |size: &&usize| **size >= chunk.len();
        (
            chunk,
            ROWS_A_STATEMENT
                .iter()
                .find(fits)
                .copied()
                .unwrap_or(largest),
        )
    })
}

/// The newest position of a log, as the statement selects it; 0 where it is empty.
pub(in super::super) async fn head_position(
    connection: &mut SqliteConnection,
    sql: &'static str,
    partition: Partition,
) -> Result<Position, StoreError> {
    let row = sqlx::query(sql)
        .bind(partition.number())
        .fetch_one(connection)
        .await
        .map_err(while_running)?;
    row.try_get(0).map(Position).map_err(while_running)
}

/// The newest position of a log, and the time for what comes next: never before the newest one's.
pub(super) async fn head(
    connection: &mut SqliteConnection,
    sql: &'static str,
    partition: Partition,
    now: Timestamp,
) -> Result<(Position, Timestamp), StoreError> {
    let row = sqlx::query(sql)
        .bind(partition.number())
        .fetch_optional(connection)
        .await
        .map_err(while_running)?;
    let Some(row) = row else {
        return Ok((Position::START, now));
    };
    let position = Position(row.try_get(0).map_err(while_running)?);
    let newest = Timestamp::from(row.try_get::<DateTime<Utc>, _>(1).map_err(while_running)?);
    Ok((position, now.max(newest)))
}
