//! Metrics of events: how many of each type there were, and how long they took. Floor 6.

use std::{sync::Arc, time::Duration};

use async_graphql::{Context, Enum, InputObject, Object, Result, SimpleObject};

use super::{
    access::require,
    errors::ApiError,
    pagination::list_cost,
    scalars::{DateTimeScalar, Long},
};
use crate::{
    app::App,
    domain::{self, AggregateType, EventType, MetricInterval as Interval, Role, Timestamp},
};

/// Without a time, it is the last hour.
const DEFAULT_RANGE: Duration = Duration::from_secs(3600);
/// The most types in one answer.
const MOST_TYPES: u32 = 1000;
/// The most buckets in one answer, and the most types in all of them together.
const MOST_BUCKETS: u64 = 1500;
const MOST_ROWS: u32 = 5000;

/// Events of one type on one type of aggregate, and how long they took from taking the request to its commit.
#[derive(SimpleObject)]
pub struct EventMetric {
    /// The type of the events.
    event_type: String,
    /// The type of their aggregates.
    aggregate_type: String,
    /// How many there were.
    event_count: Long,
    /// The mean of the times that are known.
    avg_processing_time_ms: Option<f64>,
    /// The longest of them.
    max_processing_time_ms: Option<f64>,
    /// The shortest of them.
    min_processing_time_ms: Option<f64>,
}

impl From<domain::EventMetric> for EventMetric {
    fn from(metric: domain::EventMetric) -> Self {
        Self {
            event_type: metric.event_type.as_str().to_owned(),
            aggregate_type: metric.aggregate_type.as_str().to_owned(),
            event_count: Long(metric.count),
            avg_processing_time_ms: metric.mean_ms,
            max_processing_time_ms: metric.max_ms,
            min_processing_time_ms: metric.min_ms,
        }
    }
}

/// A piece of the time that was asked for.
#[derive(SimpleObject)]
pub struct EventMetricBucket {
    /// The start of the bucket; it ends where the next one starts.
    start: DateTimeScalar,
    /// What was counted in it, the most frequent first.
    metrics: Vec<EventMetric>,
}

/// How long buckets are. Hours and days begin in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub enum MetricInterval {
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Days.
    Day,
}

impl From<MetricInterval> for Interval {
    fn from(interval: MetricInterval) -> Self {
        match interval {
            MetricInterval::Minute => Self::Minute,
            MetricInterval::Hour => Self::Hour,
            MetricInterval::Day => Self::Day,
        }
    }
}

/// The minutes that a range touches: all of each counts. The end of the range does not belong to it.
fn range(
    now: Timestamp,
    from: Option<DateTimeScalar>,
    to: Option<DateTimeScalar>,
) -> Result<(Timestamp, Timestamp), ApiError> {
    let hour_micros = DEFAULT_RANGE.as_micros() as i64;
    // What has happened at this very instant is asked for, too.
    let to = to.map_or(Timestamp::from_micros(now.as_micros() + 1), |to| to.0);
    let from = from.map_or(
        Timestamp::from_micros(to.as_micros().saturating_sub(hour_micros)),
        |from| from.0,
    );
    if from >= to {
        return Err(ApiError::bad_input("from", "must be before `to`"));
    }
    Ok((Interval::Minute.start_of(from), to))
}

/// What this server has counted until now is there for whoever asks it.
async fn save_counts(app: &App) -> Result<(), ApiError> {
    if let Some(counts) = app.metrics().event_counts() {
        counts.save().await.map_err(ApiError::from)?;
    }
    Ok(())
}

#[derive(Default)]
pub struct EventMetricQuery;

