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
/// The most rows in memory, one for each minute and type. What is beyond is not counted, and that is.
const MAX_TALLIES: usize = 10_000;
/// The most of those that clients tell of. They have a bound of their own: nobody can make up types until none is left for events.
const MAX_TOLD: usize = 1000;
/// A minute is over when nothing was counted in it for so long. Not by its own time: the clocks of servers and of the database
/// differ, and each row that is forgotten too soon is begun anew.
const OVER_AFTER: Duration = Duration::from_secs(150);
/// How long a stop tries to write the last counts.
const LAST_SAVE_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(100);

/// Counts events.
pub struct EventCounts {
    store: Store,
    clock: Arc<dyn Clock>,
    counted: Mutex<Counted>,
    /// Held while counts are written: one after another.
    saving: tokio::sync::Mutex<()>,
}

/// Where what is counted comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It was appended.
    Appended,
    /// A client tells of it.
    Told,
}

#[derive(Default)]
struct Counted {
    minutes: BTreeMap<Timestamp, Minute>,
    tallies: usize,
    /// How many of them clients have told of first.
    told: usize,
    /// Whether something was written since room was made.
    may_make_room: bool,
    not_counted: u64,
}

struct Minute {
    types: HashMap<AggregateType, HashMap<EventType, Entry>>,
    counted_at: Instant,
}

struct Entry {
    row: MinuteTally,
    source: Source,
    /// How much of it is written.
    saved: u64,
}

