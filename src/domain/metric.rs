//! Metrics of events: how many of each type there were in a minute, and how long they took. Floor 0.

use std::time::Duration;

use uuid::Uuid;

use super::{AggregateType, EventType, Timestamp};

/// How many events were counted, and how long those took that a time is known of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// How many were counted.
    pub count: u64,
    /// Of how many a time is known.
    pub timed: u64,
    /// All times together, in milliseconds.
    pub total_ms: f64,
    /// The shortest time, in milliseconds.
    pub min_ms: Option<f64>,
    /// The longest time, in milliseconds.
    pub max_ms: Option<f64>,
}

impl Tally {
    /// Counts so many events that each took as long.
    pub fn add(&mut self, count: u64, took_ms: Option<f64>) {
        self.count += count;
        let Some(took_ms) = took_ms else { return };
        self.timed += count;
        self.total_ms += took_ms * count as f64;
        self.min_ms = Some(self.min_ms.map_or(took_ms, |min| min.min(took_ms)));
        self.max_ms = Some(self.max_ms.map_or(took_ms, |max| max.max(took_ms)));
    }

    /// The mean time in milliseconds; none where no time is known.
    #[must_use]
    pub fn mean_ms(&self) -> Option<f64> {
        let mean_ms = (self.timed > 0).then(|| self.total_ms / self.timed as f64);
        mean_within(mean_ms, self.min_ms, self.max_ms)
    }
}

/// A mean that was rounded, between the least and the greatest of its values.
#[must_use]
pub fn mean_within(mean: Option<f64>, min: Option<f64>, max: Option<f64>) -> Option<f64> {
    match (min, max) {
        (Some(min), Some(max)) => mean.map(|mean| mean.max(min).min(max)),
        _ => mean,
    }
}

/// A time in milliseconds.
#[must_use]
pub fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What one server has counted of one type of event on one type of aggregate in one minute.
#[derive(Clone, Debug, PartialEq)]
pub struct MinuteTally {
    /// What tells it from those of other servers.
    pub id: Uuid,
    /// The start of the minute.
    pub minute: Timestamp,
    /// The type of the events.
    pub event_type: EventType,
    /// The type of their aggregates.
    pub aggregate_type: AggregateType,
    /// What was counted until now.
    pub tally: Tally,
}

/// What was counted in some time of one type of event on one type of aggregate, by all servers.
#[derive(Clone, Debug, PartialEq)]
pub struct EventMetric {
    /// The type of the events.
    pub event_type: EventType,
    /// The type of their aggregates.
    pub aggregate_type: AggregateType,
    /// How many there were.
    pub count: i64,
    /// The mean of the times that are known, in milliseconds.
    pub mean_ms: Option<f64>,
    /// The shortest of them.
    pub min_ms: Option<f64>,
    /// The longest of them.
    pub max_ms: Option<f64>,
}

/// Into how long pieces a time is divided, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricInterval {
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Days.
    Day,
}

impl MetricInterval {
    const fn micros(self) -> i64 {
        match self {
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }

    /// The start of the piece that an instant lies in.
    #[must_use]
    pub const fn start_of(self, instant: Timestamp) -> Timestamp {
        let micros = instant.as_micros();
        Timestamp::from_micros(micros - micros.rem_euclid(self.micros()))
    }

    /// The start of the piece behind the one that begins at an instant.
    #[must_use]
    pub const fn next(self, start: Timestamp) -> Timestamp {
        Timestamp::from_micros(start.as_micros().saturating_add(self.micros()))
    }

    /// How many pieces a range touches; its end does not belong to it.
    #[must_use]
    pub const fn pieces(self, from: Timestamp, to: Timestamp) -> u64 {
        let first = self.start_of(from).as_micros();
        let micros = to.as_micros().saturating_sub(first);
        if micros <= 0 {
            return 0;
        }
        (micros as u64).div_ceil(self.micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("RFC 3339")
    }

    #[test]
    fn events_without_a_time_leave_the_mean_alone() {
        let mut tally = Tally::default();
        tally.add(3, None);
        assert_eq!(
            (tally.count, tally.mean_ms(), tally.min_ms),
            (3, None, None)
        );
        tally.add(1, Some(4.0));
        tally.add(3, Some(8.0));
        assert_eq!((tally.count, tally.timed), (7, 4));
        assert_eq!(tally.mean_ms(), Some(7.0));
        assert_eq!((tally.min_ms, tally.max_ms), (Some(4.0), Some(8.0)));
    }

    #[test]
    fn a_mean_lies_between_the_shortest_and_the_longest_time() {
        let mut tally = Tally::default();
        for _ in 0..6 {
            tally.add(1, Some(3.00899));
        }
        assert_ne!(tally.total_ms / 6.0, 3.00899, "it is rounded");
        assert_eq!(tally.mean_ms(), Some(3.00899));
    }

    #[test]
    fn pieces_begin_at_whole_minutes_hours_and_days() {
        let instant = at("2026-02-03T04:05:06.7Z");
        let starts = [
            MetricInterval::Minute,
            MetricInterval::Hour,
            MetricInterval::Day,
        ]
        .map(|interval| interval.start_of(instant));
        assert_eq!(
            starts,
            [
                at("2026-02-03T04:05:00Z"),
                at("2026-02-03T04:00:00Z"),
                at("2026-02-03T00:00:00Z")
            ]
        );
        let before_1970 = MetricInterval::Day.start_of(Timestamp::from_micros(-1));
        assert_eq!(before_1970, at("1969-12-31T00:00:00Z"));
    }

    #[test]
    fn a_range_touches_the_pieces_of_its_ends() {
        let count = |from, to| MetricInterval::Hour.pieces(at(from), at(to));
        assert_eq!(count("2026-01-01T00:59:00Z", "2026-01-01T01:01:00Z"), 2);
        assert_eq!(count("2026-01-01T00:59:00Z", "2026-01-01T01:00:00Z"), 1);
        assert_eq!(count("2026-01-01T02:00:00Z", "2026-01-01T01:00:00Z"), 0);
    }
}
