//! The counts of events by type: kept in memory, and written once a second to the table `event_metrics`. Floor 3.
//!
//! What is counted of a minute is one row for each type, and this server's own: it is written with its totals, so that a
//! write whose outcome is unknown is simply repeated.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        AggregateType, Clock, Event, EventType, MetricInterval, MinuteTally, Tally, Timestamp,
        metric::in_ms,
    },
    store::{Store, StoreError},
};

/// How often counts are written.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for counts that are too old.
const REMOVE_EVERY: Duration = Duration::from_secs(3600);
/// The most types, over all minutes that are not over or not written. What is beyond is not counted, and that is.
const MAX_TALLIES: usize = 10_000;
/// How long a stop tries to write the last counts.
const LAST_SAVE_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(100);

/// Counts events.
pub struct EventCounts {
    store: Store,
    clock: Arc<dyn Clock>,
    retention: Duration,
    counted: Mutex<Counted>,
    /// Held while counts are written: one after another.
    saving: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Counted {
    minutes: BTreeMap<Timestamp, HashMap<AggregateType, HashMap<EventType, Entry>>>,
    tallies: usize,
    not_counted: u64,
}

struct Entry {
    row: MinuteTally,
    /// How much of it is written.
    saved: u64,
}

impl EventCounts {
    pub(super) fn new(store: Store, clock: Arc<dyn Clock>, retention: Duration) -> Self {
        Self {
            store,
            clock,
            retention,
            counted: Mutex::default(),
            saving: tokio::sync::Mutex::default(),
        }
    }

    /// Counts the events of requests, each of which took as long from taking it to its commit.
    pub(super) fn add_batch(&self, events: &[Arc<Event>], requests: &[(Duration, usize)]) {
        let mut counted = self.counted();
        let mut events = events.iter();
        for (took, count) in requests {
            let took_ms = Some(in_ms(*took));
            for event in events.by_ref().take(*count) {
                let at = event.created_at;
                let (event_type, aggregate_type) = (&event.event_type, &event.aggregate_type);
                counted.add(at, event_type, aggregate_type, took_ms, self.clock.as_ref());
            }
        }
    }

    /// Counts an event that somebody tells of. False where there are too many types to count another one.
    #[must_use]
    pub fn add(
        &self,
        event_type: &EventType,
        aggregate_type: &AggregateType,
        took_ms: Option<f64>,
    ) -> bool {
        let now = self.clock.now();
        self.counted().add(
            now,
            event_type,
            aggregate_type,
            took_ms,
            self.clock.as_ref(),
        )
    }

    /// Writes what was counted. A failed write loses nothing: the next one writes it all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save(&self) -> Result<(), StoreError> {
        let _turn = self.saving.lock().await;
        let unsaved = self.counted().unsaved();
        if !unsaved.is_empty() {
            self.store.save_event_metrics(&unsaved).await?;
        }
        self.counted().mark_saved(&unsaved);
        Ok(())
    }