impl EventCounts {
    pub(super) fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            counted: Mutex::default(),
            saving: tokio::sync::Mutex::default(),
        }
    }

    /// Counts the events of requests, each of which took as long from taking it to its commit.
    pub(super) fn add_batch(&self, events: &[Arc<Event>], requests: &[(Duration, usize)]) {
        let now = Instant::now();
        let mut counted = self.counted();
        let mut events = events.iter();
        for (took, count) in requests {
            let took_ms = Some(in_ms(*took));
            for event in events.by_ref().take(*count) {
                let types = (&event.event_type, &event.aggregate_type);
                let happened = (event.created_at, now);
                let clock = self.clock.as_ref();
                counted.add(Source::Appended, happened, types, took_ms, clock);
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
        let happened = (self.clock.now(), Instant::now());
        let (types, clock) = ((event_type, aggregate_type), self.clock.as_ref());
        let mut counted = self.counted();
        counted.add(Source::Told, happened, types, took_ms, clock)
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
        self.counted().mark_saved(&unsaved, Instant::now());
        Ok(())
    }

    /// Writes once a second until it is stopped.
    pub async fn run(&self, stop: CancellationToken) {
        let mut ticks = interval(SAVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // Cut off, it is done again: totals are written.
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.save() => outcome,
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

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn add(
        &mut self,
        source: Source,
        (at, now): (Timestamp, Instant),
        (event_type, aggregate_type): (&EventType, &AggregateType),
        took_ms: Option<f64>,
        clock: &dyn Clock,
    ) -> bool {
        let minute = MetricInterval::Minute.start_of(at);
        if let Some(of_minute) = self.minutes.get_mut(&minute) {
            of_minute.counted_at = now;
            if let Some(entry) = of_minute
                .types
                .get_mut(aggregate_type)
                .and_then(|types| types.get_mut(event_type))
            {
                entry.row.tally.add(1, took_ms);
                return true;
            }
        }
        if !self.has_room(source) && std::mem::take(&mut self.may_make_room) {
            // Other minutes are let go sooner than something is not counted.
            self.forget(|other, _| other != minute);
        }
        if !self.has_room(source) {
            if self.not_counted == 0 {
                tracing::warn!(
                    most = MAX_TALLIES,
                    most_told = MAX_TOLD,
                    "there are too many types of events to count each: some are not counted"
                );
            }
            self.not_counted += 1;
            return false;
        }
        match source {
            Source::Appended => self.tallies += 1,
            Source::Told => self.told += 1,
        }
        let mut row = MinuteTally {
            id: clock.new_id(),
            minute,
            event_type: event_type.clone(),
            aggregate_type: aggregate_type.clone(),
            tally: Tally::default(),
        };
        row.tally.add(1, took_ms);
        let entry = Entry {
            row,
            source,
            saved: 0,
        };
        let of_minute = self.minutes.entry(minute).or_insert_with(|| Minute {
            types: HashMap::new(),
            counted_at: now,
        });
        of_minute
            .types
            .entry(aggregate_type.clone())
            .or_default()
            .insert(event_type.clone(), entry);
        true
    }

    fn has_room(&self, source: Source) -> bool {
        match source {
            Source::Appended => self.tallies < MAX_TALLIES,
            Source::Told => self.told < MAX_TOLD,
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let types = self.minutes.values();
        let types = types.flat_map(|minute| minute.types.values());
        types.flat_map(HashMap::values)
    }

    fn unsaved(&self) -> Vec<MinuteTally> {
        let unsaved = self
            .entries()
            .filter(|entry| entry.row.tally.count > entry.saved);
        unsaved.map(|entry| entry.row.clone()).collect()
    }

    /// What is written and over is forgotten: where its minute comes again, for a clock that was set back, it has a row more.
    fn mark_saved(&mut self, saved: &[MinuteTally], now: Instant) {
        for row in saved {
            let entry = self
                .minutes
                .get_mut(&row.minute)
                .and_then(|minute| minute.types.get_mut(&row.aggregate_type))
                .and_then(|types| types.get_mut(&row.event_type));
            if let Some(entry) = entry.filter(|entry| entry.row.id == row.id) {
                entry.saved = row.tally.count;
            }
        }
        self.may_make_room = true;
        self.forget(|_, counted_at| now.duration_since(counted_at) >= OVER_AFTER);
    }

    /// Forgets what is written of some minutes.
    fn forget(&mut self, is_over: impl Fn(Timestamp, Instant) -> bool) {
        self.minutes.retain(|start, minute| {
            if is_over(*start, minute.counted_at) {
                minute.types.retain(|_, types| {
                    types.retain(|_, entry| entry.row.tally.count > entry.saved);
                    !types.is_empty()
                });
            }
            !minute.types.is_empty()
        });
        let is_told = |entry: &&Entry| entry.source == Source::Told;
        self.told = self.entries().filter(is_told).count();
        self.tallies = self.entries().count() - self.told;
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
        add_from(Source::Appended, counted, minute, event_type)
    }

    fn add_from(source: Source, counted: &mut Counted, minute: i64, event_type: &str) -> bool {
        let at = Timestamp::from_micros(minute * 60_000_000 + 7);
        let event_type = EventType::new(event_type).expect("a name");
        let aggregate_type = AggregateType::new("user").expect("a name");
        let types = (&event_type, &aggregate_type);
        counted.add(source, (at, Instant::now()), types, Some(1.0), &Ids)
    }

    /// Writes all there is, a while after it was counted: the rows.
    fn save(counted: &mut Counted, later: Duration) -> Vec<MinuteTally> {
        let rows = counted.unsaved();
        counted.mark_saved(&rows, Instant::now() + later);
        rows
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
        counted.mark_saved(&first, Instant::now());
        let second = counted.unsaved();
        assert_eq!(counts(&counted), [(1, 2)]);
        assert_eq!(first[0].id, second[0].id);
        counted.mark_saved(&second, Instant::now());
        assert_eq!(counts(&counted), []);
    }

    #[test]
    fn what_could_not_be_written_is_kept_minute_by_minute() {
        let mut counted = Counted::default();
        for minute in [1, 1, 2, 3] {
            add(&mut counted, minute, "a");
        }
        assert_eq!(counts(&counted), [(1, 2), (2, 1), (3, 1)]);
        let rows = save(&mut counted, OVER_AFTER);
        assert_eq!(counted.tallies, 0, "all of them are over");
        add(&mut counted, 1, "a");
        let late = counted.unsaved();
        assert_eq!(counts(&counted), [(1, 1)]);
        assert!(rows.iter().all(|row| row.id != late[0].id));
    }

    #[test]
    fn servers_whose_clocks_differ_write_one_row_a_minute_and_type_all_the_same() {
        let mut counted = Counted::default();
        let mut ids = std::collections::HashSet::new();
        for _ in 0..30 {
            // What clients tell of has this server's time, what is appended the database's.
            add_from(Source::Told, &mut counted, 9, "told");
            add(&mut counted, 7, "appended");
            let rows = save(&mut counted, Duration::from_secs(1));
            ids.extend(rows.iter().map(|row| row.id));
        }
        assert_eq!(ids.len(), 2);
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
        assert!(!add(&mut counted, 2, "another"), "none of them is written");
        save(&mut counted, Duration::ZERO);
        assert!(
            !add(&mut counted, 1, "another"),
            "the newest minute goes on"
        );
        save(&mut counted, Duration::ZERO);
        add(&mut counted, 1, "type 0");
        assert!(add(&mut counted, 2, "another"), "older ones make room");
        assert_eq!(counts(&counted), [(1, 3), (2, 1)], "and lose nothing");
    }

    #[test]
    fn what_clients_tell_of_leaves_room_for_what_is_appended() {
        let mut counted = Counted::default();
        for no in 0..MAX_TOLD {
            let told = format!("told {no}");
            assert!(add_from(Source::Told, &mut counted, 1, &told));
        }
        assert!(!add_from(Source::Told, &mut counted, 1, "another"));
        assert_eq!((counted.told, counted.not_counted), (MAX_TOLD, 1));
        for no in 0..MAX_TALLIES {
            assert!(add(&mut counted, 1, &format!("type {no}")));
        }
        assert!(add(&mut counted, 1, "told 0"), "it is there already");
        assert!(!add_from(Source::Told, &mut counted, 2, "another"));
    }
}
