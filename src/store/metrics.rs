//! The table `event_metrics`: what each server has counted in each minute, a row for each type of event on each type of
//! aggregate. Floor 2.
//!
//! A row belongs to one server, which writes its totals anew: a write that is repeated counts nothing twice.

use entity::event_metrics::{Column, Entity};
use sea_orm::{
    Statement, Value,
    sea_query::{Expr, ExprTrait, OnConflict, Order, Query},
};

use super::{Store, StoreError, rows::Row};
use crate::domain::{
    AggregateType, EventMetric, EventType, MetricInterval, MinuteTally, Timestamp,
    metric::mean_within,
};

/// Rows that one statement writes: SQLite takes 32,766 values.
const ROWS_A_STATEMENT: usize = 1000;
/// Rows that are removed at a time, so that nobody waits for long.
const REMOVED_AT_ONCE: u64 = 5000;

/// What is read of each group of rows. A row without a time has no part in the mean.
const FIGURES: &str = "event_type, aggregate_type, CAST(SUM(event_count) AS bigint), \
     CAST(SUM(processing_time_ms * timed_count) / NULLIF(SUM(timed_count), 0) AS double precision), \
     MIN(min_processing_time_ms), MAX(max_processing_time_ms)";

impl Store {
    /// Writes what this server has counted, each row as a whole: in one statement, unless there are very many.
    ///
    /// # Errors
    /// When the database fails. The same rows can be written again then, whether these were or not.
    pub async fn save_event_metrics(&self, tallies: &[MinuteTally]) -> Result<(), StoreError> {
        for chunk in tallies.chunks(ROWS_A_STATEMENT) {
            let mut insert = Query::insert();
            insert.into_table(Entity).columns([
                Column::Id,
                Column::EventType,
                Column::AggregateType,
                Column::EventCount,
                Column::TimedCount,
                Column::ProcessingTimeMs,
                Column::MinProcessingTimeMs,
                Column::MaxProcessingTimeMs,
                Column::CreatedAt,
            ]);
            for row in chunk {
                insert.values_panic([
                    Expr::val(row.id),
                    Expr::val(row.event_type.as_str()),
                    Expr::val(row.aggregate_type.as_str()),
                    Expr::val(stored_count(row.tally.count)),
                    Expr::val(stored_count(row.tally.timed)),
                    Expr::val(row.tally.mean_ms()),
                    Expr::val(row.tally.min_ms),
                    Expr::val(row.tally.max_ms),
                    Expr::val(row.minute.to_utc()),
                ]);
            }
            let totals = OnConflict::column(Column::Id)
                .update_columns([
                    Column::EventCount,
                    Column::TimedCount,
                    Column::ProcessingTimeMs,
                    Column::MinProcessingTimeMs,
                    Column::MaxProcessingTimeMs,
                ])
                .to_owned();
            insert.on_conflict(totals);
            let statement = self.backend.dialect().build(&insert);
            self.backend.execute(statement).await?;
        }
        Ok(())
    }

    /// What all servers have counted in the minutes from one instant up to another, the most frequent first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_metrics(
        &self,
        from: Timestamp,
        to: Timestamp,
        most: u64,
    ) -> Result<Vec<EventMetric>, StoreError> {
        let sql = format!(
            "SELECT {FIGURES} FROM event_metrics WHERE created_at >= $1 AND created_at < $2 \
             GROUP BY event_type, aggregate_type ORDER BY 3 DESC, 1, 2 LIMIT $3"
        );
        let rows = self.read_metrics(sql, from, to, most).await?;
        rows.iter().map(|row| metric(Row::of(row))).collect()
    }

    /// The same for each piece of the time by itself: the pieces in their order, each with its start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_metrics_over_time(
        &self,
        from: Timestamp,
        to: Timestamp,
        interval: MetricInterval,
        most: u64,
    ) -> Result<Vec<(Timestamp, EventMetric)>, StoreError> {
        let start = self.backend.start_of("created_at", interval);
        let sql = format!(
            "SELECT {start}, {FIGURES} FROM event_metrics WHERE created_at >= $1 AND created_at < $2 \
             GROUP BY {start}, event_type, aggregate_type ORDER BY 1, 4 DESC, 2, 3 LIMIT $3"
        );
        let rows = self.read_metrics(sql, from, to, most).await?;
        let of_row = |row| {
            let mut row = Row::of(row);
            Ok((row.instant()?, metric(row)?))
        };
        rows.iter().map(of_row).collect()
    }

    /// Removes what was counted before an instant, some at a time.
    ///
    /// # Errors
    /// When the database fails; what was removed until then is.
    pub async fn remove_event_metrics_before(&self, before: Timestamp) -> Result<(), StoreError> {
        loop {
            // Time by time: rows of one minute go together.
            let select = Query::select()
                .column(Column::CreatedAt)
                .from(Entity)
                .and_where(Expr::col(Column::CreatedAt).lt(before.to_utc()))
                .order_by(Column::CreatedAt, Order::Asc)
                .offset(REMOVED_AT_ONCE)
                .limit(1)
                .to_owned();
            let rows = self.select(&select).await?;
            let up_to = rows.first().map(|row| Row::of(row).instant());
            let up_to = up_to.transpose()?;
            let is_old = match up_to {
                Some(last) => Expr::col(Column::CreatedAt).lte(last.to_utc()),
                None => Expr::col(Column::CreatedAt).lt(before.to_utc()),
            };
            let delete = Query::delete()
                .from_table(Entity)
                .and_where(is_old)
                .to_owned();
            let statement = self.backend.dialect().build(&delete);
            self.backend.execute(statement).await?;
            if up_to.is_none() {
                return Ok(());
            }
        }
    }

    async fn read_metrics(
        &self,
        sql: String,
        from: Timestamp,
        to: Timestamp,
        most: u64,
    ) -> Result<Vec<sea_orm::QueryResult>, StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let values: [Value; 3] = [from.to_utc().into(), to.to_utc().into(), most.into()];
        let dialect = self.backend.dialect();
        self.read(Statement::from_sql_and_values(dialect, sql, values))
            .await
    }
}

fn metric(mut row: Row<'_>) -> Result<EventMetric, StoreError> {
    let mut metric = EventMetric {
        event_type: EventType::stored(row.text()?),
        aggregate_type: AggregateType::stored(row.text()?),
        count: row.next()?,
        mean_ms: row.next()?,
        min_ms: row.next()?,
        max_ms: row.next()?,
    };
    metric.mean_ms = mean_within(metric.mean_ms, metric.min_ms, metric.max_ms);
    Ok(metric)
}

fn stored_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