#[Object]
impl EventMetricQuery {
    /// Counts and processing times by event type, of the last hour unless told otherwise: the 1,000 most frequent types. Counted
    /// by the minute, and a minute counts as a whole; what another server has appended is there within a second or two.
    #[graphql(complexity = "list_cost(MOST_TYPES as i32, child_complexity)")]
    async fn event_metrics(
        &self,
        ctx: &Context<'_>,
        from: Option<DateTimeScalar>,
        to: Option<DateTimeScalar>,
    ) -> Result<Vec<EventMetric>> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let (from, to) = range(app.clock().now(), from, to)?;
        save_counts(app).await?;
        let metrics = app.store().event_metrics(from, to, MOST_TYPES.into()).await;
        let metrics = metrics.map_err(ApiError::from)?;
        Ok(metrics.into_iter().map(EventMetric::from).collect())
    }

    /// The same for each minute, hour or day by itself, those without events too.
    #[graphql(
        complexity = "(MOST_ROWS as usize).saturating_mul(child_complexity).saturating_add(1)"
    )]
    async fn event_metrics_over_time(
        &self,
        ctx: &Context<'_>,
        from: Option<DateTimeScalar>,
        to: Option<DateTimeScalar>,
        #[graphql(default_with = "MetricInterval::Minute")] interval: MetricInterval,
    ) -> Result<Vec<EventMetricBucket>> {
        require(ctx, Role::Read)?;
        let app = ctx.data_unchecked::<Arc<App>>();
        let (from, to) = range(app.clock().now(), from, to)?;
        let interval = Interval::from(interval);
        let from = interval.start_of(from);
        let count = interval.pieces(from, to);
        if count > MOST_BUCKETS {
            let message = format!(
                "makes {count} buckets with `from` and `to`, and {MOST_BUCKETS} are allowed: take a longer interval or a shorter time"
            );
            return Err(ApiError::bad_input("interval", message).into());
        }
        save_counts(app).await?;
        let store = app.store();
        let rows = store
            .event_metrics_over_time(from, to, interval, u64::from(MOST_ROWS) + 1)
            .await
            .map_err(ApiError::from)?;
        if rows.len() > MOST_ROWS as usize {
            let message = format!(
                "makes more than {MOST_ROWS} metrics with `from` and `to`: take a longer interval or a shorter time"
            );
            return Err(ApiError::bad_input("interval", message).into());
        }
        Ok(buckets(rows, from, count, interval))
    }
}

fn buckets(
    rows: Vec<(Timestamp, domain::EventMetric)>,
    from: Timestamp,
    count: u64,
    interval: Interval,
) -> Vec<EventMetricBucket> {
    let mut rows = rows.into_iter().peekable();
    let mut start = from;
    let mut bucket = || {
        let mut metrics = Vec::new();
        while let Some((_, metric)) = rows.next_if(|(of, _)| *of == start) {
            metrics.push(metric.into());
        }
        let bucket = EventMetricBucket {
            start: DateTimeScalar(start),
            metrics,
        };
        start = interval.next(start);
        bucket
    };
    (0..count).map(|_| bucket()).collect()
}

/// An event to count.
#[derive(InputObject)]
pub struct RecordEventMetricInput {
    /// Its type.
    event_type: String,
    /// The type of its aggregate.
    aggregate_type: String,
    /// How long it took, if that is known.
    processing_time_ms: Option<f64>,
}

/// What became of it.
#[derive(SimpleObject)]
pub struct RecordEventMetricPayload {
    /// False where nothing is counted: metrics of events are turned off, or there are too many types.
    recorded: bool,
}

#[derive(Default)]
pub struct EventMetricMutation;

#[Object]
impl EventMetricMutation {
    /// Counts an event that happened elsewhere. Those of the event store are counted when they are appended. It is stored within
    /// a second; a server that is killed before has not counted it.
    async fn record_event_metric(
        &self,
        ctx: &Context<'_>,
        input: RecordEventMetricInput,
    ) -> Result<RecordEventMetricPayload> {
        require(ctx, Role::Write)?;
        let event_type = EventType::new(&input.event_type)
            .map_err(|error| ApiError::bad_input("input.eventType", error))?;
        let aggregate_type = AggregateType::new(&input.aggregate_type)
            .map_err(|error| ApiError::bad_input("input.aggregateType", error))?;
        let is_right = |time: f64| time.is_finite() && time >= 0.0;
        if !input.processing_time_ms.is_none_or(is_right) {
            let message = "must be a number of milliseconds, 0 or more";
            return Err(ApiError::bad_input("input.processingTimeMs", message).into());
        }
        let app = ctx.data_unchecked::<Arc<App>>();
        let counts = app.metrics().event_counts();
        let recorded = counts.is_some_and(|counts| {
            counts.add(&event_type, &aggregate_type, input.processing_time_ms)
        });
        Ok(RecordEventMetricPayload { recorded })
    }
}