    /// Writes once a second, and removes what is too old, until it is stopped; then writes what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let mut ticks = interval(SAVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remove_at = Instant::now();
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let saving = async {
                self.save().await?;
                if Instant::now() >= remove_at {
                    remove_at = Instant::now() + REMOVE_EVERY;
                    self.remove_old().await?;
                }
                Ok(())
            };
            // Cut off, it is done again: totals are written, and what is too old goes another time.
            let outcome: Result<(), StoreError> = tokio::select! {
                () = stop.cancelled() => return,
                outcome = saving => outcome,
            };
            let was_failing = std::mem::replace(&mut is_failing, outcome.is_err());
            if let (Err(error), false) = (outcome, was_failing) {
                let error = &error as &dyn Error;
                tracing::warn!(error, "counts of events are not written; trying again");
            }
        }
    }

    /// Writes what is left at the end. A database that takes nothing is not waited for long.
    pub async fn finish(&self) {
        let saved = timeout(LAST_SAVE_TIMEOUT, async {
            while let Err(error) = self.save().await {
                tracing::debug!(
                    error = &error as &dyn Error,
                    "the last counts are not written"
                );
                sleep(PAUSE_AFTER_FAULT).await;
            }
        });
        if saved.await.is_err() {
            let events = self.unsaved_events();
            tracing::warn!(events, "the last counts of events are lost");
        }
    }

    /// How many events were counted and are not written yet.
    #[must_use]
    pub fn unsaved_events(&self) -> u64 {
        let counted = self.counted();
        let entries = counted.entries();
        entries
            .map(|entry| entry.row.tally.count - entry.saved)
            .sum()
    }

    /// How many events were not counted, for too many types.
    #[must_use]
    pub fn not_counted(&self) -> u64 {
        self.counted().not_counted
    }

    async fn remove_old(&self) -> Result<(), StoreError> {
        let retention_micros = i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX);
        let before = self
            .clock
            .now()
            .as_micros()
            .saturating_sub(retention_micros);
        self.store
            .remove_event_metrics_before(Timestamp::from_micros(before))
            .await
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn add(
        &mut self,
        at: Timestamp,
        event_type: &EventType,
        aggregate_type: &AggregateType,
        took_ms: Option<f64>,
        clock: &dyn Clock,
    ) -> bool {
        let minute = MetricInterval::Minute.start_of(at);
        let of_minute = self.minutes.entry(minute).or_default();
        if let Some(entry) = of_minute
            .get_mut(aggregate_type)
            .and_then(|types| types.get_mut(event_type))
        {
            entry.row.tally.add(1, took_ms);
            return true;
        }
        if self.tallies >= MAX_TALLIES {
            if self.not_counted == 0 {
                tracing::warn!(
                    most = MAX_TALLIES,
                    "there are too many types of events to count each: some are not counted"
                );
            }
            self.not_counted += 1;
            return false;
        }
        self.tallies += 1;
        let mut row = MinuteTally {
            id: clock.new_id(),
            minute,
            event_type: event_type.clone(),
            aggregate_type: aggregate_type.clone(),
            tally: Tally::default(),
        };
        row.tally.add(1, took_ms);
        of_minute
            .entry(aggregate_type.clone())
            .or_default()
            .insert(event_type.clone(), Entry { row, saved: 0 });
        true
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let types = self.minutes.values().flat_map(HashMap::values);
        types.flat_map(HashMap::values)
    }

    fn unsaved(&self) -> Vec<MinuteTally> {
        let unsaved = self
            .entries()
            .filter(|entry| entry.row.tally.count > entry.saved);
        unsaved.map(|entry| entry.row.clone()).collect()
    }

    /// What is written and over is forgotten: where its minute comes again, for a clock that was set back, it has a row more.
    fn mark_saved(&mut self, saved: &[MinuteTally]) {
        for row in saved {
            let entry = self
                .minutes
                .get_mut(&row.minute)
                .and_then(|types| types.get_mut(&row.aggregate_type))
                .and_then(|types| types.get_mut(&row.event_type));
            if let Some(entry) = entry.filter(|entry| entry.row.id == row.id) {
                entry.saved = row.tally.count;
            }
        }
        let Some(newest) = self.minutes.keys().next_back().copied() else {
            return;
        };
        self.minutes.retain(|minute, types| {
            types.retain(|_, types| {
                types.retain(|_, entry| *minute == newest || entry.row.tally.count > entry.saved);
                !types.is_empty()
            });
            !types.is_empty()
        });
        self.tallies = self.entries().count();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    struct Ids;

    impl Clock for Ids {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(0)
        }

        #[expect(clippy::disallowed_methods, reason = "any id does")]
        fn new_id(&self) -> Uuid {
            Uuid::new_v4()
        }
    }

    fn add(counted: &mut Counted, minute: i64, event_type: &str) -> bool {
        let at = Timestamp::from_micros(minute * 60_000_000 + 7);
        let event_type = EventType::new(event_type).expect("a name");
        let aggregate_type = AggregateType::new("user").expect("a name");
        counted.add(at, &event_type, &aggregate_type, Some(1.0), &Ids)
    }

    fn counts(counted: &Counted) -> Vec<(i64, u64)> {
        let mut rows = counted.unsaved();
        rows.sort_by_key(|row| row.minute);
        let count = |row: &MinuteTally| (row.minute.as_micros() / 60_000_000, row.tally.count);
        rows.iter().map(count).collect()
    }

    #[test]
    fn what_is_counted_while_rows_are_written_is_written_next_with_the_totals() {
        let mut counted = Counted::default();
        add(&mut counted, 1, "a");
        let first = counted.unsaved();
        add(&mut counted, 1, "a");
        counted.mark_saved(&first);
        let second = counted.unsaved();
        assert_eq!(counts(&counted), [(1, 2)]);
        assert_eq!(first[0].id, second[0].id);
        counted.mark_saved(&second);
        assert_eq!(counts(&counted), []);
    }

    #[test]
    fn what_could_not_be_written_is_kept_minute_by_minute() {
        let mut counted = Counted::default();
        for minute in [1, 1, 2, 3] {
            add(&mut counted, minute, "a");
        }
        assert_eq!(counts(&counted), [(1, 2), (2, 1), (3, 1)]);
        let rows = counted.unsaved();
        counted.mark_saved(&rows);
        assert_eq!(counted.tallies, 1, "the newest minute goes on");
        add(&mut counted, 1, "a");
        let late = counted.unsaved();
        assert_eq!(counts(&counted), [(1, 1)]);
        assert!(rows.iter().all(|row| row.id != late[0].id));
    }

    #[test]
    fn types_beyond_the_bound_are_told_and_not_kept() {
        let mut counted = Counted::default();
        for no in 0..MAX_TALLIES {
            assert!(add(&mut counted, 1, &format!("type {no}")));
        }
        assert!(!add(&mut counted, 1, "another"));
        assert!(add(&mut counted, 1, "type 0"));
        assert_eq!((counted.tallies, counted.not_counted), (MAX_TALLIES, 1));
        let rows = counted.unsaved();
        counted.mark_saved(&rows);
        assert!(
            !add(&mut counted, 2, "another"),
            "the newest minute goes on"
        );
    }
}
